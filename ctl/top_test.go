// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"math"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/metrics"
)

// sampled is what the counters say in a text, some seconds after the beginning.
func sampled(t *testing.T, seconds float64, text string) sample {
	t.Helper()
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return sample{time.Unix(1_700_000_000, 0).Add(time.Duration(seconds * float64(time.Second))), families}
}

const topBefore = `# TYPE swiftnbd_requests_total counter
swiftnbd_requests_total{kind="get",status="ok"} 100
swiftnbd_requests_total{kind="get",status="404"} 10
swiftnbd_requests_total{kind="put",status="503"} 1
# TYPE swiftnbd_request_seconds histogram
swiftnbd_request_seconds_bucket{kind="get",le="0.1"} 50
swiftnbd_request_seconds_bucket{kind="get",le="0.2"} 100
swiftnbd_request_seconds_bucket{kind="get",le="+Inf"} 110
swiftnbd_request_seconds_sum{kind="get"} 20
swiftnbd_request_seconds_count{kind="get"} 110
# TYPE swiftnbd_object_bytes_total counter
swiftnbd_object_bytes_total{direction="get"} 1000
# TYPE swiftnbd_retries_total counter
swiftnbd_retries_total 5
# TYPE swiftnbd_cache_bytes gauge
swiftnbd_cache_bytes{container="b"} 77
swiftnbd_cache_bytes{container="a"} 100
# TYPE swiftnbd_cache_dirty_bytes gauge
swiftnbd_cache_dirty_bytes{container="a"} 50
# TYPE swiftnbd_cache_dirty_age_seconds gauge
swiftnbd_cache_dirty_age_seconds{container="a"} 1
# TYPE swiftnbd_client_bytes_total counter
swiftnbd_client_bytes_total{container="a",direction="read"} 0
swiftnbd_client_bytes_total{container="a",direction="write"} 5
swiftnbd_client_bytes_total{container="b",direction="read"} 9
# TYPE swiftnbd_client_request_seconds histogram
swiftnbd_client_request_seconds_bucket{container="a",kind="read",le="0.001"} 0
swiftnbd_client_request_seconds_bucket{container="a",kind="read",le="0.002"} 0
swiftnbd_client_request_seconds_bucket{container="a",kind="read",le="+Inf"} 0
swiftnbd_client_request_seconds_sum{container="a",kind="read"} 0
swiftnbd_client_request_seconds_count{container="a",kind="read"} 0
# TYPE swiftnbd_client_errors_total counter
swiftnbd_client_errors_total{container="a",kind="read"} 3
swiftnbd_client_errors_total{container="a",kind="write"} 0
# TYPE swiftnbd_cache_hits_total counter
swiftnbd_cache_hits_total{container="a"} 10
# TYPE swiftnbd_cache_misses_total counter
swiftnbd_cache_misses_total{container="a"} 10
`

// topAfter is topBefore two seconds later.
var topAfter = strings.NewReplacer(
	`{kind="get",status="ok"} 100`, `{kind="get",status="ok"} 104`, `{kind="get",status="404"} 10`, `{kind="get",status="404"} 14`,
	`{kind="put",status="503"} 1`, `{kind="put",status="503"} 3`,
	`{kind="get",le="0.1"} 50`, `{kind="get",le="0.1"} 54`, `{kind="get",le="0.2"} 100`, `{kind="get",le="0.2"} 108`, `{kind="get",le="+Inf"} 110`, `{kind="get",le="+Inf"} 118`,
	`request_seconds_sum{kind="get"} 20`, `request_seconds_sum{kind="get"} 20.8`, `request_seconds_count{kind="get"} 110`, `request_seconds_count{kind="get"} 118`,
	`direction="get"} 1000`, `direction="get"} 3000`, "retries_total 5", "retries_total 6",
	`cache_bytes{container="a"} 100`, `cache_bytes{container="a"} 60`, `dirty_bytes{container="a"} 50`, `dirty_bytes{container="a"} 40`, `seconds{container="a"} 1`, `seconds{container="a"} 3.5`,
	`{container="a",direction="read"} 0`, `{container="a",direction="read"} 8192`,
	`kind="read",le="0.002"} 0`, `kind="read",le="0.002"} 9`, `kind="read",le="+Inf"} 0`, `kind="read",le="+Inf"} 10`,
	`sum{container="a",kind="read"} 0`, `sum{container="a",kind="read"} 0.05`, `count{container="a",kind="read"} 0`, `count{container="a",kind="read"} 10`,
	`errors_total{container="a",kind="read"} 3`, `errors_total{container="a",kind="read"} 4`,
	`hits_total{container="a"} 10`, `hits_total{container="a"} 13`, `misses_total{container="a"} 10`, `misses_total{container="a"} 11`,
).Replace(topBefore)

