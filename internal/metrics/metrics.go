// SPDX-License-Identifier: MIT

// Package metrics counts the traffic between clients, cache and Swift. It shows
// the counts in two ways: to Prometheus, and as a few lines of text at the end.
// It uses the official Prometheus client library.
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

	"swiftnbd/internal/store"
)

// Metrics are the counters of one process. All names begin with swiftnbd_.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec   // kind, status
	bytes    *prometheus.CounterVec   // direction: get, put
	latency  *prometheus.HistogramVec // kind; seconds
	retries  prometheus.Counter
	clients  *prometheus.HistogramVec // container, kind; seconds
	failures *prometheus.CounterVec   // container, kind

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
		clients: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "swiftnbd_client_request_seconds", Help: "Time of clients' requests, those that failed too.",
			Buckets: prometheus.ExponentialBuckets(0.00002, 2, 22), // 20 us .. 42 s
		}, []string{"container", "kind"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "swiftnbd_client_errors_total", Help: "Requests of clients that failed.",
		}, []string{"container", "kind"}),
		volumes: make(map[string]*Volume),
	}
	m.registry.MustRegister(m.requests, m.bytes, m.latency, m.retries, m.clients, m.failures)
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

// status names how a request ended: the HTTP status if there was one.
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

// Counts is what is shown of a volume that is open, as device.Stats has it.
type Counts struct {
	Hits, Misses, Fetches, Fills, Ahead, Uploads, Deletes, Failures, Evicted, Flushes int64

	Used, Dirty int64 // bytes of memory
	FlushTime   time.Duration
	DirtyAge    time.Duration

	// Of version 2 only, if Logged.
	Logged                              bool
	Objects, Stored, Live, Garbage, Log int64
	ByClients, ByCollector, ByMap       int64 // bytes written
	CompressFrom, CompressTo            int64 // bytes of blocks that were compressed
}

// logGauges are the gauges of a disk of version 2.
var logGauges = [...]struct {
	name, help string
	of         func(*Counts) float64
}{
	{"log_objects", "Data objects that the disk needs.", func(c *Counts) float64 { return float64(c.Objects) }},
	{"log_bytes", "Bytes of data objects in Swift, with garbage.", func(c *Counts) float64 { return float64(c.Stored) }},
	{"log_live_bytes", "Bytes of the disk that have data.", func(c *Counts) float64 { return float64(c.Live) }},
	{"log_garbage_bytes", "Of the bytes in Swift, those that nothing needs.", func(c *Counts) float64 { return float64(c.Garbage) }},
	{"log_use_ratio", "How much of the bytes in Swift is needed, 0 to 1.", func(c *Counts) float64 {
		if c.Stored == 0 {
			return 1
		}
		return 1 - float64(c.Garbage)/float64(c.Stored)
	}},
	{"log_amplification_ratio", "Bytes in Swift for each byte of the disk that has data; 0 if none has.", func(c *Counts) float64 {
		if c.Live == 0 {
			return 0
		}
		return float64(c.Stored) / float64(c.Live)
	}},
	{"log_length_objects", "Data objects after the newest root: opening the disk reads them.", func(c *Counts) float64 { return float64(c.Log) }},
}

// logWriters are who writes objects of a disk of version 2.
var logWriters = [...]struct {
	by string
	of func(*Counts) int64
}{
	{"clients", func(c *Counts) int64 { return c.ByClients }},
	{"collector", func(c *Counts) int64 { return c.ByCollector }},
	{"map", func(c *Counts) int64 { return c.ByMap }},
}

// logCompressed are the bytes of what a disk of version 2 has compressed.
var logCompressed = [...]struct {
	when string
	of   func(*Counts) int64
}{
	{"before", func(c *Counts) int64 { return c.CompressFrom }},
	{"after", func(c *Counts) int64 { return c.CompressTo }},
}

// Volume counts the bytes of one volume's clients and watches its disk. It lives
// as long as the process. The volume may close and open again meanwhile.
type Volume struct {
	Read, Written atomic.Int64 // bytes of clients' requests

	m         *Metrics
	container string
	took      [len(requestNames)]prometheus.Observer
	failed    [len(requestNames)]prometheus.Counter

	mu   sync.Mutex                  // guards all below
	read func() Counts               // nil: the volume is not open
	base [len(cacheCounters)]float64 // what was counted when it was open before

	logged     bool                     // it is of version 2
	wrote      [len(logWriters)]float64 // as base
	compressed [len(logCompressed)]float64
}

