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
	client   *prometheus.CounterVec   // container, direction: read, write
	retries  prometheus.Counter
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
		client: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "swiftnbd_client_bytes_total", Help: "Bytes read and written by clients.",
		}, []string{"container", "direction"}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "swiftnbd_retries_total", Help: "Requests to Swift that were tried again.",
		}),
	}
	m.registry.MustRegister(m.requests, m.bytes, m.latency, m.client, m.retries)
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

// Volume counts one volume's clients and watches its cache.
type Volume struct {
	Read, Written atomic.Int64 // bytes of clients' requests

	m         *Metrics
	container string
	cache     *cache.Cache
	descs     []*desc
}

type desc struct {
	d     *prometheus.Desc
	kind  prometheus.ValueType
	value func() float64
}

// Watch begins to show a volume, until Close.
func (m *Metrics) Watch(container string, c *cache.Cache) *Volume {
	v := &Volume{m: m, container: container, cache: c}
	s := c.Stats()
	add := func(kind prometheus.ValueType, name, help string, value func() float64) {
		v.descs = append(v.descs, &desc{prometheus.NewDesc("swiftnbd_"+name, help, nil,
			prometheus.Labels{"container": container}), kind, value})
	}
	counter := func(name, help string, n *atomic.Int64) {
		add(prometheus.CounterValue, name, help, func() float64 { return float64(n.Load()) })
	}
	counter("cache_hits_total", "Pieces of reads that were answered from memory.", &s.Hits)
	counter("cache_misses_total", "Pieces of reads that waited for Swift.", &s.Misses)
	counter("cache_fetches_total", "Reads of Swift by the cache.", &s.Fetches)
	counter("cache_fills_total", "Of them, to complete a chunk before its upload.", &s.Fills)
	counter("cache_readahead_total", "Of them, ahead of a sequential reader.", &s.Ahead)
	counter("cache_uploads_total", "Chunks written to Swift.", &s.Uploads)
	counter("cache_deletes_total", "Chunks deleted in Swift.", &s.Deletes)
	counter("cache_upload_failures_total", "Uploads that failed, to be tried again.", &s.Failures)
	counter("cache_evictions_total", "Clean chunks that made room.", &s.Evicted)
	counter("flushes_total", "Flushes by clients.", &s.Flushes)
	add(prometheus.GaugeValue, "cache_bytes", "Memory in use, clean, dirty and in flight.",
		func() float64 { return float64(c.Used()) })
	add(prometheus.GaugeValue, "cache_dirty_bytes", "Bytes that Swift lacks.",
		func() float64 { n, _ := c.Dirty(); return float64(n) })
	// Two volumes cannot have one container, but one may close late.
	m.registry.Unregister(v)
	if err := m.registry.Register(v); err != nil {
		return v // shown without; counting goes on
	}
	return v
}

// Describe implements prometheus.Collector.
func (v *Volume) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range v.descs {
		ch <- d.d
	}
}

// Collect implements prometheus.Collector.
func (v *Volume) Collect(ch chan<- prometheus.Metric) {
	for _, d := range v.descs {
		ch <- prometheus.MustNewConstMetric(d.d, d.kind, d.value())
	}
	v.flush()
}

// flush brings the clients' bytes into their counters.
func (v *Volume) flush() {
	v.m.client.WithLabelValues(v.container, "read").Add(float64(v.Read.Swap(0)))
	v.m.client.WithLabelValues(v.container, "write").Add(float64(v.Written.Swap(0)))
}

// Close ends what Watch began. The clients' bytes stay counted.
func (v *Volume) Close() {
	v.m.registry.Unregister(v)
	v.flush()
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