// TestTopInterval computes what happened in an interval.
func TestTopInterval(t *testing.T) {
	i := interval(sampled(t, 0, topBefore), sampled(t, 2, topAfter))
	near := func(what string, got *float64, want float64) {
		t.Helper()
		if got == nil || math.Abs(*got-want) > 1e-9 {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	s := &i.Swift
	near("seconds", &i.Seconds, 2)
	near("requests", &s.Requests, 5)
	near("errors", &s.Errors, 1) // a 404 is none
	near("retries", &s.Retries, 0.5)
	near("gets", &s.Gets, 4)
	near("GET's mean", s.GetMean, 0.1)
	near("GET's 99 %", s.GetMost, 0.1+0.1*(7.92-4)/4)
	near("bytes of GETs", &s.GetBytes, 1000)
	if s.PutMean != nil || s.PutMost != nil || s.Puts != 0 {
		t.Errorf("PUTs without a time: %+v", s)
	}
	if len(i.Disks) != 2 || i.Disks[0].Container != "a" || i.Disks[1].Container != "b" {
		t.Fatalf("%+v", i.Disks)
	}
	d := i.Disks[0]
	near("reads", &d.Reads, 5)
	near("bytes of reads", &d.ReadBytes, 4096)
	near("a read's mean", d.ReadMean, 0.005)
	near("a read's 99 %", d.ReadMost, 0.002) // above the last bound
	near("errors", &d.Errors, 0.5)
	near("hits", d.Hits, 0.75)
	near("cache", &d.Cache, 60)
	near("dirty", &d.Dirty, 40)
	near("age", &d.Age, 3.5)
	if d.WriteMean != nil || d.Writes != 0 || d.WriteBytes != 0 {
		t.Errorf("writes: %+v", d)
	}
	if b := i.Disks[1]; b.Cache != 77 || b.Hits != nil || b.Reads != 0 || b.ReadMean != nil {
		t.Errorf("the other disk: %+v", b)
	}

	if restarted(sampled(t, 0, topBefore), sampled(t, 2, topAfter)) || !restarted(sampled(t, 0, topAfter), sampled(t, 2, topBefore)) {
		t.Error("a new process is not told by counters that become smaller")
	}
	// A gauge may become smaller.
	if restarted(sampled(t, 0, topBefore), sampled(t, 2, strings.Replace(topBefore, `cache_bytes{container="a"} 100`, `cache_bytes{container="a"} 1`, 1))) {
		t.Error("a smaller cache is taken for a new process")
	}

	table := i.table()
	if len(table) != 3 || !strings.HasPrefix(table[0], "DISK READ/s") || !strings.Contains(table[1], " 75% ") || strings.Contains(table[2], "%") {
		t.Errorf("%q", table)
	}
	for _, row := range table {
		if len(row) != len(table[0]) {
			t.Errorf("the columns are not aligned: %q", table)
		}
	}
	if line := i.line(); !strings.Contains(line, " read 5.0/s 4.0KB/s ") || !strings.Contains(line, " cache 137B dirty 40B age 3.5s ") || !strings.HasSuffix(line, " errors 1.0/s") {
		t.Errorf("%q", line)
	}
}

// TestTopNumbers are numbers at the edges.
func TestTopNumbers(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0", 0.04: "0.0", 9.94: "9.9", 9.96: "10", 99_999: "99999", 100_000: "100k"} {
		if got := topRate(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
	for v, want := range map[float64]string{0: "0", 1023: "1023", 1024: "1.0K", 10240: "10K", 1 << 20: "1.0M", 1<<20 - 1: "1.0M", 1000 << 10: "1000K", 5 << 40: "5.0T", 1 << 62: "4.0E"} {
		if got := topBytes(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
	for v, want := range map[float64]string{0: "0", 4.2e-6: "4.2us", 99.6e-6: "100us", 0.0012: "1.2ms", 0.0999: "100ms", 0.9996: "1.0s", 65: "65s", 3600: "60m"} {
		if got := topTime(&v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
	if topTime(nil) != "-" || topPart(nil) != "-" || topPart(ptr(0.9999)) != "99%" || topPart(ptr(1.)) != "100%" {
		t.Error("parts")
	}
}

// counted is a process with counters on a Unix socket.
func counted(t *testing.T) (m *metrics.Metrics, address string, end func()) {
	t.Helper()
	m, address = metrics.New(), "unix:"+filepath.Join(t.TempDir(), "s")
	l, err := metrics.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	go m.Serve(l)
	return m, address, func() { l.Close() }
}

// TestTopPipe: a line for each interval, or an object; --once is one.
func TestTopPipe(t *testing.T) {
	t.Parallel()
	m, address, end := counted(t)
	m.Watch("disk\x1b[2J", func() metrics.Counts { return metrics.Counts{Used: 1 << 20, Dirty: 4096, DirtyAge: 90 * time.Second} })
	top := func(args ...string) result {
		var out, errs strings.Builder
		code := quick.run(t.Context(), append([]string{"top", address, "--interval", "0.1"}, args...), strings.NewReader(""), &out, &errs, func(string) string { return "" })
		return result{code, out.String(), errs.String()}
	}
	r := top("--once")
	if r.code != 0 || r.err != "" || !strings.Contains(r.out, "DISK") || !strings.Contains(r.out, " 1.0M ") || !strings.Contains(r.out, " 90s ") || strings.Contains(r.out, "\x1b") {
		t.Errorf("%+v", r)
	}
	r = top("--once", "--json")
	var one topped
	if err := json.Unmarshal([]byte(r.out), &one); err != nil || r.code != 0 || len(one.Disks) != 1 || one.Disks[0].Dirty != 4096 || one.Disks[0].Age != 90 || one.Seconds < 0.1 || strings.Count(r.out, "\n") != 1 {
		t.Errorf("%+v, %v", r, err)
	}

	for _, args := range [][]string{{}, {"--json"}} {
		ctx, cancel := context.WithCancel(t.Context())
		in, out := io.Pipe()
		var errs strings.Builder
		done := make(chan int, 1)
		go func() {
			done <- quick.run(ctx, append([]string{"top", address, "--interval", "0.1"}, args...), strings.NewReader(""), out, &errs, func(string) string { return "" })
			out.Close()
		}()
		lines := bufio.NewScanner(in)
		for range 3 {
			if !lines.Scan() || len(args) == 0 && !strings.Contains(lines.Text(), " dirty 4.0KB age 90s ") || len(args) > 0 && !json.Valid(lines.Bytes()) {
				t.Fatalf("%q: %q", args, lines.Text())
			}
		}
		cancel()
		for lines.Scan() {
		}
		if code := <-done; code != 0 || errs.String() != "" {
			t.Errorf("%q: after an interrupt the exit status is %d, %s", args, code, errs.String())
		}
	}

	// nbdkit ends: there is nobody to ask any more.
	in, out := io.Pipe()
	var errs strings.Builder
	done := make(chan int, 1)
	go func() {
		done <- quick.run(t.Context(), []string{"top", address, "--interval", "0.1"}, strings.NewReader(""), out, &errs, func(string) string { return "" })
		out.Close()
	}()
	lines := bufio.NewScanner(in)
	lines.Scan()
	end()
	for lines.Scan() {
	}
	if code := <-done; code != 1 || !strings.HasPrefix(errs.String(), "swiftnbd-ctl: "+address+": no counters: ") {
		t.Errorf("exit status %d, %s", code, errs.String())
	}
}

// TestTopRefused: one line says what is wrong.
func TestTopRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{})
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go http.Serve(other, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "swiftnbd" {
			t.Errorf("asked for %s", r.Host)
		}
		_, _ = io.WriteString(w, "go_goroutines 5\n")
	}))
	address := other.Addr().String()
	for _, c := range []struct {
		code  int
		words []string
		args  []string
	}{
		{2, []string{"ADDRESS is missing"}, nil},
		{2, []string{`"nonsense" is no address of counters`, "unix:PATH or HOST:PORT"}, []string{"nonsense"}},
		{2, []string{"no address"}, []string{"127.0.0.1:"}},
		{2, []string{"the socket's path is missing"}, []string{"unix:"}},
		{2, []string{"--interval", "from 0.1 to 86400"}, []string{address, "--interval", "0"}},
		{2, []string{"--interval", "from 0.1 to 86400"}, []string{address, "--interval", "NaN"}},
		{2, []string{"invalid argument"}, []string{address, "--interval", "soon"}},
		{1, []string{"unix:/nonexistent/s: no counters: ", "no such file"}, []string{"unix:/nonexistent/s", "--once"}},
		{1, []string{address + ": no counters: what answers there is no nbdkit with swiftnbd's plugin"}, []string{address, "--once"}},
	} {
		b.fails(c.code, c.words, append([]string{"top"}, c.args...)...)
	}
	if !slices.Contains(b.completions("top", ""), "unix:") {
		t.Errorf("completions: %q", b.completions("top", ""))
	}
}

// completions are the completions of the last word.
func (b *bench) completions(args ...string) []string {
	b.Helper()
	r := b.run(append([]string{"__complete"}, args...)...)
	return strings.Split(r.out, "\n")
}
