// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/devswift"
)

// TestCloneCut cuts the verb off from Swift at each of its requests, which then
// has its effect or not, and runs it again.
func TestCloneCut(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web")
	const size = 256 << 10
	disk := b.fillLog("golden", size, 1)
	b.ok("snapshot", "golden", "v1")
	cut := func(k int, after bool, args ...string) (requests int) {
		var n atomic.Int64
		b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
			if !strings.HasPrefix(r.Path, "/v1/") {
				return nil
			}
			switch i := int(n.Add(1)); {
			case i == k:
				return &devswift.Action{Status: http.StatusForbidden, After: after}
			case i > k:
				return &devswift.Action{Status: http.StatusForbidden}
			}
			return nil
		})
		b.run(args...)
		b.swift.SetFault(nil)
		return int(n.Load())
	}
	for _, args := range [][]string{{"clone", "golden@v1", "web"}, {"clone", "golden", "web"}} {
		first := 1
		total := cut(1<<30, false, args...)
		if strings.Contains(args[1], "@") && total >= 10 {
			t.Errorf("%d requests", total)
		} else if !strings.Contains(args[1], "@") {
			first = total - 3 // the snapshot is there by then
		}
		b.ok("delete", "web", "-y")
		for k := first; k <= total; k++ {
			for _, after := range []bool{false, true} {
				if after != (k%2 == 0) && testing.Short() {
					continue
				}
				cut(k, after, args...)
				if l := b.run("list", "web", "--json"); !strings.Contains(l.out, `"set_up": true`) {
					if a := b.run(args...); a.code != 0 {
						t.Fatalf("%q, cut at request %d, %t: %+v", args, k, after, a)
					}
				}
				if !bytes.Equal(b.content("web", size), disk) {
					t.Fatalf("%q, cut at request %d: the clone is not what the disk was", args, k)
				}
				snap := "v1"
				if !strings.Contains(args[1], "@") {
					var in info
					if err := json.Unmarshal([]byte(b.ok("info", "web", "--json")), &in); err != nil {
						t.Fatal(err)
					}
					snap = *in.ParentSnap
				}
				b.fails(1, []string{"snapshot " + snap + " is needed by its clone web"}, "snapshot", "--delete", "golden", snap)
				if r := b.run("verify", "golden"); r.code != 0 && r.code != exitStrays {
					t.Errorf("%+v", r)
				}
				b.ok("delete", "web", "-y")
				if names := b.notes("golden"); len(names) > 0 {
					t.Fatalf("%q, cut at request %d: notes %q", args, k, names)
				}
			}
		}
	}
	if !bytes.Equal(b.content("golden", size), disk) {
		t.Error("the parent is not what it was")
	}
}
