// SPDX-License-Identifier: MIT

package device

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store/mem"
)

// TestFollowAway: Swift does not answer the look for a newer moment, or late. Requests
// that wait for that look do not each look again, one after the other.
func TestFollowAway(t *testing.T) {
	for _, c := range []struct {
		what  string
		takes time.Duration // a look that is not ended before; 0: for ever
		most  time.Duration // that a request takes
	}{
		{"no answer", 0, 61 * time.Second},
		{"late", 1500 * time.Millisecond, 2 * time.Second},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { followAway(t, c.takes, c.most) })
		})
	}
}

func followAway(t *testing.T, takes, most time.Duration) {
	box, uuid := mem.New(), layout.NewUUID()
	if _, err := box.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := logdisk.Setup(t.Context(), box, uuid, 1<<20); err != nil {
		t.Fatal(err)
	}
	d, err := logdisk.Open(t.Context(), logdisk.Options{Store: box, UUID: uuid})
	if err != nil {
		t.Fatal(err)
	}
	looks := 0
	o := Options{Follow: time.Second, Timeout: time.Minute, Log: func(string, ...any) {}}
	f := newFollowed(&loggedDisk{Disk: d}, o, func(ctx context.Context, _ *logdisk.Disk) (*loggedDisk, error) {
		looks++
		if takes > 0 {
			time.Sleep(takes)
			return nil, nil
		}
		<-ctx.Done()
		return nil, context.Cause(ctx)
	})
	defer f.Close()
	time.Sleep(2 * time.Second)
	begun := time.Now()
	var g sync.WaitGroup
	for range 8 {
		g.Go(func() {
			if err := f.Read(t.Context(), make([]byte, 4096), 0); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if took := time.Since(begun); took > most {
		t.Errorf("it took %v, with %d looks", took, looks)
	}
	// Their moment is over.
	begun, looks = time.Now(), 0
	for range 8 {
		g.Go(func() { f.look(t.Context(), f.cur) })
	}
	g.Wait()
	if took := time.Since(begun); took > 2*most {
		t.Errorf("the moment is over: it took %v, with %d looks", took, looks)
	}
}
