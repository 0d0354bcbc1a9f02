// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/words"
)

// logInfo is what info knows of a disk of version 2 only. Of version 1 all of it
// is null; what the map has to say is null too where it was not read.
type logInfo struct {
	Root          *string    `json:"root"` // the newest, without its prefix
	RootMade      *time.Time `json:"root_made"`
	Runs          *int64     `json:"runs"`
	RunBytes      *int64     `json:"run_bytes"`
	Log           *int64     `json:"log_objects"` // after the newest root
	Opens         *string    `json:"opens"`       // at once, log, or no
	OpensWhy      *string    `json:"opens_reason"`
	Data          *int64     `json:"data_objects"`
	DataBytes     *int64     `json:"data_bytes"`
	Live          *int64     `json:"live_bytes"`
	Garbage       *int64     `json:"garbage_bytes"`
	Use           *float64   `json:"use_percent"`
	Amplification *float64   `json:"amplification"`      // data bytes to live bytes
	Compressed    *float64   `json:"compressed_percent"` // of their bytes that the live data takes; null: nothing is compressed
	Parent        *string    `json:"parent"`             // of a clone: its container
	ParentURL     *string    `json:"parent_url"`         // of that account's storage, if it is another one
	ParentSnap    *string    `json:"parent_snapshot"`
	Depth         *int       `json:"depth"`  // so many disks lie below the clone
	Clones        []string   `json:"clones"` // of the disk; of version 1 null
	Chunks        *int64     `json:"chunks"` // of version 1 that lie below the log, at most
	ChunkSize     *int64     `json:"chunk_size"`
}

// How a disk of version 2 would open.
const (
	opensAtOnce = "at once"
	opensLog    = "log"
	opensNot    = "no"
)

// inspectLog finds out what there is to know of a disk of version 2.
func (t *tool) inspectLog(ctx context.Context, c *container, state lease.State, full bool, in *info) error {
	o := c.logOptions(t, state.Meta, nil, state, defaultConnections)
	o.Timeout = t.pace.verify
	i, err := logdisk.Inspect(ctx, o, state.Objects, full)
	if err != nil {
		return err
	}
	opens := opensAtOnce
	switch {
	case i.Trouble != nil:
		opens = opensNot
		why := oneLine{i.Trouble}.Error()
		in.OpensWhy = &why
	case i.Log.Count > 0:
		opens = opensLog
	}
	in.Opens = &opens
	if p := i.Base; p != nil {
		in.Parent, in.ParentSnap, in.Depth = &p.Container, &p.Snapshot, &p.Depth
		if p.URL != layout.SameAccount {
			in.ParentURL = &p.URL
		}
	}
	if i.Chunks != nil {
		in.Chunks, in.ChunkSize = &i.Chunks.Objects, &i.Chunks.ObjectSize
	}
	notes, err := logdisk.Children(ctx, c, layout.Position{})
	if err != nil {
		return err
	}
	in.Clones = []string{}
	for _, n := range notes {
		in.Clones = append(in.Clones, n.Container)
	}
	in.clones = notes
	if i.Root == "" {
		return nil
	}
	in.Root = &i.Root
	if i.Made.IsZero() { // it could not be read
		return nil
	}
	made := i.Made.UTC()
	in.Size, in.RootMade = i.Size, &made
	in.Runs, in.RunBytes, in.Log = &i.Runs.Count, &i.Runs.Bytes, &i.Log.Count
	if !i.Full {
		return nil
	}
	garbage, use := i.Garbage(), math.Round(i.Use()*10)/10
	in.Data, in.DataBytes, in.Live, in.Garbage, in.Use = &i.Data.Count, &i.Data.Bytes, &i.Live, &garbage, &use
	if i.Compressed {
		r := math.Round(i.Ratio()*10) / 10
		in.Compressed = &r
	}
	if i.Live > 0 {
		a := math.Round(float64(i.Data.Bytes)/float64(i.Live)*100) / 100
		in.Amplification = &a
	}
	return nil
}

// printLog prints the lines of a disk of version 2.
func (in *info) printLog(line func(key, format string, a ...any)) {
	switch {
	case in.Live != nil:
		line("Data", "%s in %s, %s", humanSize(*in.Live), words.Count(*in.Data, "object"), humanSize(*in.DataBytes))
		amplification := ""
		if in.Amplification != nil {
			amplification = fmt.Sprintf("; %.2f bytes are stored for each byte of data", *in.Amplification)
		}
		line("Use", "%.1f %% of the log, %s garbage%s", *in.Use, humanSize(*in.Garbage), amplification)
		if in.Compressed != nil {
			line("Compressed", "the data takes about %.1f %% of its bytes", *in.Compressed)
		}
	case in.Runs != nil:
		line("Use", "not known: --full reads the map, %s", humanSize(*in.RunBytes))
	}
	if in.Parent != nil {
		at := ""
		if in.ParentURL != nil {
			at = ", at " + store.OneLine(*in.ParentURL)
		}
		if *in.Depth > 1 {
			at += fmt.Sprintf(", with %d disks below it in all", *in.Depth)
		}
		line("Clone of", "%s@%s%s", store.OneLine(*in.Parent), store.OneLine(*in.ParentSnap), at)
	}
	if in.Chunks != nil {
		line("Converted", "what was not written since is in its objects of version 1, up to %d of %s", *in.Chunks, humanSize(*in.ChunkSize))
	}
	if len(in.clones) > 0 {
		line("Clones", "%s", logdisk.ListClones(in.clones))
	}
	if in.Root != nil && in.RootMade != nil {
		line("Root", "%s, written %s: %s of the map, %s", *in.Root, humanTime(*in.RootMade), words.Count(*in.Runs, "run"), humanSize(*in.RunBytes))
		line("Log", "%s since", words.Count(*in.Log, "object"))
	}
	switch *in.Opens {
	case opensNot:
		line("Opens", "NOT: %s", *in.OpensWhy)
	case opensLog:
		line("Opens", "after the map and the log were read")
	default:
		line("Opens", "at once: the map has all of the log")
	}
}
