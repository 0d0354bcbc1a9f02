// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"maps"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/volume"
)

// TestSetup011 holds what setup writes against what swiftnbd 0.11 writes.
func TestSetup011(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	if out := b.ok("setup", "disk", "16384"); out != "disk doesn't exist, will be created\nDone, disk: 16384 objects of 64 KiB, 1 GiB\n" {
		t.Error(out)
	}
	items := b.items("disk")
	for key, want := range map[string]string{volume.KeyVersion: "1", volume.KeyObjects: "16384", volume.KeyObjectSize: "65536", volume.KeyClient: ""} {
		if items[key] != want {
			t.Errorf("%s is %q, want %q", key, items[key], want)
		}
	}
	b.fails(1, []string{"disk has already been setup"}, "setup", "disk", "5")
	if after := b.items("disk"); !maps.Equal(after, items) {
		t.Errorf("a refused setup changed %v to %v", items, after)
	}
	if out := b.ok("setup", "disk", "32", "--object-size", "4096", "-f"); out != "Done, disk: 32 objects of 4 KiB, 128 KiB\n" {
		t.Error(out)
	}
	if out := b.ok("list", "-s"); out != "disk objects=32 size=4096 (version=1, unlocked)\n" {
		t.Error(out)
	}
	b.ok("setup", "-f", "--object-size", "131072", "disk", "8")
	if out := b.ok("list", "-s"); out != "disk objects=8 size=131072 (version=1, unlocked)\n" {
		t.Error(out)
	}
}

// TestSetupSizes: sizes for people, and what does not fit is rounded up.
func TestSetupSizes(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	for _, c := range []struct{ args, simple, says string }{
		{"--size 10G", "objects=10240 size=1048576", "10 GiB"},
		{"16384", "objects=16384 size=65536", "16384 objects of 64 KiB, 1 GiB"},
		{"--size 10G --object-size 4M", "objects=2560 size=4194304", "2560 objects of 4 MiB, 10 GiB"},
		{"--size 10M --object-size 3MiB", "objects=4 size=3145728", "rounded up to 12582912 bytes"},
		{"--size 1 --object-size 4k", "objects=1 size=4096", "rounded up to 4096 bytes"},
		{"7 --object-size 1000", "objects=7 size=1000", "7 objects of 1000 B, 6.8 KiB"},
		{"1 --object-size 1G", "objects=1 size=1073741824", "1 object of 1 GiB, 1 GiB"},
	} {
		out := b.ok(append([]string{"setup", "-f", "disk"}, strings.Fields(c.args)...)...)
		if !strings.Contains(out, c.says) {
			t.Errorf("%s: %q lacks %q", c.args, out, c.says)
		}
		if out := b.ok("list", "-s"); !strings.Contains(out, c.simple) {
			t.Errorf("%s: %q lacks %q", c.args, out, c.simple)
		}
	}
}