// Request is a kind of clients' requests.
type Request int

// The kinds of requests that are counted.
const (
	Read Request = iota
	Write
	Flush
	Trim
	Zero
)

var requestNames = [...]string{Read: "read", Write: "write", Flush: "flush", Trim: "trim", Zero: "zero"}

// Took counts a client's request that began then, and has ended now with err.
func (v *Volume) Took(r Request, begun time.Time, err error) {
	v.took[r].Observe(time.Since(begun).Seconds())
	if err != nil {
		v.failed[r].Inc()
	}
}

// cacheCounters are the counters as they are shown.
var cacheCounters = [...]struct {
	name, help string
	of         func(*Counts) int64
}{
	{"cache_hits_total", "Pieces of reads that were answered from memory.", func(c *Counts) int64 { return c.Hits }},
	{"cache_misses_total", "Pieces of reads that waited for Swift.", func(c *Counts) int64 { return c.Misses }},
	{"cache_fetches_total", "Reads of Swift by the cache.", func(c *Counts) int64 { return c.Fetches }},
	{"cache_fills_total", "Of them, to complete a chunk before its upload.", func(c *Counts) int64 { return c.Fills }},
	{"cache_readahead_total", "Of them, ahead of a sequential reader.", func(c *Counts) int64 { return c.Ahead }},
	{"cache_uploads_total", "Chunks written to Swift.", func(c *Counts) int64 { return c.Uploads }},
	{"cache_deletes_total", "Chunks deleted in Swift.", func(c *Counts) int64 { return c.Deletes }},
	{"cache_upload_failures_total", "Uploads that failed, to be tried again.", func(c *Counts) int64 { return c.Failures }},
	{"cache_evictions_total", "Clean chunks that made room.", func(c *Counts) int64 { return c.Evicted }},
	{"flushes_total", "Flushes by clients, and the last one's own.", func(c *Counts) int64 { return c.Flushes }},
}

// Watch begins to show a volume that was opened, until Close. read returns what
// it has counted since.
func (m *Metrics) Watch(container string, read func() Counts) *Volume {
	m.mu.Lock()
	v := m.volumes[container]
	if v == nil {
		v = &Volume{m: m, container: container}
		for r, name := range requestNames {
			v.took[r] = m.clients.WithLabelValues(container, name)
			v.failed[r] = m.failures.WithLabelValues(container, name)
		}
		m.volumes[container] = v
		m.registry.MustRegister(v)
	}
	m.mu.Unlock()
	v.mu.Lock()
	v.read = read
	v.mu.Unlock()
	return v
}

func (v *Volume) desc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("swiftnbd_"+name, help, nil, prometheus.Labels{"container": v.container})
}

func (v *Volume) usedDesc() *prometheus.Desc {
	return v.desc("cache_bytes", "Memory in use, clean, dirty and in flight.")
}

// clientDesc describes the only counter that has another label besides the
// container.
func (v *Volume) clientDesc() *prometheus.Desc {
	return prometheus.NewDesc("swiftnbd_client_bytes_total", "Bytes read and written by clients.",
		[]string{"direction"}, prometheus.Labels{"container": v.container})
}

func (v *Volume) dirtyDesc() *prometheus.Desc {
	return v.desc("cache_dirty_bytes", "Of the memory in use, bytes that Swift lacks.")
}

func (v *Volume) flushDesc() *prometheus.Desc {
	return v.desc("cache_flush_seconds", "How long a flush would take now, as Swift did lately.")
}

func (v *Volume) compressedDesc() *prometheus.Desc {
	return prometheus.NewDesc("swiftnbd_log_compressed_bytes_total", "Bytes of blocks that were compressed, before and after.",
		[]string{"when"}, prometheus.Labels{"container": v.container})
}

func (v *Volume) writtenDesc() *prometheus.Desc {
	return prometheus.NewDesc("swiftnbd_log_written_bytes_total", "Bytes of objects of the log written, by who had them written.",
		[]string{"by"}, prometheus.Labels{"container": v.container})
}

func (v *Volume) ageDesc() *prometheus.Desc {
	return v.desc("cache_dirty_age_seconds", "For how long the oldest byte that Swift lacks has waited; 0 if Swift lacks none.")
}

