// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
)

// TestTwoOperators has each verb that changes a disk be run by three operators at the
// same moment; clone has TestCloneTwice. At least one of them does it, the others do it,
// too, or are told in one line why not, and the disk and its snapshots are what one run
// makes of them.
func TestTwoOperators(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	image := filepath.Join(t.TempDir(), "increment")
	whole := filepath.Join(t.TempDir(), "whole")
	for _, c := range []struct {
		args  []string
		want  string   // what disk is then: a or b, a snapshot
		after []string // fails then, or does nothing
		says  string
	}{
		{[]string{"snapshot", "disk", "c"}, "b", []string{"snapshot", "disk", "c"}, "there is such a snapshot already"},
		{[]string{"snapshot", "--delete", "disk", "a"}, "b", []string{"snapshot", "--delete", "disk", "a"}, "there is no such snapshot"},
		{[]string{"revert", "disk", "a", "--yes"}, "a", []string{"download", "disk@none", image}, "there is no such snapshot"},
		{[]string{"resize", "disk", "2M"}, "b", []string{"resize", "disk", "1M", "--force", "extra"}, ""},
		{[]string{"flatten", "clone"}, "b", nil, ""},
		{[]string{"convert", "old"}, "b", []string{"convert", "old"}, "version 2"},
		{[]string{"upload", image, "--onto", "copy"}, "b", nil, ""},
		{[]string{"upload", whole, "disk", "--force"}, "a", nil, ""},
		{[]string{"setup", "web", "--size", "1M", "--format", "2"}, "b", []string{"setup", "web", "--size", "1M", "--format", "2"}, "already"},
		{[]string{"delete", "copy", "--yes"}, "b", []string{"delete", "copy", "--yes"}, ""},
	} {
		t.Run(strings.Join(c.args[:1], " ")+" "+c.args[len(c.args)-1][:1], func(t *testing.T) {
			b := newBench(t, devswift.Options{}, "disk", "web", "old", "clone", "copy")
			disk := b.fillLog("disk", size, 1)
			b.ok("snapshot", "disk", "a")
			was := map[string][]byte{"a": bytes.Clone(disk)}
			b.serve("disk", func(d *device.Device) { b.scribble(d, disk) })
			b.ok("snapshot", "disk", "b")
			was["b"] = bytes.Clone(disk)
			b.ok("clone", "disk@a", "clone")
			old := b.fillChunks("old", size, "64K")
			b.ok("download", "disk@a", image, "-O", "increment")
			b.ok("download", "disk@a", whole)
			b.ok("upload", image, "--onto", "copy")
			b.ok("download", "disk@b", image, "-O", "increment", "--since", "a")
			if c.args[0] == "snapshot" && c.args[1] == "--delete" {
				b.ok("delete", "clone", "--yes")
			}
			b.swift.SetFault(func(*devswift.Request) *devswift.Action {
				time.Sleep(2 * time.Millisecond)
				return nil
			})
			var g sync.WaitGroup
			results := make([]result, 3)
			for i := range results {
				g.Go(func() { results[i] = b.run(c.args...) })
			}
			g.Wait()
			b.swift.SetFault(nil)
			done := 0
			for _, r := range results {
				if r.code == 0 {
					done++
				} else if r.code != 1 || strings.Count(r.err, "\n") != 1 || !strings.HasPrefix(r.err, "swiftnbd-ctl: ") {
					t.Errorf("%+v", r)
				}
			}
			if done == 0 || done > 1 && c.args[0] == "setup" {
				t.Errorf("%d of them have done it", done)
			}
			if c.args[0] == "setup" {
				b.ok("verify", "web")
				b.serve("web", nil)
			}
			if c.says != "" {
				b.fails(1, []string{c.says}, c.after...)
			}
			for _, name := range []string{"disk", "clone", "copy", "old"} {
				deleted := c.args[0] == "delete" && name == "copy" || c.args[0] == "snapshot" && c.args[1] == "--delete" && name == "clone"
				want := map[string][]byte{"disk": was[c.want], "clone": was["a"], "copy": was["a"], "old": old}[name]
				if c.args[0] == "upload" && name == "copy" && c.args[2] == "--onto" {
					want = was["b"]
				}
				switch {
				case deleted:
					b.gone(name)
				case !bytes.Equal(b.content(name, size), want):
					t.Errorf("%s is not what it is to be", name)
				default:
					if r := b.run("verify", name); r.code != 0 && r.code != exitStrays {
						t.Errorf("verify %s: %+v", name, r)
					}
				}
			}
			path := filepath.Join(t.TempDir(), "image")
			for name, want := range was {
				if name == "a" && c.args[1] == "--delete" {
					continue
				}
				b.ok("download", "disk@"+name, path)
				checkImage(t, path, want)
			}
		})
	}
}