// TestSetupOverSomething: a lock, foreign objects, chunks of another size.
func TestSetupOverSomething(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "foreign", "empty")
	b.fill("disk", 4, 4096, map[int][]byte{0: make([]byte, 4096), 3: make([]byte, 4096)})

	b.ok("lock", "disk")
	locked := b.items("disk")
	b.fails(1, []string{"disk is locked by ctl since ", "unlock it first"}, "setup", "-f", "disk", "8")
	if !maps.Equal(b.items("disk"), locked) {
		t.Error("setup changed a locked container")
	}
	b.ok("unlock", "disk")
	b.swift.ResetRequests()

	r := b.run("setup", "-f", "disk", "8", "--object-size", "8192")
	if r.code != 0 || !strings.Contains(r.err, "warning: disk holds objects of 4096 bytes (disk.part/00000000)") || strings.Contains(r.err, "beyond") {
		t.Errorf("another object size: %+v", r)
	}
	r = b.run("setup", "-f", "disk", "2", "--object-size", "4096")
	if r.code != 0 || r.err != "swiftnbd-ctl: warning: disk holds objects beyond the new end, from disk.part/00000003: they stay, unused\n" {
		t.Errorf("a smaller disk: %+v", r)
	}
	b.ok("setup", "-f", "disk", "4", "--object-size", "4096")
	for _, r := range b.swift.Requests() {
		if r.Method == http.MethodDelete {
			t.Errorf("setup made a DELETE %s", r.Path)
		}
	}

	b.create("foreign", "empty")
	b.put("foreign", "holiday.jpg", []byte("x"))
	b.fails(1, []string{"foreign is not a swiftnbd container and holds objects, such as holiday.jpg"}, "setup", "foreign", "8")
	b.ok("setup", "-f", "foreign", "8")
	b.ok("setup", "empty", "8")

	// Metadata that makes no sense can be replaced; another version's cannot.
	b.setItem("empty", volume.KeyObjects, "many")
	b.fails(1, []string{"empty: ", "Swiftnbd-Objects", `"many"`, "--force"}, "setup", "empty", "8")
	b.ok("setup", "-f", "empty", "8")
	b.setItem("empty", volume.KeyVersion, "2")
	b.fails(1, []string{"empty: ", "Swiftnbd-Version", `"2"`}, "setup", "-f", "empty", "8")
	// A later version need not have version 1's keys; no verb touches it.
	b.setItem("empty", volume.KeyObjects, "")
	b.setItem("empty", volume.KeyObjectSize, "")
	b.put("empty", "swiftnbd/root/00000001-00000001", []byte("x"))
	before := b.writes()
	for _, verb := range [][]string{
		{"setup", "empty", "8"}, {"setup", "-f", "empty", "8"}, {"setup", "-f", "empty", "--size", "1G"},
		{"delete", "empty", "--yes"}, {"lock", "empty"}, {"unlock", "empty"}, {"info", "empty"}, {"list", "empty"},
		{"download", "empty", filepath.Join(t.TempDir(), "image")},
	} {
		b.fails(1, []string{"empty: ", "Swiftnbd-Version", `"2"`}, verb...)
	}
	if got := b.writes(); got != before {
		t.Errorf("%d requests changed something in a later version's container", got-before)
	}
}

// TestVersion2: a disk of version 2 is shown and locked, and not replaced by one
// of version 1.
func TestVersion2(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	meta := volume.Meta{UUID: volume.NewUUID(), Size: 3<<30 + 4096, Root: "00000001-00000001"}
	if err := volume.Create2(t.Context(), b.store("disk"), meta); err != nil {
		t.Fatal(err)
	}
	b.put("disk", "swiftnbd/root/00000001-00000001", []byte("x"))
	before, items := b.writes(), b.items("disk")
	for _, verb := range [][]string{
		{"setup", "disk", "8"}, {"setup", "-f", "disk", "8"}, {"setup", "-f", "disk", "--size", "1G"},
	} {
		b.fails(1, []string{"disk: ", "the disk has version 2 of the format", "version 1 only"}, verb...)
	}
	if got := b.writes(); got != before || !maps.Equal(b.items("disk"), items) {
		t.Errorf("%d requests changed something; the container has %v", got-before, b.items("disk"))
	}
	if out := b.ok("list", "disk"); !strings.Contains(out, "3.0 GiB  about 1, 1 B  2 ") {
		t.Errorf("list: %s", out)
	}
	if out := b.ok("list", "disk", "-s"); out != "disk is not a swiftnbd container\n" {
		t.Errorf("list -s, as 0.11 has it: %q", out)
	}
	var listed []struct {
		Version, Size *int64
		Objects       *int64
	}
	if err := json.Unmarshal([]byte(b.ok("list", "disk", "--json")), &listed); err != nil || *listed[0].Version != 2 || *listed[0].Size != meta.Size || listed[0].Objects != nil {
		t.Errorf("list --json: %+v, %v", listed, err)
	}
	if out := b.ok("info", "disk"); !strings.Contains(out, "version 2\n") || !strings.Contains(out, "(3221229568 bytes)") ||
		strings.Contains(out, "Objects:") || strings.Contains(out, "Map:") {
		t.Errorf("info: %s", out)
	}
	if out := b.ok("info", "disk", "--json"); !strings.Contains(out, `"objects": null`) || !strings.Contains(out, `"size": 3221229568`) {
		t.Errorf("info --json: %s", out)
	}
	b.ok("lock", "disk")
	b.fails(1, []string{"already locked: ctl"}, "lock", "disk")
	b.ok("unlock", "disk")
	for _, key := range []string{volume.KeyVersion, volume.KeyUUID, volume.KeySize, volume.KeyRoot} {
		if got := b.items("disk")[key]; got != items[key] {
			t.Errorf("%s is %q, was %q", key, got, items[key])
		}
	}
	// One that is damaged must not pass for one that may be replaced.
	b.setItem("disk", volume.KeySize, "many")
	b.fails(1, []string{"disk: ", "Swiftnbd-Size", `"many"`}, "setup", "-f", "disk", "8")
	if got := b.items("disk")[volume.KeyVersion]; got != "2" {
		t.Errorf("version %q", got)
	}
}

