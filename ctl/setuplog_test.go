// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/volume"
)

// changes says whether a request changes something, logins aside.
func changes(r *devswift.Request) bool {
	return r.Method == http.MethodPut || r.Method == http.MethodPost || r.Method == http.MethodDelete
}

// TestSetupLog sets disks of version 2 up, and has what they cannot be refused.
func TestSetupLog(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "small", "full", "first", "locked", "empty")
	if out := b.ok("setup", "disk", "--size", "10T", "--format", "2"); out != "disk doesn't exist, will be created\nDone, disk: version 2, 10 TiB\n" {
		t.Errorf("%q", out)
	}
	if n := b.writes(); n > 6 {
		t.Errorf("setup made %d requests that change something", n)
	}
	if out := b.ok("setup", "small", "--size", "5000", "--format=2"); !strings.Contains(out, "rounded up to 8192 bytes") {
		t.Errorf("%q", out)
	}
	b.ok("setup", "first", "16", "--format", "1")
	b.create("full", "empty", "locked")
	b.setItem("locked", volume.KeyClient, "host:1@1000000000")
	b.put("full", "holiday.jpg", []byte("x"))
	before, items := b.writes(), b.items("disk")
	b.refused([]refusal{
		{2, "--format|1 or 2", "setup new --size 1G --format 3"},
		{2, "CONTAINER is missing", "setup --format 2 --size 1G"},
		{2, "--size is missing", "setup disk --format 2"},
		{2, `"16"|--size`, "setup disk 16 --format 2"},
		{2, "--object-size", "setup disk --size 1G --object-size 1M --format 2"},
		{2, "no bytes", "setup disk --size 0 --format 2"},
		{1, "disk has already been setup (version 2, 10 TiB)", "setup disk --size 1G --format 2"},
		{1, "disk has already been setup|--force does not change that", "setup disk --size 1G --format 2 -f"},
		{1, "first has already been setup (version 1, 1 MiB)|--force does not change that", "setup first --size 1G --format 2 -f"},
		{1, "version 2 of the format", "setup disk 16 -f"},
		{1, "full holds objects, such as holiday.jpg", "setup full --size 1G --format 2"},
		{1, "full holds objects, such as holiday.jpg|--force does not", "setup full --size 1G --format 2 -f"},
		{1, "locked is locked by host:1|unlock it first", "setup locked --size 1G --format 2 -f"},
	})
	if got := b.writes(); got != before || !maps.Equal(b.items("disk"), items) {
		t.Errorf("%d requests changed something", got-before)
	}
	b.ok("setup", "empty", "--size", "1G", "--format", "2")

	// Every disk opens.
	for _, name := range []string{"disk", "small", "empty"} {
		b.serve(name, nil)
	}
}

// TestSetupLogNeedsALease has credentials refused that may not create containers.
func TestSetupLogNeedsALease(t *testing.T) {
	t.Parallel()
	for _, exists := range []bool{false, true} {
		b := newBench(t, devswift.Options{}, "disk")
		if exists {
			b.create("disk")
		}
		b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
			if r.Method == http.MethodPut && strings.Count(r.Path, "/") == 3 && !strings.HasSuffix(r.Path, "/disk") {
				return &devswift.Action{Status: http.StatusForbidden}
			}
			return nil
		})
		b.fails(1, []string{"disk: a disk of version 2 needs a lease", "may not create containers"}, "setup", "disk", "--size", "1G", "--format", "2")
		if exists {
			if items := b.items("disk"); len(items) != 0 {
				t.Errorf("the container has %v", items)
			}
		} else {
			b.gone("disk")
		}
	}
}

