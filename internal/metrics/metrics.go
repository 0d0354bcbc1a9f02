// SPDX-License-Identifier: MIT

// Package metrics counts what goes between clients, cache and Swift, and shows
// the counts: as Prometheus scrapes them, and as a few lines of text at the
// end. It uses the official Prometheus client library.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"swiftnbd/internal/cache"
	"swiftnbd/internal/store"
)

// Metrics are the counters of one process. All names begin with swiftnbd_.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec   // kind, status
	bytes    *prometheus.CounterVec   // direction: get, put
	latency  *prometheus.HistogramVec // kind; seconds
	retries  prometheus.Counter

	mu      sync.Mutex // guards volumes
	volumes map[string]*Volume
}

// New returns counters that are all zero.
func New() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "swiftnbd_requests_total", Help: "Requests to Swift, by kind and HTTP status (or error).",
		}, []string{"kind", "status"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "swiftnbd_object_bytes_total", Help: "Bytes of objects read from (get) and written to (put) Swift.",
		}, []string{"direction"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "swiftnbd_request_seconds", Help: "Time of requests to Swift, without retries and waiting for a slot.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18), // 0.5 ms .. 65 s
		}, []string{"kind"}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "swiftnbd_retries_total", Help: "Requests to Swift that were tried again.",
		}),
		volumes: make(map[string]*Volume),
	}
	m.registry.MustRegister(m.requests, m.bytes, m.latency, m.retries)
	return m
}

// Store returns s with every request counted. It belongs under Retry.
func (m *Metrics) Store(s store.Store) store.Store {
	return store.Wrap(s, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
		start := time.Now()
		err := call(ctx)
		kind := strings.ReplaceAll(strings.ToLower(string(op.Kind)), " ", "_")
		m.requests.WithLabelValues(kind, status(op, err)).Inc()
		m.latency.WithLabelValues(kind).Observe(time.Since(start).Seconds())
		if err == nil {
			switch op.Kind {
			case store.OpGet:
				m.bytes.WithLabelValues("get").Add(float64(op.Bytes))
			case store.OpPut:
				m.bytes.WithLabelValues("put").Add(float64(op.Bytes))
			}
		}
		return err
	})
}

// status names how a request ended: an HTTP status where there was one.
func status(op store.Op, err error) string {
	var se *store.StatusError
	switch {
	case errors.As(err, &se):
		return strconv.Itoa(se.Code)
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrContainerNotFound):
		return "404"
	case err != nil:
		return "error"
	}
	return "ok"
}

// Retried counts a request that is tried again.
func (m *Metrics) Retried() { m.retries.Inc() }

// Volume counts one volume's clients and watches its cache, for as long as the
// process lives: the volume may close and open again meanwhile.
type Volume struct {
	Read, Written atomic.Int64 // bytes of clients' requests

	m         *Metrics
	container string

	mu    sync.Mutex // guards all below
	cache *cache.Cache
	base  [len(cacheCounters)]float64 // what caches before this one counted
}

// cacheCounters are the cache's counters as they are shown.
var cacheCounters = [...]struct {
	name, help string
	of         func(*cache.Stats) *atomic.Int64
}{
	{"cache_hits_total", "Pieces of reads that were answered from memory.", func(s *cache.Stats) *atomic.Int64 { return &s.Hits }},
	{"cache_misses_total", "Pieces of reads that waited for Swift.", func(s *cache.Stats) *atomic.Int64 { return &s.Misses }},
	{"cache_fetches_total", "Reads of Swift by the cache.", func(s *cache.Stats) *atomic.Int64 { return &s.Fetches }},
	{"cache_fills_total", "Of them, to complete a chunk before its upload.", func(s *cache.Stats) *atomic.Int64 { return &s.Fills }},
	{"cache_readahead_total", "Of them, ahead of a sequential reader.", func(s *cache.Stats) *atomic.Int64 { return &s.Ahead }},
	{"cache_uploads_total", "Chunks written to Swift.", func(s *cache.Stats) *atomic.Int64 { return &s.Uploads }},
	{"cache_deletes_total", "Chunks deleted in Swift.", func(s *cache.Stats) *atomic.Int64 { return &s.Deletes }},
	{"cache_upload_failures_total", "Uploads that failed, to be tried again.", func(s *cache.Stats) *atomic.Int64 { return &s.Failures }},
	{"cache_evictions_total", "Clean chunks that made room.", func(s *cache.Stats) *atomic.Int64 { return &s.Evicted }},
	{"flushes_total", "Flushes by clients, and the last one's own.", func(s *cache.Stats) *atomic.Int64 { return &s.Flushes }},
}

