// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
)

const scratch = "disk.swiftnbd-bench"

// brief are options with which bench is short: not more than the smallest objects
// for all numbers of connections, and some larger ones.
var brief = []string{"bench", "disk", "--bytes", "40M", "--time", "2"}

// noScratch fails unless the container of bench has gone.
func (b *bench) noScratch() {
	b.Helper()
	if _, err := b.store(scratch).Metadata(b.Context()); !errors.Is(err, store.ErrContainerNotFound) {
		b.Errorf("%s is still there: %v", scratch, err)
	}
}

// scratchIs makes a container with the item, if it is not empty, and an object.
func (b *bench) scratchIs(item string) {
	b.Helper()
	items := map[string]string{}
	if item != "" {
		items[keyBench] = item
	}
	if _, err := b.store(scratch).CreateContainer(b.Context(), items); err != nil {
		b.Fatal(err)
	}
	b.put(scratch, "65536/1/0", []byte("x"))
}

// TestBench: it says before what it costs, costs no more, leaves nothing, and does
// not touch the disk, which is in use.
func TestBench(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "4")
	d, end := b.open("disk")
	defer end()
	_ = d
	var written, requests, others atomic.Int64
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		switch {
		case r.Container == scratch && r.Object != "" && r.Method == http.MethodPut:
			size, _ := strconv.ParseInt(strings.Split(r.Object, "/")[0], 10, 64)
			written.Add(size)
			requests.Add(1)
		case r.Container == scratch && r.Object != "" && r.Method == http.MethodGet:
			requests.Add(1)
		case r.Container == "disk" && r.Method != http.MethodHead && r.Method != http.MethodGet:
			others.Add(1)
		}
		return nil
	})
	r := b.run(append(brief, "--json")...)
	b.swift.SetFault(nil)
	var out benched
	if err := json.Unmarshal([]byte(r.out), &out); err != nil || r.code != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	var most, said int64
	for _, c := range planBench(40<<20, 0) {
		most += int64(c.objects) * c.size
		said += int64(c.objects)
	}
	if want := fmt.Sprintf("This writes up to %s to %s, reads it, and deletes it: up to %d requests, in about 2 seconds.\n", humanSize(most), scratch, 3*said); r.err != want {
		t.Errorf("%q, want %q", r.err, want)
	}
	if n := written.Load(); n != out.Written || n > most || n > 40<<20 || n == 0 || out.Read == 0 || out.Read > out.Written {
		t.Errorf("%d bytes were written; %+v", n, out)
	}
	if n := requests.Load(); n > out.Requests || out.Requests > 3*said {
		t.Errorf("%d requests, %d were counted, and %d announced", n, out.Requests, 3*said)
	}
	if n := others.Load(); n > 2 { // a renewal of the lease
		t.Errorf("%d requests have changed the disk's container", n)
	}
	if len(out.Results) < 8 || out.ObjectSize == nil || out.Connections == nil || out.Log == nil || out.Policy == nil || *out.Policy != "Policy-0" {
		t.Errorf("%s", r.out)
	}
	for _, c := range out.Results {
		if !c.good() || c.Objects < 1 || c.WriteMean == nil || *c.WriteMean <= 0 || c.ReadMean == nil || c.Error != nil {
			t.Errorf("%+v", c)
		}
	}
	b.noScratch()

	r = b.run(brief...)
	if r.code != 0 || !strings.Contains(r.out, "Recommended: setup --object-size ") || !strings.Contains(r.out, "Recommended for version 2, ") || strings.Count(r.out, "\n") != len(out.Results)+3 {
		t.Errorf("%+v", r)
	}
	b.noScratch()
}

// TestBenchNoDisk: it needs no disk, and no container of one.
func TestBenchNoDisk(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	if r := b.run("bench", "disk", "--bytes", "300K", "--time", "1", "--policy", "policy-0"); r.code != 0 || !strings.Contains(r.out, "Recommended: setup --object-size 65536 (64 KiB), connections=") {
		t.Errorf("%+v", r)
	}
	b.noScratch()
	b.fails(1, []string{"disk doesn't exist"}, "info", "disk")
}

