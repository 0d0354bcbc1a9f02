// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
)

// TestDeleteBesideClone makes a clone after delete has looked for clones, and before
// it has the lock: nothing is deleted. A clone that begins after that is refused.
func TestDeleteBesideClone(t *testing.T) {
	b := newBench(t, devswift.Options{}, "golden", "web", "late")
	const size = 1 << 20
	was := bytes.Clone(b.fillLog("golden", size, 1))
	b.ok("snapshot", "golden", "v1")

	var once, late atomic.Bool
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		// The lease of delete is being made.
		if r.Method == http.MethodPut && strings.HasPrefix(r.Container, "golden.swiftnbd-lease") {
			if once.CompareAndSwap(false, true) {
				if r := b.run("clone", "golden@v1", "web"); r.code != 0 {
					t.Errorf("clone: %+v", r)
				}
			}
		}
		return nil
	})
	b.fails(1, []string{"golden: not deleted: it is needed by its clone web"}, "delete", "golden", "-y")
	b.swift.SetFault(nil)
	checkUnlocked(b, "golden")
	if got := b.content("web", size); !bytes.Equal(got, was) {
		t.Error("the clone is not what was in the snapshot")
	}
	if names := b.names("golden", layout.GonePrefix); len(names) > 0 {
		t.Errorf("%q are left", names)
	}
	b.ok("clone", "golden@v1", "late") // nothing stays of the attempt
	b.ok("delete", "late", "-y")
	b.ok("delete", "web", "-y")

	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		// delete lists what it deletes.
		if r.Method == http.MethodDelete || r.Method == http.MethodPost && r.Query.Has("bulk-delete") {
			if late.CompareAndSwap(false, true) {
				if r := b.run("clone", "golden@v1", "late"); r.code == 0 {
					t.Error("a clone was made of a disk that is being deleted")
				}
			}
		}
		return nil
	})
	b.ok("delete", "golden", "-y")
	b.swift.SetFault(nil)
	if !late.Load() {
		t.Error("no clone was tried: this test shows nothing")
	}
	b.gone("golden")
}
