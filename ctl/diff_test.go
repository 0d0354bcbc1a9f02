// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk"
)

// TestDiffVerb lists changes in columns and as JSON, of a disk that is in use, and
// refuses what cannot be compared.
func TestDiffVerb(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "other", "old")
	const size = 4<<20 + 4096
	b.ok("setup", "disk", "--size", itoa(size), "--format", "2")
	b.ok("setup", "other", "--size", "1M", "--format", "2")
	b.ok("setup", "old", "--size", "1M")
	d, end := b.open("disk")
	write := func(off, n int) {
		t.Helper()
		if _, err := d.WriteAt(noise(n), int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	snapshot := func(name string) {
		t.Helper()
		if err := d.Snapshot(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	write(0, 1<<20)
	snapshot("one")
	write(4096, 8192)
	write(300_000, 10)
	write(size-512, 512) // a part of the last block
	if err := d.Zero(8<<12, 4<<12, false, false); err != nil {
		t.Fatal(err)
	}
	snapshot("two")
	rows := func(out string) (rows []string) {
		for i, line := range strings.Split(strings.TrimSuffix(out, "\n"), "\n") {
			if fields := strings.Fields(line); i > 0 {
				rows = append(rows, strings.Join(fields, " "))
			} else if strings.Join(fields, " ") != "OFFSET LENGTH KIND" {
				t.Errorf("the columns are %q", line)
			}
		}
		return rows
	}
	want := []string{"4096 8192 data", "32768 16384 zero", "299008 4096 data", "4194304 4096 data"}
	for _, args := range [][]string{{"diff", "disk@one", "disk@two"}, {"diff", "disk@one", "disk"}, {"diff", "--exact", "disk@one", "disk@two"}} {
		if got := rows(b.ok(args...)); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q: %q, want %q", args, got, want)
		}
	}
	if got := rows(b.ok("diff", "disk@two", "disk@two")); len(got) > 0 {
		t.Errorf("a snapshot and itself: %q", got)
	}
	for args, n := range map[string]int{"disk@one disk@two": 4, "disk@two disk@one": 4, "disk@one disk": 4, "disk@two disk": 0} {
		text := b.ok(append([]string{"diff", "--json"}, strings.Fields(args)...)...)
		var keys map[string]json.RawMessage
		var found diffFound
		dec := json.NewDecoder(strings.NewReader(text))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&found); err != nil {
			t.Fatalf("%s: %v: %s", args, err, text)
		}
		if err := json.Unmarshal([]byte(text), &keys); err != nil || len(keys) != 6 || len(found.Extents) != n || found.Container != "disk" ||
			*found.From.Snapshot != args[5:8] || (found.To.Snapshot == nil) != strings.HasSuffix(args, " disk") || found.To.Size != size {
			t.Errorf("%s: %v: %s", args, err, text)
		}
		var data, zero int64
		for _, e := range found.Extents {
			switch e.Kind {
			case "data":
				data += e.Length
			case "zero":
				zero += e.Length
			default:
				t.Errorf("%s: kind %q", args, e.Kind)
			}
		}
		if data != found.DataBytes || zero != found.ZeroBytes {
			t.Errorf("%s: %d bytes of data and %d of zeroes: %s", args, data, zero, text)
		}
	}
	end() // a server writes by itself
	before := b.writes()
	b.ok("diff", "disk@one", "disk")
	b.refused([]refusal{
		{2, "disk names no snapshot: expected disk@SNAPSHOT", "disk disk@one"},
		{2, "CONTAINER is missing", "disk@one"},
		{2, "are of two disks", "disk@one other"},
		{2, "snapshot's name", "disk@ disk"},
		{1, "snapshot none: there is no such snapshot", "disk@none disk"},
		{1, "snapshot none: there is no such snapshot", "disk@one disk@none"},
		{1, "old: a disk of version 1 of the format has no snapshots", "old@one old"},
	}, "diff")
	b.unchanged(before)
}

// TestDiffManual holds what the manual says of the JSON against the keys.
func TestDiffManual(t *testing.T) {
	text, err := os.ReadFile("swiftnbd-ctl.pod")
	if err != nil {
		t.Fatal(err)
	}
	documented := func(begin string) (keys []string) {
		_, rest, _ := strings.Cut(string(text), "\n\n"+begin)
		rest, _, _ = strings.Cut(rest, "\n\n")
		for _, m := range regexp.MustCompile(`C<([a-z_]+)>`).FindAllStringSubmatch(rest, -1) {
			if !slices.Contains(keys, m[1]) {
				keys = append(keys, m[1])
			}
		}
		slices.Sort(keys)
		return keys
	}
	var keys []string
	for _, v := range []any{diffFound{}, diffMoment{}, diffExtent{}} {
		for i := range reflect.TypeOf(v).NumField() {
			keys = append(keys, reflect.TypeOf(v).Field(i).Tag.Get("json"))
		}
	}
	keys = append(keys, kindOf(logdisk.Change{}), kindOf(logdisk.Change{Hole: true}))
	slices.Sort(keys)
	if got := documented("C<diff> prints an object"); !slices.Equal(got, keys) {
		t.Errorf("the manual has %q, want %q", got, keys)
	}
}

// TestDiffScribbled holds the changes of some sessions against the bytes.
func TestDiffScribbled(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	const size = 2 << 20
	disk := b.fillLog("disk", size, 2)
	b.ok("snapshot", "disk", "before")
	was := bytes.Clone(disk)
	b.serve("disk", func(d *device.Device) { b.scribble(d, disk) })
	for _, args := range [][]string{{}, {"--exact"}} {
		var found diffFound
		if err := json.Unmarshal([]byte(b.ok(append([]string{"diff", "disk@before", "disk", "--json"}, args...)...)), &found); err != nil {
			t.Fatal(err)
		}
		now := bytes.Clone(was)
		for _, e := range found.Extents {
			part := now[e.Offset:][:e.Length]
			if copy(part, disk[e.Offset:]); e.Kind == "zero" && !zero(part) {
				t.Errorf("%+v is not zeroes", e)
			}
		}
		if !bytes.Equal(now, disk) || len(found.Extents) == 0 {
			t.Errorf("%q: the disk is not what it was with its %d changes", args, len(found.Extents))
		}
	}
}