// Watch begins to show a volume that was opened, until Close.
func (m *Metrics) Watch(container string, c *cache.Cache) *Volume {
	m.mu.Lock()
	v := m.volumes[container]
	if v == nil {
		v = &Volume{m: m, container: container}
		m.volumes[container] = v
		m.registry.MustRegister(v)
	}
	m.mu.Unlock()
	v.mu.Lock()
	v.cache = c
	v.mu.Unlock()
	return v
}

func (v *Volume) desc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("swiftnbd_"+name, help, nil, prometheus.Labels{"container": v.container})
}

func (v *Volume) usedDesc() *prometheus.Desc {
	return v.desc("cache_bytes", "Memory in use, clean, dirty and in flight.")
}

// clientDesc is the one whose label is not only the container.
func (v *Volume) clientDesc() *prometheus.Desc {
	return prometheus.NewDesc("swiftnbd_client_bytes_total", "Bytes read and written by clients.",
		[]string{"direction"}, prometheus.Labels{"container": v.container})
}

func (v *Volume) dirtyDesc() *prometheus.Desc {
	return v.desc("cache_dirty_bytes", "Bytes that Swift lacks.")
}

// Describe implements prometheus.Collector.
func (v *Volume) Describe(ch chan<- *prometheus.Desc) {
	for _, k := range cacheCounters {
		ch <- v.desc(k.name, k.help)
	}
	ch <- v.usedDesc()
	ch <- v.dirtyDesc()
	ch <- v.clientDesc()
}

// Collect implements prometheus.Collector.
func (v *Volume) Collect(ch chan<- prometheus.Metric) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var used, dirty int64
	for i, k := range cacheCounters {
		n := v.base[i]
		if v.cache != nil {
			n += float64(k.of(v.cache.Stats()).Load())
		}
		ch <- prometheus.MustNewConstMetric(v.desc(k.name, k.help), prometheus.CounterValue, n)
	}
	if v.cache != nil {
		used = v.cache.Used()
		dirty, _ = v.cache.Dirty()
	}
	ch <- prometheus.MustNewConstMetric(v.usedDesc(), prometheus.GaugeValue, float64(used))
	ch <- prometheus.MustNewConstMetric(v.dirtyDesc(), prometheus.GaugeValue, float64(dirty))
	ch <- prometheus.MustNewConstMetric(v.clientDesc(), prometheus.CounterValue, float64(v.Read.Load()), "read")
	ch <- prometheus.MustNewConstMetric(v.clientDesc(), prometheus.CounterValue, float64(v.Written.Load()), "write")
}

// Close is called when the volume is closed. What was counted stays.
func (v *Volume) Close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.cache == nil {
		return
	}
	for i, k := range cacheCounters {
		v.base[i] += float64(k.of(v.cache.Stats()).Load())
	}
	v.cache = nil
}

// Listen opens what the metrics are served on: "HOST:PORT" or "unix:PATH". A
// socket that is left over from before, with nobody behind it, is replaced.
func Listen(address string) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(address, "unix:")
	if !isUnix {
		return net.Listen("tcp", address)
	}
	l, err := net.Listen("unix", path)
	if err == nil {
		return l, nil
	}
	if info, serr := os.Lstat(path); serr != nil || info.Mode()&os.ModeSocket == 0 {
		return nil, err
	}
	if c, derr := net.DialTimeout("unix", path, time.Second); derr == nil {
		c.Close()
		return nil, err
	}
	if rerr := os.Remove(path); rerr != nil {
		return nil, err
	}
	return net.Listen("unix", path)
}

// Serve answers GET /metrics on l until l is closed.
func (m *Metrics) Serve(l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	if err := s.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Summary writes the counts, a line each, as Prometheus names them, with the
// requests that a MiB of clients' data cost at the end.
func (m *Metrics) Summary(w io.Writer) error {
	families, err := m.registry.Gather()
	if err != nil {
		return err
	}
	var requests, bytes float64
	for _, f := range families {
		for _, x := range f.GetMetric() {
			var labels []string
			for _, l := range x.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			value := x.GetCounter().GetValue() + x.GetGauge().GetValue()
			if h := x.GetHistogram(); h != nil {
				n := float64(h.GetSampleCount())
				if n > 0 {
					fmt.Fprintf(w, "%s{%s} n=%.0f mean=%.4fs\n", f.GetName(), strings.Join(labels, ","), n, h.GetSampleSum()/n)
				}
				continue
			}
			switch f.GetName() {
			case "swiftnbd_requests_total":
				requests += value
			case "swiftnbd_client_bytes_total":
				bytes += value
			}
			if value != 0 {
				fmt.Fprintf(w, "%s{%s} %.0f\n", f.GetName(), strings.Join(labels, ","), value)
			}
		}
	}
	if bytes > 0 {
		_, err = fmt.Fprintf(w, "swiftnbd: %.2f requests to Swift for each MiB of clients' data\n", requests/(bytes/(1<<20)))
	}
	return err
}
