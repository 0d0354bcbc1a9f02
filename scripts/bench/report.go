// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// line is one line of the table: a name, words, and how it is measured.
type line struct {
	name   string
	what   string
	target float64 // of the ratio; 0: none
	least  bool    // the target is a lower bound; else an upper one
	run    func(*result) error
}

// result is what came of a line.
type result struct {
	Name    string    `json:"name"`
	What    string    `json:"what"`
	Unit    string    `json:"unit,omitempty"`   // of Ours and Against
	Ours    float64   `json:"ours"`             // median
	Peer    string    `json:"peer,omitempty"`   // what Against is; empty: the limit
	Against float64   `json:"against"`          // the limit's or the peer's median
	Ratio   float64   `json:"ratio"`            // median of Ratios
	Ratios  []float64 `json:"ratios"`           // of the pairs, in their order
	Target  float64   `json:"target,omitempty"` // of Ratio
	Least   bool      `json:"least"`            // Target is a lower bound
	Notes   []string  `json:"notes,omitempty"`
	Load    float64   `json:"load"` // the machine's load average over a minute, at the line's end
	Seconds float64   `json:"seconds"`
	Failed  string    `json:"failed,omitempty"` // why there are no figures
}

func (r *result) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (r *result) met() string {
	switch {
	case r.Target == 0:
		return ""
	case r.Least && r.Ratio >= r.Target, !r.Least && r.Ratio <= r.Target:
		return "yes"
	}
	return "NO"
}

func (r *result) targetText() string {
	switch {
	case r.Target == 0:
		return "-"
	case r.Least:
		return fmt.Sprintf(">=%.2f", r.Target)
	}
	return fmt.Sprintf("<=%.2f", r.Target)
}

// pairs measures against and ours in turn, as often as --pairs says. Each
// returns a figure in unit.
func (s *suite) pairs(r *result, unit string, against, ours func() (float64, error)) error {
	r.Unit = unit
	var as, os []float64
	for range s.options.pairs {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		a, err := against()
		if err != nil {
			return err
		}
		o, err := ours()
		if err != nil {
			return err
		}
		if a <= 0 || o <= 0 {
			return fmt.Errorf("nothing was measured: %g %s against %g", o, unit, a)
		}
		s.logf("%s: %.4g against %.4g %s: %.3f", r.Name, o, a, unit, o/a)
		as, os = append(as, a), append(os, o)
		r.Ratios = append(r.Ratios, o/a)
	}
	r.Ours, r.Against, r.Ratio = median(os), median(as), median(r.Ratios)
	return nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// runLines measures the lines that were chosen and reports them. A line that
// fails does not keep the others from being measured.
func (s *suite) runLines() error {
	var failed []string
	start := time.Now()
	for _, l := range lines(s) {
		if !s.chosen(l.name) {
			continue
		}
		if s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		fmt.Fprintf(os.Stderr, "bench: %s\n", l.name)
		r := result{Name: l.name, What: l.what, Target: l.target, Least: l.least}
		began := time.Now()
		err := l.run(&r)
		r.Seconds = math.Round(time.Since(began).Seconds()*10) / 10
		r.Load = loadAverage()
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", l.name, err)
			failed = append(failed, l.name)
			r.Failed, r.Ratios = err.Error(), nil
			r.note("FAILED, see above")
		}
		s.results = append(s.results, r)
	}
	if len(s.results) == 0 {
		return fmt.Errorf("no line is called %s: see --list", strings.Join(s.only, ", "))
	}
	s.print(time.Since(start))
	if err := s.writeJSON(); err != nil {
		return err
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d jobs failed: %s", len(failed), strings.Join(failed, ", "))
	}
	return nil
}

func (s *suite) print(took time.Duration) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "line\tours\tagainst\tratio (min-max)\ttarget\tmet\tload\tnote")
	for _, r := range s.results {
		peer := r.Peer
		if peer != "" {
			peer = " " + peer
		}
		if len(r.Ratios) == 0 {
			fmt.Fprintf(w, "%s\t-\t-\t-\t%s\t\t%.1f\t%s\n", r.Name, r.targetText(), r.Load, strings.Join(r.Notes, "; "))
			continue
		}
		fmt.Fprintf(w, "%s\t%s %s\t%s%s\t%.2f (%.2f-%.2f)\t%s\t%s\t%.1f\t%s\n", r.Name,
			figure(r.Ours), r.Unit, figure(r.Against), peer, r.Ratio, slices.Min(r.Ratios), slices.Max(r.Ratios),
			r.targetText(), r.met(), r.Load, strings.Join(r.Notes, "; "))
	}
	w.Flush()
	fmt.Printf("%d lines in %v; %d CPUs; load is the machine's average over a minute: with much more than our own 2 or 3 the figures are noise.\n",
		len(s.results), took.Round(time.Second), runtime.NumCPU())
}

// figure writes a number with three digits or so.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (s *suite) writeJSON() error {
	if s.json == "" {
		return nil
	}
	data, err := json.MarshalIndent(map[string]any{
		"when": time.Now().UTC().Format(time.RFC3339), "cpus": runtime.NumCPU(), "go": runtime.Version(),
		"pairs": s.options.pairs, "connections": s.conns, "latency_ms": s.latency.Milliseconds(), "scale": s.scale,
		"lines": s.results,
	}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.json), 0o777); err != nil {
		return err
	}
	return os.WriteFile(s.json, append(data, '\n'), 0o666)
}

// loadAverage is how many processes wanted a CPU, over the last minute.
func loadAverage() float64 {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return -1
	}
	var one float64
	if _, err := fmt.Sscan(string(data), &one); err != nil {
		return -1
	}
	return one
}
