// SPDX-License-Identifier: MIT

package main

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
)

// TestCloneLateInDelete tries to make a clone at each moment of a deletion, which takes
// hours on a large disk. As long as the snapshot's root is there, it is refused.
func TestCloneLateInDelete(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{Without: []string{"bulk_delete"}}, "golden", "late")
	b.fillLog("golden", 1<<20, 3)
	b.ok("snapshot", "golden", "v1")
	var tries, busy atomic.Int64
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == http.MethodDelete && r.Container == "golden" && strings.HasPrefix(r.Object, layout.RootPrefix) && busy.CompareAndSwap(0, 1) {
			defer busy.Store(0)
			tries.Add(1)
			if r := b.run("clone", "golden@v1", "late"); r.code == 0 {
				t.Errorf("a clone was made when there was still: %q", b.names("golden", ""))
			}
		}
		return nil
	})
	b.ok("delete", "golden", "-y", "--connections", "1")
	b.swift.SetFault(nil)
	if tries.Load() == 0 {
		t.Error("no clone was tried: this test shows nothing")
	}
	b.gone("golden")
}