// TestSetupTooLarge: what the cluster says of itself counts.
func TestSetupTooLarge(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.swift.SetFault(devswift.Rules(devswift.Rule{Prefix: "/info", Action: devswift.Action{Status: 200, Body: `{"swift":{"max_file_size":1000000}}`}}))
	b.fails(1, []string{"too large for this Swift, which takes 976.6 KiB"}, "setup", "disk", "4", "--object-size", "1M")
	b.swift.SetFault(devswift.Rules(devswift.Rule{Prefix: "/info", Action: devswift.Action{Status: 404}}))
	b.ok("setup", "disk", "4", "--object-size", "1M")
}

// TestLock: the mark is 0.11's, and it moves to Last.
func TestLock(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "16")
	stamp := ` since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC`
	match := func(text, want string) {
		t.Helper()
		if !regexp.MustCompile("^" + want + "$").MatchString(text) {
			t.Errorf("%q is not %s", text, want)
		}
	}
	match(b.ok("lock", "disk"), "Done, disk is locked by ctl"+stamp+"\n")
	mark := b.items("disk")[volume.KeyClient]
	match(mark, `ctl@\d{10}`)
	match(b.fails(1, nil, "lock", "disk"), "swiftnbd-ctl: disk is already locked: ctl"+stamp)
	if out, want := b.ok("list", "-s"), "disk objects=16 size=65536 (version=1, locked by "+mark+")\n"; out != want {
		t.Errorf("%q, want %q", out, want)
	}
	match(b.ok("unlock", "disk"), "disk lock was: ctl"+stamp+"\nDone, disk is unlocked\n")
	if items := b.items("disk"); items[volume.KeyClient] != "" || items[volume.KeyLast] != mark {
		t.Errorf("after unlock: %v", items)
	}
	match(b.fails(1, nil, "unlock", "disk"), "swiftnbd-ctl: disk is not locked, nothing to do")

	// What 0.11's server has left behind, and a mark of another form.
	b.setItem("disk", volume.KeyClient, "127.0.0.1:51120@1700000000")
	match(b.ok("unlock", "disk"), "disk lock was: 127.0.0.1:51120 since 2023-11-14 22:13:20 UTC\nDone, disk is unlocked\n")
	b.setItem("disk", volume.KeyClient, "me")
	match(b.fails(1, nil, "lock", "disk"), "swiftnbd-ctl: disk is already locked: me")
	match(b.ok("unlock", "disk"), "disk lock was: me\nDone, disk is unlocked\n")
}