// TestSetupInterrupted interrupts setup at each request that changes something, before
// it and after it, of a new container and of an empty one. It can be repeated, with
// another size.
func TestSetupInterrupted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		format string
		exists bool
		least  int // interruptions
	}{{"1", false, 4}, {"1", true, 6}, {"2", false, 8}, {"2", true, 8}} {
		interrupted := 0
		for _, after := range []bool{false, true} {
			for at := int64(1); ; at++ {
				b := newBench(t, devswift.Options{}, "disk")
				b.pace.setup = 5 * time.Millisecond
				if c.exists {
					b.create("disk")
				}
				ctx, cancel := context.WithCancel(t.Context())
				var seen atomic.Int64
				b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
					if !changes(r) || seen.Add(1) != at {
						return nil
					}
					cancel()
					return &devswift.Action{Status: http.StatusServiceUnavailable, After: after}
				})
				r := b.runContext(ctx, "setup", "disk", "--size", "1G", "--format", c.format)
				cancel()
				b.swift.SetFault(nil)
				if seen.Load() < at {
					if r.code != 0 {
						t.Fatalf("%+v, uninterrupted: %+v", c, r)
					}
					break
				}
				interrupted++
				// The last request gives the turn up: the disk is there by then.
				if (r.code != 1 || !strings.Contains(r.err, "disk: interrupted")) && (r.code != 0 || b.items("disk")[volume.KeyVersion] != c.format) {
					t.Errorf("%+v, request %d: %+v", c, at, r)
				}
				again := b.run("setup", "disk", "--size", "2G", "--format", c.format)
				switch {
				case again.code == 0:
					b.serve("disk", nil)
					if out := b.ok("list"); !strings.Contains(out, "2 GiB") {
						t.Errorf("%+v, request %d: %s", c, at, out)
					}
					b.gone(lease.ContainerName("disk", 0))
				case after && strings.Contains(again.err, "disk has already been setup"), r.code == 0:
					b.serve("disk", nil) // only the answer was lost
					if out := b.ok("list"); !strings.Contains(out, "1 GiB") {
						t.Errorf("%+v, request %d: %s", c, at, out)
					}
				default:
					t.Errorf("%+v, request %d, after %v: %+v", c, at, after, again)
				}
			}
		}
		if interrupted < c.least {
			t.Errorf("%+v: interrupted %d times only", c, interrupted)
		}
	}
}

// TestSetupTwice has several operators set up one container at the same moment, each
// with another size, where it is not there, and where it is there and empty. One of them
// does it, and the others are told that it is done.
func TestSetupTwice(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		exists  bool
		formats [3]string
	}{
		{false, [3]string{"1", "1", "1"}}, {false, [3]string{"2", "2", "2"}}, {false, [3]string{"1", "2", "1"}},
		{true, [3]string{"1", "1", "1"}}, {true, [3]string{"2", "2", "2"}}, {true, [3]string{"2", "1", "2"}},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{Latency: time.Millisecond}, "disk")
			b.pace.setup = 500 * time.Millisecond
			if c.exists {
				b.create("disk")
			}
			var g sync.WaitGroup
			results := make([]result, len(c.formats))
			for i, format := range c.formats {
				g.Go(func() { results[i] = b.run("setup", "disk", "--size", itoa(i+1)+"G", "--format", format) })
			}
			g.Wait()
			made := 0
			for i, r := range results {
				switch {
				case r.code == 0:
					made++
					if out := b.ok("list"); !strings.Contains(out, itoa(i+1)+" GiB") {
						t.Errorf("%s, of %q", out, r.out)
					}
				case r.code != 1 || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, "disk has already been setup") && !strings.Contains(r.err, "disk has version 2 of the format"):
					t.Errorf("%+v", r)
				}
			}
			if made != 1 {
				t.Errorf("%d of them have made it", made)
			}
			b.serve("disk", nil)
		})
	}
}

// TestSetupTurn has who died while it was their turn keep nobody from it, and counts
// what the turn costs: nothing where Swift creates the container for version 1.
func TestSetupTurn(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		format string
		exists bool
		left   bool
		most   int // requests that change something
	}{
		{"1", false, false, 2}, {"1", true, false, 3}, {"1", true, true, 3},
		{"2", false, false, 5}, {"2", true, false, 4}, {"2", false, true, 5}, {"2", true, true, 4},
	} {
		b := newBench(t, devswift.Options{}, "disk")
		turn := lease.ContainerName("disk", 0)
		if c.exists {
			b.create("disk")
		}
		if c.left {
			b.create(turn)
		}
		before, began := b.writes(), time.Now()
		b.ok("setup", "disk", "--size", "1G", "--format", c.format)
		if n := b.writes() - before; n > c.most {
			t.Errorf("%+v: %d requests changed something", c, n)
		}
		if took := time.Since(began); c.left && c.exists && took < 3*b.pace.setup {
			t.Errorf("%+v: it waited for %v only", c, took)
		}
		b.gone(turn)
		b.serve("disk", nil)
	}
}

// TestSetupOddNames: names of objects that others have written are in one line.
func TestSetupOddNames(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--format", "2", "--size", "1M"}, {"16"}} {
		b := newBench(t, devswift.Options{}, "disk")
		b.create("disk")
		b.put("disk", "a\nb\x1b[31m", nil)
		r := b.run(append([]string{"setup", "disk"}, args...)...)
		if r.code != 1 || strings.Count(r.err, "\n") != 1 || strings.Contains(r.err, "\x1b") || !strings.Contains(r.err, "holds objects, such as ") {
			t.Errorf("%q: %+v", args, r)
		}
	}
}
