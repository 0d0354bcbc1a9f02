// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"slices"
)

// What bench measures: objects of these sizes, bytes, with so many requests at once.
var (
	benchSizes       = []int64{64 << 10, 256 << 10, 1 << 20, 4 << 20}
	benchConnections = []int{1, 4, 16, 64}
)

// benchMost bounds the objects of one measurement: more say nothing more.
const benchMost = 2000

// benchCell is one measurement: so many objects of a size are written and then read,
// with so many requests at once.
type benchCell struct {
	size        int64
	connections int
	objects     int
}

// need is how many bytes the cell has at least: an object for each connection.
func (c benchCell) need() int64 { return c.size * int64(c.connections) }

// planBench divides bytes among the measurements, none of which has objects larger
// than most (0: there is no limit). Those for which there is not enough are left
// out, the largest first. Each of the others has an object for each connection, and
// beyond that as many bytes as the others. The result is in the order of sizes, and
// then of connections.
func planBench(bytes, most int64) []benchCell {
	var cells []benchCell
	var need int64
	for _, size := range benchSizes {
		for _, n := range benchConnections {
			if c := (benchCell{size: size, connections: n}); most <= 0 || size <= most {
				cells = append(cells, c)
				need += c.need()
			}
		}
	}
	slices.SortStableFunc(cells, func(a, b benchCell) int { return cmp.Compare(b.need(), a.need()) })
	for len(cells) > 0 && need > bytes {
		need -= cells[0].need()
		cells = cells[1:]
	}
	// The largest first: what they leave is enough for the others, since the need
	// of none of these is above the share.
	for i := range cells {
		c := &cells[i]
		share := max(c.need(), bytes/int64(len(cells)-i))
		c.objects = int(min(share/c.size, max(benchMost, int64(c.connections))))
		bytes -= int64(c.objects) * c.size
	}
	slices.SortFunc(cells, func(a, b benchCell) int {
		return cmp.Or(cmp.Compare(a.size, b.size), cmp.Compare(a.connections, b.connections))
	})
	return cells
}

// benchResult is what a measurement has found, as JSON. What could not be measured
// is null.
type benchResult struct {
	Size        int64    `json:"size"` // of an object, bytes
	Connections int      `json:"connections"`
	Objects     int      `json:"objects"`    // that were written
	Write       *float64 `json:"write_rate"` // bytes a second
	WriteMean   *float64 `json:"write_seconds"`
	Read        *float64 `json:"read_rate"` // bytes a second
	ReadMean    *float64 `json:"read_seconds"`
	Errors      int      `json:"errors"` // requests that failed
	Error       *string  `json:"error"`  // the first of them
}

// good says whether the measurement counts.
func (r benchResult) good() bool { return r.Errors == 0 && r.Write != nil && r.Read != nil }

// benchEnough is which part of the best is good enough.
const benchEnough = 0.8

// recommend chooses among the results: the smallest objects, and for these the
// fewest connections, with which both writing and reading are good enough. How good
// a result is, is the worse of its two rates, each as a part of the best one that
// was measured; good enough is 80 % of the best result. It returns nil if there is
// none that counts. The results are in planBench's order.
func recommend(results []benchResult) *benchResult {
	var write, read, best float64
	for _, r := range results {
		if r.good() {
			write, read = max(write, *r.Write), max(read, *r.Read)
		}
	}
	score := func(r benchResult) float64 { return min(*r.Write/write, *r.Read/read) }
	for _, r := range results {
		if r.good() {
			best = max(best, score(r))
		}
	}
	for i, r := range results {
		if r.good() && score(r) >= benchEnough*best {
			return &results[i]
		}
	}
	return nil
}

// largestOf returns the results with objects of the largest size that was measured.
func largestOf(results []benchResult) []benchResult {
	i := len(results)
	for i > 0 && results[i-1].Size == results[len(results)-1].Size {
		i--
	}
	return results[i:]
}
