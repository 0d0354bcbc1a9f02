// SPDX-License-Identifier: MIT

package metrics

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/cache"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// holes is a volume of nothing.
type holes struct{}

func (holes) Hole(geometry.ChunkIndex) bool { return true }
func (holes) Read(context.Context, geometry.ChunkIndex, int64, []byte) (bool, error) {
	return true, nil
}
func (holes) Write(context.Context, geometry.ChunkIndex, []byte) error  { return nil }
func (holes) Delete(context.Context, geometry.ChunkIndex) error         { return nil }
func (holes) Probe(context.Context, geometry.ChunkIndex) (bool, error)  { return true, nil }
func (holes) Holes(_ geometry.ChunkIndex, n int64) int64                { return n }
func (holes) Listed(context.Context, geometry.ChunkIndex) (bool, error) { return false, nil }

func newCache(t *testing.T) *cache.Cache {
	geo, err := geometry.New(4096, 16)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.New(holes{}, geo, cache.Options{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// counts reads c's counters.
func counts(c *cache.Cache) func() Counts {
	return func() Counts {
		s := c.Stats()
		return Counts{
			Hits: s.Hits.Load(), Misses: s.Misses.Load(), Fetches: s.Fetches.Load(), Fills: s.Fills.Load(), Ahead: s.Ahead.Load(),
			Uploads: s.Uploads.Load(), Deletes: s.Deletes.Load(), Failures: s.Failures.Load(), Evicted: s.Evicted.Load(), Flushes: s.Flushes.Load(),
			Used: c.Used(), Dirty: c.DirtyMemory(), FlushTime: c.FlushTime(),
		}
	}
}

func summary(t *testing.T, m *Metrics) string {
	var b strings.Builder
	if err := m.Summary(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func wantLine(t *testing.T, text, line string) {
	t.Helper()
	for l := range strings.Lines(text) {
		if strings.TrimSpace(l) == line {
			return
		}
	}
	t.Errorf("no line %q in\n%s", line, text)
}

// TestRequests counts requests by kind and end, and what a MiB costs.
func TestRequests(t *testing.T) {
	m := New()
	s := m.Store(mem.New())
	ctx := context.Background()
	if _, err := s.CreateContainer(ctx, nil); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 1000)
	if err := s.Put(ctx, "a", data, "ede3d3b685b4e137ba4cb2521329a75e"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := s.Get(ctx, "a", make([]byte, 400), store.GetOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Get(ctx, "b", make([]byte, 1), store.GetOptions{}); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	v := m.Watch("box", counts(newCache(t)))
	v.Read.Add(1 << 20)
	v.Written.Add(2 << 20)
	text := summary(t, m)
	wantLine(t, text, "swiftnbd_requests_total{kind=get,status=ok} 3")
	wantLine(t, text, "swiftnbd_requests_total{kind=get,status=404} 1")
	wantLine(t, text, "swiftnbd_requests_total{kind=put,status=ok} 1")
	wantLine(t, text, "swiftnbd_object_bytes_total{direction=get} 1200")
	wantLine(t, text, "swiftnbd_object_bytes_total{direction=put} 1000")
	wantLine(t, text, "swiftnbd_client_bytes_total{container=box,direction=write} 2097152")
	wantLine(t, text, "swiftnbd: 2.00 requests to Swift for each MiB of clients' data")
}

// TestLog shows how a log is used, of a disk that has one: as gauges while it is
// open, and what was written to it for ever.
func TestLog(t *testing.T) {
	m := New()
	v := m.Watch("box", func() Counts {
		return Counts{Logged: true, Objects: 7, Stored: 8200, Live: 4096, Garbage: 4100, Log: 3, ByClients: 10, ByCollector: 20, ByMap: 30, CompressFrom: 50, CompressTo: 40, DirtyAge: 1500 * time.Millisecond}
	})
	m.Watch("chunks", func() Counts { return Counts{Hits: 1} })
	text := summary(t, m)
	for _, line := range []string{
		"swiftnbd_log_objects{container=box} 7",
		"swiftnbd_log_bytes{container=box} 8200",
		"swiftnbd_log_live_bytes{container=box} 4096",
		"swiftnbd_log_garbage_bytes{container=box} 4100",
		"swiftnbd_log_use_ratio{container=box} 0.5",
		"swiftnbd_log_amplification_ratio{container=box} 2.001953125",
		"swiftnbd_log_length_objects{container=box} 3",
		"swiftnbd_cache_dirty_age_seconds{container=box} 1.5",
		"swiftnbd_log_written_bytes_total{by=clients,container=box} 10",
		"swiftnbd_log_written_bytes_total{by=collector,container=box} 20",
		"swiftnbd_log_written_bytes_total{by=map,container=box} 30",
		"swiftnbd_log_compressed_bytes_total{container=box,when=before} 50",
		"swiftnbd_log_compressed_bytes_total{container=box,when=after} 40",
	} {
		wantLine(t, text, line)
	}
	if strings.Contains(text, "log_bytes{container=chunks}") || strings.Contains(text, "log_written_bytes_total{by=map,container=chunks}") {
		t.Errorf("a disk without a log has one:\n%s", text)
	}
	v.Close()
	if text = summary(t, m); strings.Contains(text, "swiftnbd_log_bytes") {
		t.Errorf("the log of a disk that is closed is shown:\n%s", text)
	}
	wantLine(t, text, "swiftnbd_log_written_bytes_total{by=map,container=box} 30")
	m.Watch("box", func() Counts { return Counts{Logged: true, ByMap: 2} })
	text = summary(t, m)
	wantLine(t, text, "swiftnbd_log_written_bytes_total{by=map,container=box} 32")
	wantLine(t, text, "swiftnbd_log_use_ratio{container=box} 1")
}

// TestReopened goes on counting when a volume is closed and opened again.
func TestReopened(t *testing.T) {
	m := New()
	for n := range 3 {
		c := newCache(t)
		v := m.Watch("box", counts(c))
		if err := c.Write(context.Background(), []byte("x"), 0); err != nil {
			t.Fatal(err)
		}
		if err := c.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
		want := "swiftnbd_cache_uploads_total{container=box} " + string(rune('1'+n))
		wantLine(t, summary(t, m), want)
		v.Close()
		v.Close()
		wantLine(t, summary(t, m), want)
	}
}

// TestServe serves on a socket, also where an old one was left behind.
func TestServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:" + path); err == nil {
		t.Error("took a socket that somebody listens on")
	}
	old.(*net.UnixListener).SetUnlinkOnClose(false)
	old.Close()
	l, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	m := New()
	m.Watch("box", counts(newCache(t)))
	m.Retried()
	done := make(chan error)
	go func() { done <- m.Serve(l) }()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	resp, err := client.Get("http://x/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp.Status, err)
	}
	wantLine(t, string(body), "swiftnbd_retries_total 1")
	wantLine(t, string(body), `swiftnbd_cache_dirty_bytes{container="box"} 0`)
	l.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestClients counts clients' requests by disk and kind, with their time and their
// failures. A disk shows all kinds from the beginning: a rate needs a first value.
func TestClients(t *testing.T) {
	m := New()
	v := m.Watch("box", func() Counts { return Counts{} })
	wantLine(t, exposed(t, m), `swiftnbd_client_request_seconds_count{container="box",kind="zero"} 0`)
	wantLine(t, exposed(t, m), `swiftnbd_client_errors_total{container="box",kind="read"} 0`)
	begun := time.Now().Add(-3 * time.Second)
	v.Took(Read, begun, nil)
	v.Took(Read, begun, io.EOF)
	m.Watch("other", func() Counts { return Counts{} }).Took(Write, begun, nil)
	text := exposed(t, m)
	for _, line := range []string{
		`swiftnbd_client_request_seconds_count{container="box",kind="read"} 2`,
		`swiftnbd_client_request_seconds_bucket{container="box",kind="read",le="2.62144"} 0`,
		`swiftnbd_client_request_seconds_bucket{container="box",kind="read",le="41.94304"} 2`,
		`swiftnbd_client_request_seconds_count{container="box",kind="write"} 0`,
		`swiftnbd_client_request_seconds_count{container="other",kind="write"} 1`,
		`swiftnbd_client_errors_total{container="box",kind="read"} 1`,
		`swiftnbd_client_errors_total{container="other",kind="write"} 0`,
	} {
		wantLine(t, text, line)
	}
}

// exposed returns what Prometheus gets.
func exposed(t *testing.T, m *Metrics) string {
	t.Helper()
	l, err := Listen("unix:" + filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go m.Serve(l)
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", l.Addr().String())
	}}}
	answer, err := c.Get("http://swiftnbd/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
