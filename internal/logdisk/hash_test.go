// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/etag"
)

// checked is a far store that looks at the ETag of each object of the log, and
// notes when its PUT began.
type checked struct {
	store.Store
	t     *testing.T
	takes time.Duration

	long bool // the first PUT takes ten times as long

	mu    sync.Mutex
	began []time.Time
}

func (c *checked) Put(ctx context.Context, name string, p []byte, tag store.ETag) error {
	if _, ok := layout.ParseLogName(name); ok {
		if tag != etag.Sum(p) {
			c.t.Errorf("%s, %d bytes: the ETag is wrong", name, len(p))
		}
		c.mu.Lock()
		takes := c.takes
		if c.long && len(c.began) == 0 {
			takes *= 10
		}
		c.began = append(c.began, time.Now())
		c.mu.Unlock()
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return c.Store.Put(ctx, name, p, tag)
}

// TestHashTogether fills objects one after the other, and looks when their PUTs
// begin: those that nobody waits for wait for each other, and not for long.
func TestHashTogether(t *testing.T) {
	const (
		put    = time.Second
		blocks = 64 // of an object
	)
	type step struct {
		objects int // that are filled
		flush   bool
		long    bool          // of the first step: the first PUT takes ten times as long
		begin   int           // PUTs that have begun after it
		after   time.Duration // 0: at once
	}
	for _, tc := range []struct {
		name  string
		room  int // of how many objects; 0: more than is needed
		steps []step
	}{
		{"eight", 0, []step{{objects: 7}, {objects: 1, begin: 8}, {objects: 7, begin: 8}}},
		{"time", 0, []step{{objects: 3}, {begin: 3, after: gatherTime}}},
		{"flush", 0, []step{{objects: 3}, {flush: true, begin: 3}, {objects: 3, begin: 6}}},
		{"no room", 3, []step{{objects: 3}, {objects: 1, begin: 3}}},
		{"no room and PUTs", fewPuts + 2, []step{
			{objects: fewPuts}, {begin: fewPuts, after: gatherTime},
			{objects: 2, begin: fewPuts}, {objects: 1, begin: fewPuts}, {begin: fewPuts + 2, after: gatherTime},
		}},
		{"as many as Swift lacks", fewPuts + etag.BatchMin + 1, []step{
			// What comes behind a long PUT is not durable before it is: its room is taken.
			{objects: 1, long: true}, {begin: 1, after: gatherTime}, {objects: etag.BatchMin, begin: etag.BatchMin + 1}, {begin: etag.BatchMin + 1, after: put},
			{objects: fewPuts, begin: etag.BatchMin + 1}, {objects: 1, begin: etag.BatchMin + fewPuts}, {begin: etag.BatchMin + 1 + fewPuts, after: gatherTime},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// The hashes' library keeps channels in a sync.Pool, and one bubble
			// must not have another's: this empties it.
			runtime.GC()
			runtime.GC()
			synctest.Test(t, func(t *testing.T) {
				v := newClosing(t, 64*blocks*blockSize)
				v.o = Options{Seal: blocks * layout.FrameSize, Tail: 64 << 20, Cache: leastLender - 1, Age: time.Hour, FlushTime: -1}
				if tc.room > 0 {
					v.o.Tail = int64(tc.room*blocks) * layout.FrameSize
				}
				c := &checked{Store: v.box, t: t, takes: put, long: tc.steps[0].long}
				d, err := v.open(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				p := slices.Repeat([]byte{7}, blocks*blockSize)
				next := int64(0)
				for i, s := range tc.steps {
					for range s.objects {
						off := next * int64(len(p))
						next++
						wg.Go(func() {
							if err := d.Write(t.Context(), p, off); err != nil {
								t.Error(err)
							}
						})
						synctest.Wait()
					}
					if s.flush {
						wg.Go(func() {
							if err := d.Flush(t.Context()); err != nil {
								t.Error(err)
							}
						})
					}
					time.Sleep(s.after)
					synctest.Wait()
					c.mu.Lock()
					begun := len(c.began)
					c.mu.Unlock()
					if begun != s.begin {
						t.Errorf("after step %d %d PUTs have begun, want %d", i+1, begun, s.begin)
					}
				}
				wg.Wait()
				if err := d.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				d.mu.RLock()
				defer d.mu.RUnlock()
				if h := &d.hashes; h.putting != 0 || len(h.gathered) != 0 || h.hashing || h.vectors != nil {
					t.Errorf("at the end %d are put, %d gathered, hashing=%v, vectors=%v", h.putting, len(h.gathered), h.hashing, h.vectors)
				}
			})
		})
	}
}