// TestBenchStrays: what a killed run has left is emptied and deleted, after its time;
// what somebody else has made is left alone.
func TestBenchStrays(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.scratchIs("host:7 " + itoa(int(time.Now().Add(time.Hour).Unix())))
	said := func(r result) string {
		_, line, _ := strings.Cut(r.err, "\n") // behind what it costs
		return line
	}
	if r := b.run(brief...); r.code != 1 || !strings.HasPrefix(said(r), "swiftnbd-ctl: "+scratch+": host:7 measures, or was killed: try again after ") {
		t.Errorf("%+v", r)
	}
	b.setItem(scratch, keyBench, "")
	if r := b.run(brief...); r.code != 1 || !strings.Contains(said(r), scratch+" holds objects, and no bench of ours has made it: it is left alone") {
		t.Errorf("%+v", r)
	}
	if n := len(b.names(scratch, "")); n != 1 {
		t.Errorf("%d objects", n)
	}
	b.setItem(scratch, keyBench, "host:7 "+itoa(int(time.Now().Add(-time.Second).Unix())))
	b.put(scratch, "something", []byte("x"))
	if r := b.run(brief...); r.code != 0 || said(r) != "swiftnbd-ctl: warning: "+scratch+" was left by a bench that was killed (host:7): it is emptied\n" {
		t.Errorf("%+v", r)
	}
	b.noScratch()
}

// TestBenchInterrupted: nothing is left, at whatever moment it comes.
func TestBenchInterrupted(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	for range 6 {
		ctx, cancel := context.WithCancel(t.Context())
		left := atomic.Int64{}
		left.Store(1 + rand.Int64N(150))
		b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
			if r.Container == scratch && r.Object != "" && left.Add(-1) == 0 {
				cancel()
			}
			return nil
		})
		r := b.runContext(ctx, brief...)
		cancel()
		b.swift.SetFault(nil)
		if r.code != 1 || !strings.HasSuffix(r.err, "\nswiftnbd-ctl: disk: interrupted; what was written is deleted again\n") || r.out != "" {
			t.Errorf("%+v", r)
		}
		b.noScratch()
	}
}

// TestBenchStays: where deleting fails, it says what stays, and the next run has it
// removed at once.
func TestBenchStays(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{Without: []string{"bulk_delete"}}, "disk")
	b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodDelete, Action: devswift.Action{Status: 403}}))
	if r := b.run(brief...); r.code != 1 || !strings.Contains(r.err, "warning: "+scratch+" stays: ") || !strings.Contains(r.err, "the next bench of disk deletes it") {
		t.Errorf("%+v", r)
	}
	b.swift.SetFault(nil)
	if len(b.names(scratch, "")) == 0 {
		t.Error("nothing stays: this tries nothing")
	}
	if r := b.run(brief...); r.code != 0 || !strings.Contains(r.err, "it is emptied") {
		t.Errorf("%+v", r)
	}
	b.noScratch()
}

// TestBenchErrors: failures that may pass are results, and are not recommended;
// others end it, with a line, and nothing is left.
func TestBenchErrors(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Container == scratch && strings.HasPrefix(r.Object, "65536/") && !strings.HasPrefix(r.Object, "65536/16/") && strings.HasSuffix(r.Object, "/0") && r.Method == http.MethodPut {
			return &devswift.Action{Status: 503}
		}
		return nil
	})
	r := b.run("bench", "disk", "--bytes", "6M", "--time", "2", "--json")
	var out benched
	if err := json.Unmarshal([]byte(r.out), &out); err != nil || r.code != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, c := range out.Results {
		if bad := c.Size == 65536 && c.Connections != 16; bad != (c.Errors == 1) || bad != (c.Error != nil) {
			t.Errorf("%+v", c)
		}
	}
	if out.ObjectSize != nil && *out.ObjectSize == 65536 && *out.Connections != 16 {
		t.Errorf("%d connections are recommended, with which there were errors", *out.Connections)
	}
	b.noScratch()
	all := func(r *devswift.Request) *devswift.Action {
		if r.Container == scratch && r.Object != "" && r.Method == http.MethodPut {
			return &devswift.Action{Status: 503}
		}
		return nil
	}
	b.swift.SetFault(all)
	if r := b.run(brief...); r.code != 0 || !strings.Contains(r.out, "The first error, with 64 KiB and 1 connection: ") || !strings.Contains(r.out, "503") || !strings.Contains(r.out, "Nothing is recommended") {
		t.Errorf("%+v", r)
	}
	b.noScratch()
	for status, words := range map[int]string{403: "permission denied", 413: "413"} {
		b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodPut, Prefix: "/v1/AUTH_test/" + scratch + "/", Action: devswift.Action{Status: status}}))
		if r := b.run(brief...); r.code != 1 || !strings.Contains(r.err, words) || r.out != "" {
			t.Errorf("%+v", r)
		}
		b.swift.SetFault(nil)
		b.noScratch()
	}
	// Another object than was written.
	b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodGet, Prefix: "/v1/AUTH_test/" + scratch + "/65536/", Action: devswift.Action{Status: 200, Body: strings.Repeat("y", 65536)}}))
	if r := b.run(brief...); r.code != 1 || !strings.Contains(r.err, "other bytes than were written") {
		t.Errorf("%+v", r)
	}
	b.swift.SetFault(nil)
	b.noScratch()
	b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodPut, Action: devswift.Action{Status: 403}}))
	if r := b.run(brief...); r.code != 1 || !strings.Contains(r.err, "bench needs a container of its own, as a lease does, and these credentials may not create one") {
		t.Errorf("%+v", r)
	}
	b.swift.SetFault(nil)

	for _, c := range []struct {
		code  int
		words string
		args  []string
	}{
		{2, "CONTAINER is missing", nil},
		{2, "--time: must be from 1 to 86400", []string{"disk", "--time", "0"}},
		{2, "--bytes: must be at least 64 KiB", []string{"disk", "--bytes", "1K"}},
		{2, "unknown unit", []string{"disk", "--bytes", "1Q"}},
		{1, "nowhere not found", []string{"nowhere"}},
		{1, "no storage policy tin", []string{"disk", "--policy", "tin"}},
	} {
		b.fails(c.code, []string{c.words}, append([]string{"bench"}, c.args...)...)
	}
	b.writeSecrets("[disk]\nread-only = 1\nusername = test:tester\npassword = testing\nauthurl = " + b.auth + "\n")
	b.fails(1, []string{"disk is read-only in"}, "bench", "disk")
}