// Describe implements prometheus.Collector.
func (v *Volume) Describe(ch chan<- *prometheus.Desc) {
	for _, k := range cacheCounters {
		ch <- v.desc(k.name, k.help)
	}
	ch <- v.usedDesc()
	ch <- v.dirtyDesc()
	ch <- v.flushDesc()
	ch <- v.ageDesc()
	ch <- v.clientDesc()
	for _, k := range logGauges {
		ch <- v.desc(k.name, k.help)
	}
	ch <- v.writtenDesc()
	ch <- v.compressedDesc()
}

// Collect implements prometheus.Collector.
func (v *Volume) Collect(ch chan<- prometheus.Metric) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var now Counts
	if v.read != nil {
		now = v.read()
	}
	for i, k := range cacheCounters {
		n := v.base[i] + float64(k.of(&now))
		ch <- prometheus.MustNewConstMetric(v.desc(k.name, k.help), prometheus.CounterValue, n)
	}
	// Chunks are counted one after another. Some are written or evicted
	// meanwhile.
	dirty := min(now.Dirty, now.Used)
	ch <- prometheus.MustNewConstMetric(v.usedDesc(), prometheus.GaugeValue, float64(now.Used))
	ch <- prometheus.MustNewConstMetric(v.dirtyDesc(), prometheus.GaugeValue, float64(dirty))
	ch <- prometheus.MustNewConstMetric(v.flushDesc(), prometheus.GaugeValue, now.FlushTime.Seconds())
	ch <- prometheus.MustNewConstMetric(v.ageDesc(), prometheus.GaugeValue, now.DirtyAge.Seconds())
	ch <- prometheus.MustNewConstMetric(v.clientDesc(), prometheus.CounterValue, float64(v.Read.Load()), "read")
	ch <- prometheus.MustNewConstMetric(v.clientDesc(), prometheus.CounterValue, float64(v.Written.Load()), "write")
	v.logged = v.logged || now.Logged
	if !v.logged {
		return
	}
	for i, w := range logWriters {
		n := v.wrote[i] + float64(w.of(&now))
		ch <- prometheus.MustNewConstMetric(v.writtenDesc(), prometheus.CounterValue, n, w.by)
	}
	for i, k := range logCompressed {
		n := v.compressed[i] + float64(k.of(&now))
		ch <- prometheus.MustNewConstMetric(v.compressedDesc(), prometheus.CounterValue, n, k.when)
	}
	if !now.Logged {
		return // it is not open: how its log is used is not known
	}
	for _, k := range logGauges {
		ch <- prometheus.MustNewConstMetric(v.desc(k.name, k.help), prometheus.GaugeValue, k.of(&now))
	}
}

// Close is called when the volume is closed. The counts stay.
func (v *Volume) Close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.read == nil {
		return
	}
	now := v.read()
	for i, k := range cacheCounters {
		v.base[i] += float64(k.of(&now))
	}
	v.logged = v.logged || now.Logged
	for i, w := range logWriters {
		v.wrote[i] += float64(w.of(&now))
	}
	for i, k := range logCompressed {
		v.compressed[i] += float64(k.of(&now))
	}
	v.read = nil
}

// Listen opens the socket on which the metrics are served: "HOST:PORT" or
// "unix:PATH". A Unix socket that a dead process has left behind is replaced.
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

// ListenFile is Listen for a process that hands the socket to another process.
// That process opens it with net.FileListener. The group may use a Unix socket
// too. The socket stays when the file is closed.
func ListenFile(address string) (*os.File, error) {
	l, err := Listen(address)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	switch l := l.(type) {
	case *net.UnixListener:
		l.SetUnlinkOnClose(false)
		if err := os.Chmod(l.Addr().String(), 0o660); err != nil {
			return nil, errors.Join(err, os.Remove(l.Addr().String()))
		}
		return l.File()
	case *net.TCPListener:
		return l.File()
	default:
		return nil, fmt.Errorf("%T cannot be handed over", l)
	}
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

// Summary writes the counts, one on each line, under their names in Prometheus.
// The last line is the number of requests for each MiB of clients' data.
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
				fmt.Fprintf(w, "%s{%s} %s\n", f.GetName(), strings.Join(labels, ","), strconv.FormatFloat(value, 'f', -1, 64))
			}
		}
	}
	if bytes > 0 {
		_, err = fmt.Fprintf(w, "swiftnbd: %.2f requests to Swift for each MiB of clients' data\n", requests/(bytes/(1<<20)))
	}
	return err
}
