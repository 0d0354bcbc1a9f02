// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
)

// doorman allows n logins within a window of time and refuses the others, which
// count as well: whoever does not wait never gets in.
type doorman struct {
	n       int
	window  time.Duration
	refusal devswift.Action

	mu               sync.Mutex
	tries            []time.Time
	allowed, refused int
}

func (d *doorman) fault(r *devswift.Request) *devswift.Action {
	if r.Path != "/auth/v1.0" {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for len(d.tries) > 0 && now.Sub(d.tries[0]) > d.window {
		d.tries = d.tries[1:]
	}
	d.tries = append(d.tries, now)
	if len(d.tries) > d.n {
		d.refused++
		return &d.refusal
	}
	d.allowed++
	return nil
}

// TestLoginRateLimited has tokens end every other second and the login's server
// allow little more than one login for each. Somebody else uses up what is
// allowed now and then. 16 goroutines write and read all the while and see
// nothing of it, and the server is not asked by all of them.
func TestLoginRateLimited(t *testing.T) {
	t.Parallel()
	for _, refusal := range []devswift.Action{
		{Status: 429, Header: http.Header{"Retry-After": {"1"}}},
		{Status: 403},
		{Status: 503},
	} {
		t.Run(fmt.Sprint(refusal.Status, refusal.Header), func(t *testing.T) {
			t.Parallel()
			const span = 6 * time.Second
			d := &doorman{n: 2, window: 1500 * time.Millisecond, refusal: refusal}
			server, login := embedded(t, devswift.Options{TokenLife: 2 * time.Second})
			server.SetFault(d.fault)
			c := dial(t, swiftstore.Options{Login: login})
			start, last := time.Now(), time.Now()
			s := store.Retry(c.Container("c"), store.Policy{Timeout: 30 * time.Second})
			rounds := load(t, s, func() bool {
				d.mu.Lock()
				defer d.mu.Unlock()
				if time.Since(last) > 1900*time.Millisecond { // somebody else
					last = time.Now()
					for range d.n {
						d.tries = append(d.tries, last)
					}
				}
				return time.Since(start) > span
			})
			d.mu.Lock()
			defer d.mu.Unlock()
			t.Logf("%d rounds; %d logins were allowed, %d refused", rounds, d.allowed, d.refused)
			if d.refused == 0 {
				t.Error("no login was refused")
			}
			if d.refused > 30 {
				t.Errorf("%d logins were refused: the server asked for patience", d.refused)
			}
		})
	}
}
