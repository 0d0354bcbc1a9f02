// SPDX-License-Identifier: MIT

package main

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// TestTouched counts chunks by the log filter's lines, as nbdkit 1.32 writes
// them: ends of requests, trims and zeroes do not count.
func TestTouched(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	const text = `2026-11-20 08:29:39.949685 connection=2 Read id=1 offset=0x0 count=0x4000 ...
2026-11-20 08:29:39.949692 connection=2 ...Read id=1 return=0
2026-11-20 08:29:39.949699 connection=2 Write id=2 offset=0xffff count=0x2 fua=0 ...
2026-11-20 08:29:39.949700 connection=3 Write id=7 offset=0x100000 count=0x30000 fua=1 ...
2026-11-20 08:29:39.949701 connection=3 Trim id=8 offset=0x800000 count=0x30000 fua=0 ...
2026-11-20 08:29:39.949702 connection=3 Zero id=9 offset=0x900000 count=0x30000 may_trim=1 fua=0 fast=0 ...
2026-11-20 08:29:39.949820 connection=3 Flush id=1 ...
`
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// Of 4 KiB: 0 to 3; 15 and 16; 256 to 303.
	for size, want := range map[int64]int64{64 << 10: 5, 1 << 20: 2, 4096: 4 + 2 + 48} {
		if got, err := touched(log, size); err != nil || got != want {
			t.Errorf("chunks of %d: %d, %v; want %d", size, got, err, want)
		}
	}
	if err := os.WriteFile(log, []byte("x connection=1 Read id=1 somewhere\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := touched(log, 4096); err == nil {
		t.Error("a line of another form is no error")
	}
}

// TestLogged counts requests in lines as Swift 2.30's proxy writes them, of
// its own API and of s3api.
func TestLogged(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	const text = `proxy-server: 127.0.0.1 127.0.0.1 20/Nov/2026/08/21/38 PUT /v1/AUTH_test/one HTTP/1.0 202 - Go
proxy-server: 127.0.0.1 127.0.0.1 20/Nov/2026/08/21/39 PUT /v1/AUTH_test/one/disk.part/00000011 HTTP/1.0 201 - Go
proxy-server: 127.0.0.1 127.0.0.1 20/Nov/2026/08/21/39 GET /v1/AUTH_test/one/disk.part/00000011 HTTP/1.0 200 - Go
proxy-server: 127.0.0.1 127.0.0.1 20/Nov/2026/08/21/39 PUT /v1/AUTH_test/one2/disk.part/00000011 HTTP/1.0 201 - Go
proxy-server: 127.0.0.1 127.0.0.1 20/Nov/2026/08/21/40 DELETE /bkt/0000002f HTTP/1.0 204 - s3backer
proxy-server: 127.0.0.1 127.0.0.1 20/Nov/2026/08/21/40 HEAD /bkt/s3backer-mounted HTTP/1.0 404 - s3backer
`
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &swiftServer{log: log}
	ours, err := c.counts("one")
	if err != nil || !maps.Equal(ours, counts{"PUT": 1, "GET": 1}) {
		t.Errorf("ours: %v, %v", ours, err)
	}
	theirs, err := c.logged("/bkt/0")
	if err != nil || !maps.Equal(theirs, counts{"DELETE": 1}) {
		t.Errorf("s3backer's: %v, %v", theirs, err)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median(%v) = %g, want %g", c.in, got, c.want)
		}
	}
}

// TestMet holds lower and upper bounds apart.
func TestMet(t *testing.T) {
	for _, c := range []struct {
		r    result
		want string
	}{
		{result{Ratio: 0.96, Target: 0.95, Least: true}, "yes"},
		{result{Ratio: 0.94, Target: 0.95, Least: true}, "NO"},
		{result{Ratio: 1.05, Target: 1.1}, "yes"},
		{result{Ratio: 1.15, Target: 1.1}, "NO"},
		{result{Ratio: 2}, ""},
	} {
		if got := c.r.met(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.r, got, c.want)
		}
	}
}

func TestCountsMinus(t *testing.T) {
	d := counts{"GET": 5, "PUT": 2}.minus(counts{"GET": 3, "PUT": 2})
	if !maps.Equal(d, counts{"GET": 2}) || d.total() != 2 || d.String() != "2 GET" {
		t.Errorf("%v, total %d", map[string]int64(d), d.total())
	}
}