// TestList prints all that there is to say, in the three forms.
func TestList(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "one")
	b.writeSecrets("[DEFAULT]\nauthurl = " + b.auth + "\nusername = test:tester\npassword = testing\n" +
		"[disk-b]\n[absent]\n[disk-a]\nread-only = 1\n[plain]\n[locked]\n[other-cloud]\npassword = wrong\n[broken]\n")
	b.ok("setup", "disk-b", "16384")
	b.ok("setup", "disk-a", "3", "--object-size", "1000")
	b.ok("setup", "locked", "--size", "10T", "--object-size", "4M")
	b.ok("setup", "broken", "5")
	b.setItem("locked", volume.KeyClient, "127.0.0.1:51120@1700000000")
	b.setItem("broken", volume.KeyObjects, "some")
	b.create("plain")

	faults := func(r result) {
		t.Helper()
		lines := strings.Split(strings.TrimSuffix(r.err, "\n"), "\n")
		if r.code != 1 || len(lines) < 2 || !strings.Contains(lines[0], "swiftnbd-ctl: absent doesn't exist") ||
			!strings.Contains(lines[1], "swiftnbd-ctl: other-cloud: ") || !strings.Contains(lines[1], "authentication failed") {
			t.Errorf("%+v", r)
		}
	}
	r := b.run("list")
	faults(r)
	if want := strings.Join([]string{
		"CONTAINER  SIZE     OBJECTS          VERSION  ACCESS      LOCK",
		"disk-b     1 GiB    16384 x 64 KiB   1        read-write  unlocked",
		"disk-a     2.9 KiB  3 x 1000 B       1        read-only   unlocked",
		"plain      -        -                -        -           not a swiftnbd container",
		"locked     10 TiB   2621440 x 4 MiB  1        read-write  127.0.0.1:51120 since 2023-11-14 22:13:20 UTC",
		"",
	}, "\n"); r.out != want {
		t.Errorf("list:\n%swant:\n%s", r.out, want)
	}

	r = b.run("list", "-s")
	faults(r)
	if want := strings.Join([]string{
		"disk-b objects=16384 size=65536 (version=1, unlocked)",
		"disk-a objects=3 size=1000 (version=1, unlocked)",
		"plain is not a swiftnbd container",
		"locked objects=2621440 size=4194304 (version=1, locked by 127.0.0.1:51120@1700000000)",
		"broken objects=some size=65536 (version=1, unlocked)",
		"",
	}, "\n"); r.out != want {
		t.Errorf("list -s:\n%swant:\n%s", r.out, want)
	}

	r = b.run("list", "--json")
	faults(r)
	var all []map[string]any
	if err := json.Unmarshal([]byte(r.out), &all); err != nil || len(all) != 7 {
		t.Fatalf("%v: %s", err, r.out)
	}
	keys := []string{"container", "error", "holder", "last", "locked", "object_size", "objects", "parent", "parent_snapshot", "read_only", "set_up", "since", "size", "stored_bytes", "stored_objects", "version", "versions", "versions_container"}
	for _, e := range all {
		if got := slices.Sorted(maps.Keys(e)); !slices.Equal(got, keys) {
			t.Errorf("%v has the keys %q", e["container"], got)
		}
	}
	want := map[string]any{"container": "locked", "set_up": true, "version": 1., "size": 10. * (1 << 40), "objects": 2621440., "object_size": 4. * (1 << 20),
		"read_only": false, "locked": true, "holder": "127.0.0.1:51120", "since": "2023-11-14T22:13:20Z", "error": nil}
	for k, v := range want {
		if all[4][k] != v {
			t.Errorf("locked: %s is %v, want %v", k, all[4][k], v)
		}
	}
	if e, _ := all[1]["error"].(string); !strings.Contains(e, "doesn't exist") || all[1]["size"] != nil || all[3]["set_up"] != false || all[2]["read_only"] != true {
		t.Errorf("%v", all)
	}

	// Those that are named, in that order.
	if out := b.ok("list", "-s", "locked", "disk-a"); !strings.HasPrefix(out, "locked objects=") || strings.Count(out, "\n") != 2 {
		t.Error(out)
	}
	b.writeSecrets("")
	if out := b.ok("list"); out != "" {
		t.Errorf("list of nothing: %q", out)
	}
	if out := b.ok("list", "--json"); out != "[]\n" {
		t.Errorf("list of nothing: %q", out)
	}
}

// TestHumanSize is about the numbers at the edges.
func TestHumanSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1 KiB", 1025: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1 MiB",
		1<<20 - 1: "1024.0 KiB", 1 << 30: "1 GiB", 10 << 40: "10 TiB", 1<<63 - 1: "8.0 EiB"} {
		if got := humanSize(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
