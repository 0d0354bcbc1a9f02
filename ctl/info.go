// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/volume"
)

func (t *tool) infoCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "info CONTAINER",
		Short: "Show all that is known of a container",
		Long: `Show all that is known of a container: the disk's shape, who holds it since
when, the lease and when it ends, whether Swift itself refuses the writes of
those who do not hold it, and the map of what is in it.`,
		Args: needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			in, err := t.inform(ctx, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(t.stdout)
				enc.SetIndent("", "  ")
				enc.SetEscapeHTML(false)
				return enc.Encode(in)
			}
			return t.printInfo(in)
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

// The kinds of lock, of fencing and of map, as info names them.
const (
	lockNone  = "none"
	lockMark  = "mark"
	lockLease = "lease"

	fenceTempURL = "tempurl"
	fenceNone    = "none"
	fenceReady   = "available"

	mapSaved = "saved"
	mapBlank = "blank"
	mapNone  = "none"
	mapInUse = "in use"
)

// info is what there is to know of a container. What does not apply is null.
type info struct {
	Container  string     `json:"container"`
	Version    int        `json:"version"`
	Size       int64      `json:"size"`
	Objects    int64      `json:"objects"`
	ObjectSize int64      `json:"object_size"`
	ReadOnly   bool       `json:"read_only"`
	Stored     int64      `json:"stored_objects"`
	Bytes      int64      `json:"stored_bytes"`
	Lock       string     `json:"lock"` // none, mark or lease
	Holder     *string    `json:"holder"`
	Since      *time.Time `json:"since"`
	Lease      *int64     `json:"lease"` // its number
	Until      *time.Time `json:"lease_until"`
	Expired    bool       `json:"lease_expired"`
	Fencing    string     `json:"fencing"`        // tempurl, available or none
	FencingWhy *string    `json:"fencing_reason"` // why there is none
	Map        string     `json:"map"`            // saved, blank, none, or in use
	MapSession *string    `json:"map_session"`
	Known      *int64     `json:"map_known"`
	Holes      *int64     `json:"map_holes"`
	Last       *string    `json:"last"`
}

// inform asks Swift.
func (t *tool) inform(ctx context.Context, name string) (*info, error) {
	c, err := t.open(name)
	if err != nil {
		return nil, err
	}
	state, err := lease.Inspect(ctx, c.lease("", 0))
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	g := state.Meta.Geometry
	in := &info{
		Container: name, Version: state.Meta.Version, Size: g.Size(), Objects: g.Objects(), ObjectSize: g.ObjectSize(),
		ReadOnly: c.export.ReadOnly, Stored: state.Objects, Bytes: state.Bytes, Lock: lockNone,
	}
	if state.Meta.Last != "" {
		in.Last = &state.Meta.Last
	}
	if state.Mark != "" {
		in.Lock, in.Holder = lockMark, &state.Holder
		if !state.Since.IsZero() {
			at := state.Since.UTC()
			in.Since = &at
		}
	}
	if state.Leased {
		in.Lock, in.Lease, in.Expired = lockLease, &state.Epoch, state.Expired
		if !state.Never {
			at := state.Until.UTC()
			in.Until = &at
		}
	}
	if err := c.fencing(ctx, state, in); err != nil {
		return nil, c.explain(ctx, err)
	}
	return in, c.explain(ctx, c.mapped(ctx, state, in))
}

// fencing finds out whether Swift refuses writes without the lease's signature.
func (c *container) fencing(ctx context.Context, state lease.State, in *info) error {
	var err error
	grant, ok := state.Grant()
	if ok {
		in.Fencing = fenceTempURL
		err = c.client.CheckFence(ctx, c.name, grant)
	} else {
		// Nobody has opened it for writing yet, or not with a lease.
		in.Fencing = fenceReady
		err = c.client.CanFence(ctx)
	}
	if errors.Is(err, swiftstore.ErrNoFence) || errors.Is(err, store.ErrFenced) {
		why := oneLine{err}.Error()
		in.Fencing, in.FencingWhy, err = fenceNone, &why, nil
	}
	return err
}

// mapped finds out what the map says.
func (c *container) mapped(ctx context.Context, state lease.State, in *info) error {
	meta := state.Meta
	switch {
	case meta.Blank:
		in.Map = mapBlank
	case meta.Map != "":
		v, warning := volume.Open(ctx, c, meta, true)
		if warning != nil {
			in.Map = mapNone
			return nil
		}
		known, holes, err := v.Count(ctx)
		if err != nil {
			return err
		}
		in.Map, in.MapSession, in.Known, in.Holes = mapSaved, &meta.Map, &known, &holes
	case meta.Client != "":
		in.Map = mapInUse
	default:
		in.Map = mapNone
	}
	return nil
}

// printInfo prints a line a fact, for people.
func (t *tool) printInfo(in *info) error {
	w := tabwriter.NewWriter(t.stdout, 0, 0, 2, ' ', 0)
	line := func(key, format string, a ...any) { fmt.Fprintf(w, "%s:\t%s\n", key, fmt.Sprintf(format, a...)) }
	access := "read-write"
	if in.ReadOnly {
		access = "read-only"
	}
	line("Container", "%s", in.Container)
	line("Size", "%s (%d bytes)", humanSize(in.Size), in.Size)
	line("Objects", "%d of %s", in.Objects, humanSize(in.ObjectSize))
	line("Stored", "about %d objects, %s", in.Stored, humanSize(in.Bytes))
	line("Format", "version %d", in.Version)
	line("Access", "%s", access)
	switch {
	case in.Holder == nil:
		line("Lock", "unlocked")
	case in.Since == nil:
		line("Lock", "%s", *in.Holder)
	default:
		line("Lock", "%s%s", *in.Holder, since(*in.Since))
	}
	switch {
	case in.Lock == lockMark:
		line("Lease", "none: swiftnbd 0.11's mark only, which does not end by itself")
	case in.Lock == lockNone:
		line("Lease", "none")
	case in.Until == nil:
		line("Lease", "number %d, without an end", *in.Lease)
	case in.Expired:
		line("Lease", "number %d, over since %s: whoever comes takes the disk over", *in.Lease, humanTime(*in.Until))
	default:
		line("Lease", "number %d, until %s unless it is renewed", *in.Lease, humanTime(*in.Until))
	}
	switch in.Fencing {
	case fenceTempURL:
		line("Fencing", "by Swift: it refuses writes that are not signed with the disk's key (TempURL)")
	case fenceReady:
		line("Fencing", "by Swift (TempURL), from the first session with a lease on")
	default:
		line("Fencing", "none: %s", *in.FencingWhy)
	}
	switch in.Map {
	case mapSaved:
		line("Map", "saved by %s: %d chunks with data, %d holes, %d unknown", *in.MapSession, *in.Known, *in.Holes, in.Objects-*in.Known-*in.Holes)
	case mapBlank:
		line("Map", "not needed: nothing was ever written")
	case mapInUse:
		line("Map", "none while the disk is in use")
	default:
		line("Map", "none: the last session was not ours, or did not end well")
	}
	if in.Last != nil {
		holder, at := lease.ParseMark(*in.Last)
		line("Last used", "by %s%s", holder, since(at))
	}
	return w.Flush()
}
