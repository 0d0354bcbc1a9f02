// SPDX-License-Identifier: MIT

package logdisk_test

import (
	"bytes"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
)

// tokenKinds are the requests of flushes, checkpoints and the collector, each of
// which finds that its token has died.
var tokenKinds = []string{"put log", "put collected", "put run", "put root", "get log", "delete"}

// tokenKind returns which of tokenKinds a request is, or "".
func tokenKind(r *devswift.Request) string {
	at, isLog := layout.ParseLogName(r.Object)
	switch {
	case r.Method == http.MethodDelete || r.Method == http.MethodPost && r.Query.Has("bulk-delete"):
		return "delete"
	case isLog && r.Method == http.MethodPut && at.N >= layout.FirstCollected:
		return "put collected"
	case isLog:
		return strings.ToLower(r.Method) + " log"
	case r.Method == http.MethodPut && strings.HasPrefix(r.Object, layout.RunPrefix):
		return "put run"
	case r.Method == http.MethodPut && strings.HasPrefix(r.Object, layout.RootPrefix):
		return "put root"
	}
	return ""
}

// TestTokenDiesBehind has the token die before each kind of request that a server
// makes behind its clients, twice each. No write and no flush fails, the work goes
// on, and the next session finds every byte.
func TestTokenDiesBehind(t *testing.T) {
	t.Parallel()
	server, login := embedded(t)
	v := newOnSwift(t, login)
	if _, err := logdisk.Setup(t.Context(), v.store, v.uuid, onSwiftSize); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	died := map[string]int{}
	served := 0 // requests since the last death, which was then
	var then time.Time
	server.SetFault(func(r *devswift.Request) *devswift.Action {
		kind := tokenKind(r)
		mu.Lock()
		defer mu.Unlock()
		served++
		// A request asks for two new tokens at most, so none dies while it is new, or
		// while somebody is on their way who has seen that the one before was dead.
		if !slices.Contains(tokenKinds, kind) || died[kind] == 2 || served < 10 || time.Since(then) < 300*time.Millisecond {
			return nil
		}
		died[kind]++
		served, then = 0, time.Now()
		server.RevokeTokens()
		return nil
	})
	d := v.open()
	r := rand.New(rand.NewPCG(1, 1))
	v.until("each kind of request has met two dead tokens", func() bool {
		v.write(d, r, 20)
		mu.Lock()
		defer mu.Unlock()
		for _, kind := range tokenKinds {
			if died[kind] < 2 {
				return false
			}
		}
		return true
	})
	if n := server.Count("", http.StatusUnauthorized); n < int64(2*len(tokenKinds)) {
		t.Errorf("%d requests had a dead token: this test shows little", n)
	}
	deleted := d.Stats().Deleted.Load()
	v.until("the collector and the checkpoints go on", func() bool {
		v.write(d, r, 20)
		return d.Stats().Deleted.Load() > deleted
	})
	if n := d.Stats().Failures.Load(); n != 0 {
		t.Errorf("%d uploads failed", n)
	}
	v.reads(d, "", v.want)
	want := bytes.Clone(v.want)
	d.Close()
	v.is("", want)
	v.clean()
}
