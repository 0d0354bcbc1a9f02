// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// counters is where a running nbdkit serves its counters.
type counters struct {
	address string // as metrics= takes it
	client  *http.Client
}

// topAnswer bounds the answer, bytes. A disk has a few KiB of counters.
const topAnswer = 64 << 20

// newCounters prepares the way to an address, "unix:PATH" or "HOST:PORT".
func newCounters(address string) (*counters, error) {
	network, to := "tcp", address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if path == "" {
			return nil, usagef("%s: the socket's path is missing", address)
		}
		network, to = "unix", path
	} else if _, port, err := net.SplitHostPort(address); err != nil || port == "" {
		return nil, usagef("%q is no address of counters: unix:PATH or HOST:PORT, as in metrics=", address)
	}
	return &counters{address, &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{ // no proxy: it is on this machine, or near
			DisableKeepAlives: true, // whether somebody listens is seen each time
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, to)
			},
		},
	}}, nil
}

// sample is what the counters say at one moment.
type sample struct {
	at       time.Time
	families map[string]*dto.MetricFamily
}

// read asks for the counters.
func (c *counters) read(ctx context.Context) (sample, error) {
	fail := func(err error) (sample, error) {
		var oe *net.OpError
		if errors.As(err, &oe) { // without the URL, which is nobody's
			err = oe.Err
		}
		return sample{}, fmt.Errorf("%s: no counters: %w", c.address, oneLine{err})
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://swiftnbd/metrics", nil)
	if err != nil {
		return fail(err)
	}
	answer, err := c.client.Do(r)
	if err != nil {
		return fail(err)
	}
	defer answer.Body.Close()
	at := time.Now()
	if answer.StatusCode != http.StatusOK {
		return fail(errors.New(answer.Status))
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(io.LimitReader(answer.Body, topAnswer))
	if err != nil {
		return fail(err)
	}
	if families["swiftnbd_retries_total"] == nil {
		return fail(errors.New("what answers there is no nbdkit with swiftnbd's plugin"))
	}
	return sample{at, families}, nil
}

// of returns the metrics of a family with these labels: NAME, VALUE and so on.
func (s sample) of(family string, labels ...string) (found []*dto.Metric) {
metrics:
	for _, m := range s.families["swiftnbd_"+family].GetMetric() {
		for i := 0; i < len(labels); i += 2 {
			if label(m, labels[i]) != labels[i+1] {
				continue metrics
			}
		}
		found = append(found, m)
	}
	return found
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// sum returns the sum of such metrics that are counters or gauges. ok is false if
// there is none.
func (s sample) sum(family string, labels ...string) (v float64, ok bool) {
	for _, m := range s.of(family, labels...) {
		v += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		ok = true
	}
	return v, ok
}

// histogram is the sum of some histograms: the count of each bucket, by its upper
// bound in seconds.
type histogram struct {
	buckets map[float64]float64 // up to the bound, as Prometheus has them
	count   float64
	sum     float64 // seconds
}

func (s sample) histogram(family string, labels ...string) histogram {
	h := histogram{buckets: make(map[float64]float64)}
	for _, m := range s.of(family, labels...) {
		for _, b := range m.GetHistogram().GetBucket() {
			h.buckets[b.GetUpperBound()] += float64(b.GetCumulativeCount())
		}
		h.count += float64(m.GetHistogram().GetSampleCount())
		h.sum += m.GetHistogram().GetSampleSum()
	}
	return h
}

// since returns what was added to a histogram.
func (h histogram) since(was histogram) histogram {
	d := histogram{buckets: make(map[float64]float64), count: h.count - was.count, sum: h.sum - was.sum}
	for bound, n := range h.buckets {
		d.buckets[bound] = n - was.buckets[bound]
	}
	return d
}

// mean returns the mean in seconds; nil: nothing was counted.
func (h histogram) mean() *float64 {
	if h.count <= 0 {
		return nil
	}
	return ptr(h.sum / h.count)
}

// quantile returns in seconds what the part q of all did not exceed, about: within
// a bucket all are taken for evenly spread. What is above the last bound counts as
// that.
func (h histogram) quantile(q float64) *float64 {
	if h.count <= 0 {
		return nil
	}
	rank, low, below := q*h.count, 0., 0.
	for _, bound := range slices.Sorted(maps.Keys(h.buckets)) {
		n := h.buckets[bound]
		if math.IsInf(bound, 1) {
			break
		}
		if n >= rank && n > below {
			return ptr(low + (bound-low)*(rank-below)/(n-below))
		}
		low, below = bound, n
	}
	return &low
}

func ptr[T any](v T) *T { return &v }

// topped is what top prints as JSON: an interval. Rates are for a second. Times are
// in seconds. What is not known, or what no request tells, is null.
type topped struct {
	Time    time.Time  `json:"time"`
	Seconds float64    `json:"seconds"` // the interval
	Swift   topSwift   `json:"swift"`
	Disks   []*topDisk `json:"disks"` // those that were open since nbdkit was started
}

// topSwift is about the requests to Swift, of all disks together.
type topSwift struct {
	Requests float64  `json:"requests"`
	Gets     float64  `json:"gets"`
	Puts     float64  `json:"puts"`
	GetBytes float64  `json:"get_bytes"`
	PutBytes float64  `json:"put_bytes"`
	GetMean  *float64 `json:"get_seconds"`
	GetMost  *float64 `json:"get_seconds_p99"`
	PutMean  *float64 `json:"put_seconds"`
	PutMost  *float64 `json:"put_seconds_p99"`
	Errors   float64  `json:"errors"`
	Retries  float64  `json:"retries"`
}

// topDisk is about one disk.
type topDisk struct {
	Container  string   `json:"container"`
	Reads      float64  `json:"reads"`
	ReadBytes  float64  `json:"read_bytes"`
	ReadMean   *float64 `json:"read_seconds"`
	ReadMost   *float64 `json:"read_seconds_p99"`
	Writes     float64  `json:"writes"`
	WriteBytes float64  `json:"write_bytes"`
	WriteMean  *float64 `json:"write_seconds"`
	WriteMost  *float64 `json:"write_seconds_p99"`
	Flushes    float64  `json:"flushes"`
	FlushMean  *float64 `json:"flush_seconds"`
	FlushMost  *float64 `json:"flush_seconds_p99"`
	Errors     float64  `json:"errors"` // requests of clients that failed
	Hits       *float64 `json:"hit_ratio"`
	Cache      float64  `json:"cache_bytes"`
	Dirty      float64  `json:"dirty_bytes"`
	Age        float64  `json:"dirty_age"`      // seconds
	NextFlush  float64  `json:"flush_expected"` // seconds that a flush would take now
	Failures   float64  `json:"upload_failures"`
}

// restarted says that now is of another process than was: a counter has become
// smaller.
func restarted(was, now sample) bool {
	for name := range was.families {
		short := strings.TrimPrefix(name, "swiftnbd_")
		for _, m := range was.of(short) {
			if m.GetCounter() == nil {
				continue
			}
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName(), l.GetValue())
			}
			if v, ok := now.sum(short, labels...); !ok || v < m.GetCounter().GetValue() {
				return true
			}
		}
	}
	return false
}

// interval returns what happened between two samples.
func interval(was, now sample) *topped {
	t := &topped{Time: now.at.UTC(), Seconds: now.at.Sub(was.at).Seconds(), Disks: []*topDisk{}}
	rate := func(family string, labels ...string) float64 {
		a, _ := was.sum(family, labels...)
		b, _ := now.sum(family, labels...)
		return max(0, b-a) / t.Seconds
	}
	took := func(family string, labels ...string) (each float64, mean, most *float64) {
		h := now.histogram(family, labels...).since(was.histogram(family, labels...))
		return max(0, h.count) / t.Seconds, h.mean(), h.quantile(0.99)
	}
	s := &t.Swift
	s.Requests = rate("requests_total")
	s.GetBytes, s.PutBytes = rate("object_bytes_total", "direction", "get"), rate("object_bytes_total", "direction", "put")
	s.Gets, s.GetMean, s.GetMost = took("request_seconds", "kind", "get")
	s.Puts, s.PutMean, s.PutMost = took("request_seconds", "kind", "put")
	s.Retries = rate("retries_total")
	for _, m := range now.of("requests_total") {
		// A 404 is the answer to the question whether there is an object.
		if status := label(m, "status"); status != "ok" && status != "404" {
			s.Errors += rate("requests_total", "kind", label(m, "kind"), "status", status)
		}
	}
	for _, m := range now.of("cache_bytes") {
		of := []string{"container", label(m, "container")}
		with := func(more ...string) []string { return append(slices.Clip(of), more...) }
		gauge := func(family string) float64 { v, _ := now.sum(family, of...); return v }
		d := &topDisk{Container: of[1]}
		d.ReadBytes, d.WriteBytes = rate("client_bytes_total", with("direction", "read")...), rate("client_bytes_total", with("direction", "write")...)
		d.Reads, d.ReadMean, d.ReadMost = took("client_request_seconds", with("kind", "read")...)
		d.Writes, d.WriteMean, d.WriteMost = took("client_request_seconds", with("kind", "write")...)
		d.Flushes, d.FlushMean, d.FlushMost = took("client_request_seconds", with("kind", "flush")...)
		d.Errors = rate("client_errors_total", of...)
		if hits, misses := rate("cache_hits_total", of...), rate("cache_misses_total", of...); hits+misses > 0 {
			d.Hits = ptr(hits / (hits + misses))
		}
		d.Cache, d.Dirty, d.Age, d.NextFlush = gauge("cache_bytes"), gauge("cache_dirty_bytes"), gauge("cache_dirty_age_seconds"), gauge("cache_flush_seconds")
		d.Failures = rate("cache_upload_failures_total", of...)
		t.Disks = append(t.Disks, d)
	}
	slices.SortFunc(t.Disks, func(a, b *topDisk) int { return strings.Compare(a.Container, b.Container) })
	return t
}
