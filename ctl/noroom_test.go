// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
)

// TestChangeNoRoom has Swift take the root with which a verb opens the disk, and nothing
// after it. The disk is not changed, and not locked: the verb can be run again.
func TestChangeNoRoom(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"revert", "disk", "v1", "-y"}, {"resize", "disk", "512K", "--force"}} {
		t.Run(args[0], func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			const size = 1 << 20
			disk := b.fillLog("disk", size, 1)
			v1 := bytes.Clone(disk)
			b.ok("snapshot", "disk", "v1")
			d, end := b.open("disk")
			b.scribble(d, disk)
			end()
			b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
				if r.Method == http.MethodPut && strings.HasPrefix(r.Object, layout.LogPrefix) {
					return &devswift.Action{Status: http.StatusRequestEntityTooLarge}
				}
				return nil
			})
			if r := b.run(args...); r.code != 1 || !strings.Contains(r.err, "413") || strings.Contains(r.err, "locked") {
				t.Errorf("%+v", r)
			}
			b.swift.SetFault(nil)
			checkUnlocked(b, "disk")
			if !bytes.Equal(b.content("disk", size), disk) {
				t.Error("the disk is not what it was")
			}
			b.ok(args...)
			want := v1
			if args[0] == "resize" {
				want = disk[:size/2]
			}
			if !bytes.Equal(b.content("disk", len(want)), want) {
				t.Error("run again, it has not changed the disk")
			}
			b.noLeases("disk", 20)
		})
	}
}