// TestBenchPlan: whatever the limits, there are never more bytes than they allow,
// each measurement has an object for each connection, and no more is left out than
// has to be.
func TestBenchPlan(t *testing.T) {
	for range 2000 {
		bytes, most := int64(65536)+rand.Int64N(int64(1)<<(20+rand.IntN(16))), int64(0)
		if rand.IntN(3) == 0 {
			most = 65536 << rand.IntN(8)
		}
		plan := planBench(bytes, most)
		var sum int64
		sizes := map[int64]bool{}
		for i, c := range plan {
			sum += int64(c.objects) * c.size
			sizes[c.size] = true
			if c.objects < c.connections || c.objects > benchMost || most > 0 && c.size > most {
				t.Fatalf("%d bytes: %+v", bytes, c)
			}
			if i > 0 && (plan[i-1].size > c.size || plan[i-1].size == c.size && plan[i-1].connections >= c.connections) {
				t.Fatalf("%d bytes: the order is %+v", bytes, plan)
			}
		}
		if sum > bytes || len(plan) == 0 {
			t.Fatalf("%d bytes: %d in %d measurements", bytes, sum, len(plan))
		}
		if bytes >= 460<<20 && most == 0 && len(plan) != len(benchSizes)*len(benchConnections) {
			t.Fatalf("%d bytes: %d measurements only", bytes, len(plan))
		}
	}
	if plan := planBench(1<<30, 1000); len(plan) != 0 {
		t.Errorf("objects that Swift does not take: %+v", plan)
	}
}

// TestBenchRecommend holds the recommendation against the rule.
func TestBenchRecommend(t *testing.T) {
	at := func(size int64, connections int, write, read float64) benchResult {
		return benchResult{Size: size, Connections: connections, Objects: 1, Write: &write, Read: &read}
	}
	bad := at(1, 1, 1000, 1000)
	bad.Errors = 1
	for name, c := range map[string]struct {
		results []benchResult
		want    int // of the results; -1: none
	}{
		"none":                                 {nil, -1},
		"none without errors":                  {[]benchResult{bad}, -1},
		"the only one":                         {[]benchResult{at(1, 1, 5, 5)}, 0},
		"errors do not count":                  {[]benchResult{bad, at(2, 1, 5, 5)}, 1},
		"small objects are fast enough":        {[]benchResult{at(1, 1, 10, 10), at(1, 4, 80, 80), at(1, 16, 90, 95), at(2, 1, 50, 50), at(2, 4, 100, 100)}, 1},
		"just not fast enough":                 {[]benchResult{at(1, 4, 79, 100), at(2, 4, 100, 100)}, 1},
		"fewest connections of that size":      {[]benchResult{at(1, 1, 85, 85), at(1, 4, 100, 100)}, 0},
		"reading counts as much as writing":    {[]benchResult{at(1, 4, 100, 10), at(2, 4, 90, 90), at(4, 4, 95, 100)}, 1},
		"none has both: the best of the worse": {[]benchResult{at(1, 1, 100, 10), at(1, 4, 10, 100), at(2, 4, 50, 50)}, 2},
	} {
		got := recommend(c.results)
		switch {
		case c.want < 0 && got != nil, c.want >= 0 && (got == nil || got != &c.results[c.want]):
			t.Errorf("%s: %+v", name, got)
		}
	}
	results := []benchResult{at(1, 1, 1, 1), at(4, 1, 1, 1), at(4, 4, 1, 1)}
	if l := largestOf(results); len(l) != 2 || &l[0] != &results[1] || len(largestOf(nil)) != 0 {
		t.Errorf("%+v", l)
	}
}
