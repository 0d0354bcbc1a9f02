// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

func itoa(n int) string { return strconv.Itoa(n) }

// scatter puts n empty chunks, and a few other objects, into a container.
func (b *bench) scatter(name string, n int) {
	b.Helper()
	b.ok("setup", name, "100000", "--object-size", "1")
	var g sync.WaitGroup
	next := atomic.Int64{}
	s := b.store(name)
	for range 16 {
		g.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(n) {
					return
				}
				if err := s.Put(b.Context(), fmt.Sprintf("disk.part/%08d", i), []byte{1}, "55a54008ad1ba589aa210d2629c1df41"); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	g.Wait()
	b.put(name, "swiftnbd/map/0", []byte("x"))
	b.put(name, "ünicode and spaces %2F?#", []byte("x"))
}

// gone fails unless the container has gone.
func (b *bench) gone(name string) {
	b.Helper()
	if _, err := b.store(name).Metadata(b.Context()); !errors.Is(err, store.ErrContainerNotFound) {
		b.Errorf("%s is still there: %v", name, err)
	}
}

// TestDelete: more objects than a listing has, with bulk delete and without.
func TestDelete(t *testing.T) {
	t.Parallel()
	const objects = 10_500 // a listing has 10,000
	for _, without := range [][]string{nil, {"bulk_delete"}} {
		b := newBench(t, devswift.Options{Without: without}, "disk")
		b.scatter("disk", objects)
		if out := b.ok("delete", "disk", "--yes"); out != "Done, disk has been deleted\n" {
			t.Errorf("%q", out)
		}
		b.gone("disk")
		if n := b.swift.Count(http.MethodDelete, http.StatusConflict); n != 0 {
			t.Errorf("%d times it was tried to delete the container before it was empty", n)
		}
		single := b.swift.Count(http.MethodDelete)
		if without == nil && single > 10 || without != nil && single < objects {
			t.Errorf("%d DELETEs, without %q", single, without)
		}
		b.fails(1, []string{"disk doesn't exist"}, "delete", "disk", "--yes")
	}
}

// TestDeleteRefused: nothing is touched.
func TestDeleteRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "plain")
	b.scatter("disk", 3)
	b.create("plain")
	b.put("plain", "holiday.jpg", []byte("x"))
	before := b.writes()
	b.fails(1, []string{"disk: not deleted", "no terminal", "--yes"}, "delete", "disk")
	b.fails(1, []string{"plain hasn't been setup"}, "delete", "plain", "--yes")
	b.unchanged(before)
	b.ok("lock", "disk")
	before = b.writes()
	b.fails(1, []string{"disk is locked by ctl since "}, "delete", "disk", "-y")
	b.unchanged(before)
}

// TestDeleteInterrupted: the container stays locked, nobody can use what is
// left of the disk, and another delete finishes.
func TestDeleteInterrupted(t *testing.T) {
	t.Parallel()
	for _, without := range [][]string{nil, {"bulk_delete"}} {
		b := newBench(t, devswift.Options{Without: without}, "disk")
		b.scatter("disk", 1500)
		ctx, cancel := context.WithCancel(t.Context())
		var deletes atomic.Int64
		b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
			if r.Method == http.MethodDelete && deletes.Add(1) == 300 || r.Method == http.MethodPost && r.Container == "" && deletes.Add(1) == 2 {
				cancel()
			}
			return nil
		})
		r := b.runContext(ctx, "delete", "disk", "--yes")
		if r.code != 1 || r.err != "swiftnbd-ctl: disk: interrupted; it is not deleted to the end: delete it again\n" || r.out != "" {
			t.Errorf("%+v", r)
		}
		b.swift.SetFault(nil)
		if mark := b.items("disk")[volume.KeyClient]; !strings.HasPrefix(mark, "ctl-delete@") {
			t.Errorf("the mark is %q", mark)
		}
		b.fails(1, []string{"disk is already locked: ctl-delete since "}, "lock", "disk")
		b.fails(1, []string{"disk is locked by ctl-delete since "}, "setup", "-f", "disk", "5")
		b.ok("delete", "disk", "--yes")
		b.gone("disk")
	}
}

// TestDeleteFails: an object that cannot be deleted is named. Where nothing
// has been deleted yet the lock goes again.
func TestDeleteFails(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{Without: []string{"bulk_delete"}}, "disk")
	b.scatter("disk", 5)
	b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodGet, Prefix: "/v1/AUTH_test/disk", Action: devswift.Action{Status: 403}}))
	b.fails(1, []string{"disk: ", "permission denied"}, "delete", "disk", "--yes")
	checkUnlocked(b, "disk")
	b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodDelete, Prefix: "/v1/AUTH_test/disk/disk.part/00000003", Action: devswift.Action{Status: 403}}))
	b.fails(1, []string{"disk: delete object disk.part/00000003: ", "permission denied", "delete it again"}, "delete", "disk", "--yes")
	b.swift.SetFault(nil)
	b.ok("delete", "disk", "--yes")
	b.gone("disk")
}

// TestDeleteLateListing: Swift calls a container not empty whose listing shows
// nothing yet, or the listing still shows what has gone.
func TestDeleteLateListing(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.scatter("disk", 5)
	b.swift.SetFault(devswift.Rules(
		devswift.Rule{Method: http.MethodGet, Prefix: "/v1/AUTH_test/disk", Times: 2, Action: devswift.Action{Status: 204}},
		devswift.Rule{Method: http.MethodDelete, Prefix: "/v1/AUTH_test/disk", Skip: 2, Times: 1, Action: devswift.Action{Status: 409}},
	))
	b.ok("delete", "disk", "--yes")
	b.gone("disk")
}
