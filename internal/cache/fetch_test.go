// SPDX-License-Identifier: MIT

package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/geometry"
)

// noPanics is an Options.Log: who hears of an internal error fails.
func noPanics(t testing.TB) func(string, ...any) {
	return func(format string, args ...any) {
		if line := fmt.Sprintf(format, args...); strings.Contains(line, "internal error") {
			t.Error(line)
		}
	}
}

// newFetching returns a cache of a volume whose chunks, of 4,096 bytes that are
// all b, have to be fetched.
func newFetching(t *testing.T) (*Cache, *fakeVolume) {
	geo, err := geometry.New(4096, 10)
	if err != nil {
		t.Fatal(err)
	}
	v := newFakeVolume(t, 4096, 1)
	for i := range geometry.ChunkIndex(10) {
		v.objects[i] = bytes.Repeat([]byte("b"), 4096)
	}
	c, err := New(v, geo, Options{Size: 1 << 20, Connections: 2, Age: time.Hour, Pause: time.Hour, Readahead: -1, Check: true})
	if err != nil {
		t.Fatal(err)
	}
	return c, v
}

// TestReadGivenUp ends the context of a reader while his fetch is under way: he
// is let go at once, the fetch goes on, and Close waits for it.
func TestReadGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, v := newFetching(t)
		fetch := v.gate("read", 3)
		gone := errors.New("the client has gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		read, closed := make(chan error, 1), make(chan struct{})
		go func() { read <- c.Read(ctx, make([]byte, 100), 3*4096) }()
		synctest.Wait()
		cancel(gone)
		synctest.Wait()
		select {
		case err := <-read:
			if !errors.Is(err, gone) {
				t.Errorf("read: %v", err)
			}
		default:
			t.Error("the reader waits for a fetch that he does not want any more")
		}
		if n := c.find(3).pins.Load(); n != 0 {
			t.Errorf("the chunk has %d pins", n)
		}
		go func() {
			c.Close()
			close(closed)
		}()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("Close did not wait for the fetch")
		default:
		}
		close(fetch.opened)
		<-closed
	})
}

// TestFetchPanics has a fetch panic that a reader and an upload wait for: the
// cache is given up, with all who wait in it.
func TestFetchPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, v := newFetching(t)
		fetch := v.gate("read", 3)
		held := v.hook
		v.hook = func(stage string, i geometry.ChunkIndex) {
			if held(stage, i); stage == "read" && i == 3 {
				panic("a bug")
			}
		}
		ctx := c.Context() // as the device does it
		ended := make(chan error, 2)
		go func() { ended <- c.Read(ctx, make([]byte, 100), 3*4096) }()
		synctest.Wait()
		try(t, c.Write(ctx, []byte("new"), 3*4096+200))
		go func() { ended <- c.Flush(ctx) }()
		synctest.Wait()
		close(fetch.opened)
		for range 2 {
			if err := <-ended; err == nil || !strings.Contains(err.Error(), "internal error in the cache: a bug") {
				t.Errorf("read or flush: %v", err)
			}
		}
		c.Close()
	})
}
