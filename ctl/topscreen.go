// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"math"
	"strings"

	"swiftnbd/internal/store"
	"swiftnbd/internal/words"
)

// topRate writes how many in a second.
func topRate(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 9.95:
		return fmt.Sprintf("%.1f", v)
	case v < 99_999.5:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.0fk", v/1000)
}

// topBytes writes bytes with a unit and at most four digits.
func topBytes(v float64) string {
	const units = "KMGTPE"
	if v < 1024 {
		return fmt.Sprintf("%.0f", v)
	}
	for i := range len(units) {
		v /= 1024
		if v < 9.95 {
			return fmt.Sprintf("%.1f%c", v, units[i])
		}
		if v < 1023.5 || i == len(units)-1 {
			return fmt.Sprintf("%.0f%c", v, units[i])
		}
	}
	return ""
}

// topTime writes a time with its unit; "-" for none.
func topTime(s *float64) string {
	switch {
	case s == nil:
		return "-"
	case *s == 0:
		return "0"
	case *s < 9.95e-6:
		return fmt.Sprintf("%.1fus", *s*1e6)
	case *s < 999.5e-6:
		return fmt.Sprintf("%.0fus", *s*1e6)
	case *s < 9.95e-3:
		return fmt.Sprintf("%.1fms", *s*1e3)
	case *s < 0.9995:
		return fmt.Sprintf("%.0fms", *s*1e3)
	case *s < 9.95:
		return fmt.Sprintf("%.1fs", *s)
	case *s < 999.5:
		return fmt.Sprintf("%.0fs", *s)
	}
	return fmt.Sprintf("%.0fm", *s/60)
}

// topPart writes a part in percent.
func topPart(v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", math.Floor(*v*100)) // 100% is all
}

// topColumns are the columns of the table of disks.
var topColumns = []struct {
	name string
	of   func(*topDisk) string
}{
	{"READ/s", func(d *topDisk) string { return topRate(d.Reads) }},
	{"B/s", func(d *topDisk) string { return topBytes(d.ReadBytes) }},
	{"MEAN", func(d *topDisk) string { return topTime(d.ReadMean) }},
	{"P99", func(d *topDisk) string { return topTime(d.ReadMost) }},
	{"WRITE/s", func(d *topDisk) string { return topRate(d.Writes) }},
	{"B/s", func(d *topDisk) string { return topBytes(d.WriteBytes) }},
	{"MEAN", func(d *topDisk) string { return topTime(d.WriteMean) }},
	{"P99", func(d *topDisk) string { return topTime(d.WriteMost) }},
	{"FLUSH/s", func(d *topDisk) string { return topRate(d.Flushes) }},
	{"MEAN", func(d *topDisk) string { return topTime(d.FlushMean) }},
	{"HIT", func(d *topDisk) string { return topPart(d.Hits) }},
	{"CACHE", func(d *topDisk) string { return topBytes(d.Cache) }},
	{"DIRTY", func(d *topDisk) string { return topBytes(d.Dirty) }},
	{"AGE", func(d *topDisk) string { return topTime(&d.Age) }},
	{"ERR/s", func(d *topDisk) string { return topRate(d.Errors) }},
}

// lines are the lines of the screen. trouble, if not nil, is why there is nothing
// newer.
func (t *topped) lines(address string, trouble error) []string {
	var lines []string
	add := func(format string, a ...any) { lines = append(lines, fmt.Sprintf(format, a...)) }
	if t == nil {
		add("swiftnbd-ctl top %s", address)
		add("")
		if trouble != nil {
			add("%v", trouble)
		} else {
			add("measuring")
		}
		return lines
	}
	add("swiftnbd-ctl top %s   %s   %s", address, t.Time.Local().Format("15:04:05"), words.Count(int64(len(t.Disks)), "disk"))
	if trouble != nil {
		add("%v", trouble)
	} else {
		add("")
	}
	s := &t.Swift
	add("Swift: %s requests/s, %s errors/s, %s retries/s", topRate(s.Requests), topRate(s.Errors), topRate(s.Retries))
	add("  GET %s/s %sB/s mean %s p99 %s", topRate(s.Gets), topBytes(s.GetBytes), topTime(s.GetMean), topTime(s.GetMost))
	add("  PUT %s/s %sB/s mean %s p99 %s", topRate(s.Puts), topBytes(s.PutBytes), topTime(s.PutMean), topTime(s.PutMost))
	add("")
	return append(lines, t.table()...)
}

// table is the table of disks.
func (t *topped) table() []string {
	rows := [][]string{{"DISK"}}
	for _, c := range topColumns {
		rows[0] = append(rows[0], c.name)
	}
	for _, d := range t.Disks {
		row := []string{store.OneLine(d.Container)}
		for _, c := range topColumns {
			row = append(row, c.of(d))
		}
		rows = append(rows, row)
	}
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	lines := make([]string, 0, len(rows))
	for _, row := range rows {
		var b strings.Builder
		fmt.Fprintf(&b, "%-*s", width[0], row[0])
		for i, cell := range row[1:] {
			fmt.Fprintf(&b, " %*s", width[i+1], cell)
		}
		lines = append(lines, b.String())
	}
	return lines
}

// line is the line for a pipe: all disks together.
func (t *topped) line() string {
	var all topDisk
	for _, d := range t.Disks {
		all.Reads += d.Reads
		all.ReadBytes += d.ReadBytes
		all.Writes += d.Writes
		all.WriteBytes += d.WriteBytes
		all.Flushes += d.Flushes
		all.Errors += d.Errors
		all.Cache += d.Cache
		all.Dirty += d.Dirty
		all.Age = max(all.Age, d.Age)
	}
	return fmt.Sprintf("%s read %s/s %sB/s write %s/s %sB/s flush %s/s errors %s/s cache %sB dirty %sB age %s swift %s/s get %sB/s %s put %sB/s %s errors %s/s",
		t.Time.Local().Format("15:04:05"), topRate(all.Reads), topBytes(all.ReadBytes), topRate(all.Writes), topBytes(all.WriteBytes), topRate(all.Flushes), topRate(all.Errors),
		topBytes(all.Cache), topBytes(all.Dirty), topTime(&all.Age),
		topRate(t.Swift.Requests), topBytes(t.Swift.GetBytes), topTime(t.Swift.GetMean), topBytes(t.Swift.PutBytes), topTime(t.Swift.PutMean), topRate(t.Swift.Errors))
}
