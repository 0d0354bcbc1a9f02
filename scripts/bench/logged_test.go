// SPDX-License-Identifier: MIT

package main

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestCounter counts a container's requests, and those of the second address apart.
func TestCounter(t *testing.T) {
	c := &counter{next: http.NotFoundHandler(), seen: make(map[string]*traffic)}
	ask := func(mark, method, path, body string) {
		c.serve(httptest.NewRecorder(), httptest.NewRequest(method, path, strings.NewReader(body)), mark)
	}
	ask("", "GET", "/auth/v1.0", "")
	ask("", "GET", "/v1/AUTH_test", "")
	ask("", "PUT", "/v1/AUTH_test/one", "")
	ask("", "POST", "/v1/AUTH_test/one", "")
	ask("", "PUT", "/v1/AUTH_test/one/swiftnbd/log/1-1?signature=x", "12345")
	ask("", "PUT", "/v1/AUTH_test/one/swiftnbd/root/1-1", "123")
	ask("", "GET", "/v1/AUTH_test/one/swiftnbd/root/1-1", "")
	ask("", "PUT", "/v1/AUTH_test/one/disk.part/00000000", "1")
	ask("", "PUT", "/v1/AUTH_test/one/other", "1")
	ask(besideMark, "GET", "/v1/AUTH_test/one/swiftnbd/log/1-1", "")
	ask("", "DELETE", "/v1/AUTH_test/two/swiftnbd/log/1-1", "")
	server := httptest.NewServer(c)
	defer server.Close()
	for name, want := range map[string]traffic{
		"one":              {counts{"PUT": 3, "GET": 1}, counts{"PUT": 5, "GET": 1, "POST": 1}, counts{"log": 1, "root": 1}, 9},
		"two":              {counts{"DELETE": 1}, counts{"DELETE": 1}, counts{}, 0},
		besideMark + "one": {counts{"GET": 1}, counts{"GET": 1}, counts{}, 0},
		"three":            {counts{}, counts{}, counts{}, 0},
	} {
		got, err := devTraffic(server.URL, name)
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(got.Requests, want.Requests) || !maps.Equal(got.All, want.All) || !maps.Equal(got.Kinds, want.Kinds) || got.Sent != want.Sent {
			t.Errorf("%s: %v, want %v", name, *got, want)
		}
	}
}

// TestNothingMeasured has the checks of the lines for version 2 refuse runs in which
// what is measured has not happened.
func TestNothingMeasured(t *testing.T) {
	beside := besideRun{took: []float64{1, 2}, seconds: 3, made: counts{"PUT": 2}, reads: 8, theirs: counts{"GET": 8}}
	moments := momentsRun{
		quiet: counts{"log": 1, "run": 1, "root": 1}, busy: counts{"log": 9, "run": 2, "root": 2}, snapshots: 2,
		before: waits{[]float64{1}, []float64{1}}, during: waits{[]float64{1}, []float64{1}},
	}
	pinned := pinnedRun{bytes: 25, cpu: 1}
	database := databaseRun{commits: 1, seconds: 1, flushes: 1, written: 1}
	for name, check := range map[string]func() error{
		"beside":   func() error { return beside.check(8) },
		"alone":    func() error { b := beside; b.reads, b.theirs = 0, nil; return b.check(0) },
		"moments":  moments.check,
		"pinned":   func() error { return pinned.check(100) },
		"database": database.check,
		"printed":  func() error { return byteCount(5).check("diff", 5) },
	} {
		if err := check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, check := range map[string]func() error{
		"no write":                func() error { b := beside; b.took = nil; return b.check(8) },
		"a flush without a PUT":   func() error { b := beside; b.made = counts{"PUT": 1}; return b.check(8) },
		"readers that read not":   func() error { b := beside; b.reads = 7; return b.check(8) },
		"readers from nowhere":    func() error { b := beside; b.theirs = counts{"GET": 7}; return b.check(8) },
		"readers that write":      func() error { b := beside; b.theirs = counts{"GET": 8, "PUT": 1}; return b.check(8) },
		"no snapshot":             func() error { m := moments; m.snapshots = 0; return m.check() },
		"a snapshot of no root":   func() error { m := moments; m.busy = counts{"log": 9, "root": 1}; return m.check() },
		"a snapshot of no flush":  func() error { m := moments; m.quiet = counts{"run": 1, "root": 1}; return m.check() },
		"snapshots, and no write": func() error { m := moments; m.during.writes = nil; return m.check() },
		"snapshots, and no flush": func() error { m := moments; m.before.flushes = nil; return m.check() },
		"nothing collected":       func() error { return pinnedRun{cpu: 1}.check(1) },
		"not collected enough":    func() error { return pinned.check(104) },
		"no commit":               func() error { d := database; d.commits = 0; return d.check() },
		"no flush":                func() error { d := database; d.flushes = 0; return d.check() },
		"nothing printed":         func() error { return byteCount(4).check("diff", 5) },
	} {
		if check() == nil {
			t.Errorf("%s counts as measured", name)
		}
	}
}

// TestParsePgbench reads what pgbench 15 prints.
func TestParsePgbench(t *testing.T) {
	const text = `pgbench (15.14 (Debian 15.14-0+deb12u1))
transaction type: <builtin: TPC-B (sort of)>
scaling factor: 16
query mode: simple
number of clients: 8
number of threads: 2
maximum number of tries: 1
duration: 10 s
number of transactions actually processed: 800
number of failed transactions: 0 (0.000%)
latency average = 99.123 ms
initial connection time = 12.345 ms
tps = 80.000000 (without initial connection time)
`
	if commits, seconds, err := parsePgbench(text); err != nil || commits != 800 || seconds != 10 {
		t.Errorf("%d commits in %g s, %v", commits, seconds, err)
	}
	for _, bad := range []string{
		"", strings.Replace(text, "processed: 800", "processed: 0", 1), strings.Replace(text, "failed transactions: 0", "failed transactions: 3", 1),
		strings.Replace(text, "tps = 80.0", "tps = 0.0", 1),
	} {
		if _, _, err := parsePgbench(bad); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}
