// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"swiftnbd/internal/logdisk"
)

func (t *tool) diffCommand() *cobra.Command {
	var exact bool
	cmd := &cobra.Command{
		Use:   "diff CONTAINER@SNAPSHOT CONTAINER[@SNAPSHOT]",
		Short: "List what has changed between two moments of a disk",
		Long: `List what has changed on a disk of version 2 from a snapshot to another one, or to
the newest moment: ranges of bytes, each of data or of zeroes. The maps alone tell,
and no data is read. No lock is taken, and the disk may be in use.

A range may be listed that has not changed: what a client has written with the bytes
that were there, and what the collector has moved. --exact leaves out most of the latter.`,
		Example: `  swiftnbd-ctl diff mynbd0@monday mynbd0@tuesday
  swiftnbd-ctl diff mynbd0@monday mynbd0 --json`,
		Args: needs("CONTAINER@SNAPSHOT", "CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			return t.diff(ctx, args[0], args[1], exact)
		}),
		ValidArgsFunction: completing(t.completeMoment, t.completeMoment),
	}
	cmd.Flags().BoolVar(&exact, "exact", false, "leave out what was only moved in Swift, and zeroes that were zeroes before: this reads more of the map")
	t.jsonFlag(cmd)
	return cmd
}

// openDiff begins to compare two moments of a container. It takes no lock. An empty
// to is the newest moment.
func (t *tool) openDiff(ctx context.Context, name, from, to string, exact bool, connections int) (*container, *logdisk.Diff, error) {
	c, state, err := t.openLog(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	o := c.logOptions(t, state.Meta, nil, state, connections)
	x, err := logdisk.OpenDiff(ctx, o, logdisk.DiffOptions{From: from, To: to, Exact: exact})
	if err != nil {
		return nil, nil, c.explain(ctx, err)
	}
	return c, x, nil
}

// diff lists what differs.
func (t *tool) diff(ctx context.Context, fromArg, toArg string, exact bool) error {
	name, from, err := t.splitSnapshot(fromArg)
	if err != nil {
		return err
	}
	toName, to, err := t.splitSnapshot(toArg)
	switch {
	case err != nil:
		return err
	case from == "":
		return usagef("%s names no snapshot: expected %s@SNAPSHOT", fromArg, name)
	case name != toName:
		return usagef("%s and %s are of two disks: one disk is compared with itself", fromArg, toArg)
	}
	c, x, err := t.openDiff(ctx, name, from, to, exact, defaultConnections)
	if err != nil {
		return err
	}
	defer x.Close()
	w := bufio.NewWriter(t.stdout)
	var p diffPrinter = &diffColumns{w: w}
	if t.json {
		p = &diffJSON{w: w}
	}
	p.begin(name, x)
	if err := x.Changes(ctx, p.change); err != nil {
		_ = w.Flush()
		return c.explain(ctx, err)
	}
	p.end()
	return w.Flush()
}

// diffPrinter prints changes as they are found: there may be very many.
type diffPrinter interface {
	begin(name string, x *logdisk.Diff)
	change(c logdisk.Change) error
	end()
}

// kindOf returns what a changed range reads as.
func kindOf(c logdisk.Change) string {
	if c.Hole {
		return "zero"
	}
	return "data"
}

type diffColumns struct{ w *bufio.Writer }

func (d *diffColumns) begin(string, *logdisk.Diff) {
	fmt.Fprintf(d.w, "%-16s%-16s%s\n", "OFFSET", "LENGTH", "KIND")
}
func (d *diffColumns) end() {}

func (d *diffColumns) change(c logdisk.Change) error {
	_, err := fmt.Fprintf(d.w, "%-15d %-15d %s\n", c.Off, c.Len, kindOf(c))
	return err
}

// diffJSON prints the object whose keys are those of diffFound.
type diffJSON struct {
	w          *bufio.Writer
	n          int
	data, zero int64
}

// diffMoment is a moment in JSON.
type diffMoment struct {
	Snapshot *string `json:"snapshot"` // null: the newest moment
	Size     int64   `json:"size"`
}

func momentJSON(m logdisk.Moment) diffMoment {
	out := diffMoment{Size: m.Size}
	if m.Snapshot != "" {
		out.Snapshot = &m.Snapshot
	}
	return out
}

// diffFound is what diff prints as JSON.
type diffFound struct {
	Container string       `json:"container"`
	From      diffMoment   `json:"from"`
	To        diffMoment   `json:"to"`
	Extents   []diffExtent `json:"extents"`
	DataBytes int64        `json:"data_bytes"`
	ZeroBytes int64        `json:"zero_bytes"`
}

type diffExtent struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Kind   string `json:"kind"` // data or zero
}

func (d *diffJSON) put(v any) {
	b, _ := json.Marshal(v) // strings and numbers
	_, _ = d.w.Write(b)     // Flush has the error
}

func (d *diffJSON) begin(name string, x *logdisk.Diff) {
	for _, field := range []struct {
		key   string
		value any
	}{{"{\n  \"container\": ", name}, {",\n  \"from\": ", momentJSON(x.From)}, {",\n  \"to\": ", momentJSON(x.To)}} {
		_, _ = d.w.WriteString(field.key)
		d.put(field.value)
	}
	_, _ = d.w.WriteString(",\n  \"extents\": [")
}

func (d *diffJSON) change(c logdisk.Change) error {
	if d.n > 0 {
		_ = d.w.WriteByte(',')
	}
	d.n++
	if c.Hole {
		d.zero += c.Len
	} else {
		d.data += c.Len
	}
	_, err := d.w.WriteString("\n    ")
	d.put(diffExtent{c.Off, c.Len, kindOf(c)})
	return err
}

func (d *diffJSON) end() {
	if d.n > 0 {
		_, _ = d.w.WriteString("\n  ")
	}
	fmt.Fprintf(d.w, "],\n  \"data_bytes\": %d,\n  \"zero_bytes\": %d\n}\n", d.data, d.zero)
}
