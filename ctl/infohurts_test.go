// SPDX-License-Identifier: MIT

package main

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/devswift"
	swiftstore "swiftnbd/internal/store/swift"
)

// TestQuotaHurts is the table of what a quota does to a disk of 1000 bytes, of
// which 100 are stored in one of ten objects.
func TestQuotaHurts(t *testing.T) {
	ten := int64(10)
	in := &info{Size: 1000, Bytes: 100, Objects: &ten, Stored: 1}
	for _, c := range []struct {
		what        string
		used, limit int64
		want        string // "" is no warning
	}{
		{"bytes", 100, 1000, ""}, {"bytes", 100, 999, "has room for 899 B more"}, {"bytes", 9000, 10000, "nearly used up"}, {"bytes", 8999, 10000, ""},
		{"bytes", 10, 10, "is used up"}, {"bytes", 20, 10, "is used up"}, {"objects", 1, 10, ""}, {"objects", 1, 9, "has room for 8 objects more"},
		{"objects", 90, 100, "nearly used up"},
	} {
		got := quotaHurts(swiftstore.Quota{Of: "the account", What: c.what, Header: "H", Used: c.used, Limit: c.limit}, in)
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %d of %d: %q; want %q", c.what, c.used, c.limit, got, c.want)
		}
	}
}

// TestInfoWarns of a Swift without TempURL, and is silent where nothing hurts.
func TestInfoWarns(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "8")
	if in := b.info(); in.Warnings == nil || len(in.Warnings) != 0 || in.Policy == nil || *in.Policy != "Policy-0" {
		t.Errorf("%q, policy %v", in.Warnings, in.Policy)
	}
	b = newBench(t, devswift.Options{Without: []string{"tempurl"}}, "disk")
	b.ok("setup", "disk", "8")
	if in := b.info(); !slices.ContainsFunc(in.Warnings, func(w string) bool { return strings.Contains(w, "no TempURL") }) {
		t.Errorf("%q", in.Warnings)
	}
	if out := b.ok("info", "disk"); !strings.Contains(out, "Warning:") {
		t.Error(out)
	}
}

// TestSetupPolicy: a wrong policy lists those that there are, and nothing is
// created.
func TestSetupPolicy(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	for _, more := range [][]string{{"--size", "1M"}, {"--size", "1M", "--format", "2"}} {
		b.fails(1, []string{"disk: --policy: this Swift has no storage policy tin (there are: Policy-0 (the default))"},
			append([]string{"setup", "disk", "--policy", "tin"}, more...)...)
		b.fails(1, []string{"doesn't exist"}, "info", "disk")
	}
	b.ok("setup", "disk", "8", "--policy", "policy-0")
	b.ok("setup", "disk", "8", "--policy", "Policy-0", "--force") // it exists, with this policy
}

// TestUploadPolicy: upload sets its disk up with the storage policy, and does not
// take a disk that has another one for it.
func TestUploadPolicy(t *testing.T) {
	t.Parallel()
	path, content := sparse(t, 1<<20, map[int][]byte{0: noise(100)})
	for format, options := range formats {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			args := append([]string{"upload", path, "disk"}, options...)
			b.fails(1, []string{"disk: --policy: this Swift has no storage policy tin (there are: Policy-0 (the default))"}, append(args, "--policy", "tin")...)
			b.fails(1, []string{"doesn't exist"}, "info", "disk")
			var asked atomic.Bool
			b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
				if r.Header.Get("X-Storage-Policy") == "policy-0" {
					asked.Store(true)
				}
				return nil
			})
			b.ok(append(args, "--policy", "policy-0")...)
			b.swift.SetFault(nil)
			if !asked.Load() {
				t.Error("Swift was not asked for the policy")
			}
			b.holds("disk", content)
			b.ok("upload", path, "disk", "--force", "--policy", "Policy-0")
			b.fails(1, []string{"disk: --policy: this Swift has no storage policy tin"}, "upload", path, "disk", "--force", "--policy", "tin")
			b.holds("disk", content)
		})
	}
}
