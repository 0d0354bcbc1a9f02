// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/volume"
	"swiftnbd/internal/words"
)

func (t *tool) infoCommand() *cobra.Command {
	var full bool
	cmd := &cobra.Command{
		Use:   "info CONTAINER",
		Short: "Show what is known of a container",
		Long: `Show what is known of a container: the size of the disk and of its objects, who
holds the lock and since when, when the lease ends, whether Swift itself refuses
writes by anybody who does not hold the lease, and the map of the chunks. Of a disk
of version 2 it shows how much of the log is in use, and what opening it reads.`,
		Args: needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			in, err := t.inform(ctx, args[0], full)
			if err != nil {
				return err
			}
			if t.json {
				return t.encode(in)
			}
			return t.printInfo(in)
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	cmd.Flags().BoolVar(&full, "full", false, "of version 2, read the map however large it is, to find out how much of the log is in use")
	t.jsonFlag(cmd)
	return cmd
}

// The kinds of lock, of fencing and of map, as info names them.
const (
	lockNone  = "none"
	lockMark  = "mark"
	lockLease = "lease"

	fenceTempURL = "tempurl"
	fenceExpiry  = "expiry"
	fenceNone    = "none"
	fenceReady   = "available"

	mapSaved = "saved"
	mapBlank = "blank"
	mapNone  = "none"
	mapInUse = "in use"
)

// info is all that is known of a container. A field that does not apply is
// null.
type info struct {
	Container  string     `json:"container"`
	Version    int        `json:"version"`
	Size       int64      `json:"size"`
	Objects    *int64     `json:"objects"`     // of version 1
	ObjectSize *int64     `json:"object_size"` // of version 1
	ReadOnly   bool       `json:"read_only"`
	MayLock    bool       `json:"may_lock"`
	Stored     int64      `json:"stored_objects"`
	Bytes      int64      `json:"stored_bytes"`
	Lock       string     `json:"lock"` // none, mark or lease
	Holder     *string    `json:"holder"`
	Since      *time.Time `json:"since"`
	Lease      *int64     `json:"lease"` // its number
	Until      *time.Time `json:"lease_until"`
	Expired    bool       `json:"lease_expired"`
	Fencing    string     `json:"fencing"`        // tempurl, expiry, available or none
	FencingWhy *string    `json:"fencing_reason"` // why there is none
	Map        string     `json:"map"`            // saved, blank, none, or in use
	MapSession *string    `json:"map_session"`
	Known      *int64     `json:"map_known"`
	Holes      *int64     `json:"map_holes"`
	Last       *string    `json:"last"`
	Policy     *string    `json:"policy"`
	Warnings   []string   `json:"warnings"` // what will hurt; never null

	clones  []layout.Note
	foreign bool // the account is another's, and shows no key of the fence

	logInfo
	versioned
}

// versioned says in the JSON of info and list what Swift does with objects that
// are overwritten or deleted.
type versioned struct {
	Versions *string `json:"versions"`           // stack, history, enabled, suspended; null: older versions are not kept
	Archive  *string `json:"versions_container"` // with stack and history, the container that keeps them
}

func versionsOf(v store.Versions) (out versioned) {
	kind := ""
	switch {
	case v.Stack != "":
		kind = "stack"
	case v.History != "":
		kind = "history"
	case v.Enabled:
		kind = "enabled"
	case v.Suspended:
		kind = "suspended"
	default:
		return out
	}
	out.Versions = &kind
	if archive := v.Archive(); archive != "" {
		out.Archive = &archive
	}
	return out
}

// inform asks Swift for everything that info shows.
func (t *tool) inform(ctx context.Context, name string, full bool) (*info, error) {
	c, err := t.open(name)
	if err != nil {
		return nil, err
	}
	state, err := c.inspect(ctx)
	if err != nil {
		return nil, err
	}
	g := state.Meta.Geometry
	in := &info{
		Container: name, Version: state.Meta.Version, Size: state.Meta.Size,
		ReadOnly: c.export.ReadOnly, Stored: state.Objects, Bytes: state.Bytes, Lock: lockNone,
		versioned: versionsOf(state.Meta.Versions),
	}
	if objects, objectSize := g.Objects(), g.ObjectSize(); state.Meta.Version == volume.Version1 {
		in.Objects, in.ObjectSize = &objects, &objectSize
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
	if in.MayLock, err = c.client.MayLock(ctx, name); err != nil {
		return nil, c.explain(ctx, err)
	}
	if err := c.fencing(ctx, state, in); err != nil {
		return nil, c.explain(ctx, err)
	}
	if state.Meta.Version == volume.Version2 {
		if err := t.inspectLog(ctx, c, state, full, in); err != nil {
			return nil, c.explain(ctx, err)
		}
	}
	if err := c.mapped(ctx, state, in); err != nil {
		return nil, c.explain(ctx, err)
	}
	return in, c.explain(ctx, c.hurts(ctx, state.Meta.Versions, in))
}

// fencing finds out whether Swift refuses writes without the lease's signature.
func (c *container) fencing(ctx context.Context, state lease.State, in *info) error {
	var err error
	grant, ok := state.Grant()
	if !ok && !in.MayLock {
		why := "these credentials may not lock it, and write nothing"
		in.Fencing, in.FencingWhy = fenceNone, &why
		return nil
	}
	if ok {
		in.Fencing = fenceTempURL
		err = c.client.SeeFence(ctx, c.name, grant)
		if err == nil && c.client.FencedByAccount() {
			in.Fencing = fenceExpiry
		}
	} else {
		// The disk was not opened for writing with a lease yet.
		in.Fencing = fenceReady
		if err = c.client.CanFence(ctx); err == nil {
			in.foreign, err = c.client.Foreign(ctx)
		}
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
		v, warning := chunked.Open(ctx, c, meta, true)
		if warning != nil {
			in.Map = mapNone
			return nil
		}
		known, holes, err := v.Count(ctx)
		if err != nil {
			return err
		}
		in.Map, in.MapSession, in.Known, in.Holes = mapSaved, &meta.Map, &known, &holes
	case meta.Client != "" && meta.Version == volume.Version1:
		in.Map = mapInUse
	default:
		in.Map = mapNone
	}
	return nil
}

// printInfo prints one line for each fact, for people.
func (t *tool) printInfo(in *info) error {
	w := tabwriter.NewWriter(t.stdout, 0, 0, 2, ' ', 0)
	line := func(key, format string, a ...any) { fmt.Fprintf(w, "%s:\t%s\n", key, fmt.Sprintf(format, a...)) }
	access := "read-write"
	if in.ReadOnly {
		access = "read-only"
	}
	if !in.MayLock {
		access = "read-only: it is another account's, and these credentials may read it and not lock it"
	}
	line("Container", "%s", in.Container)
	line("Size", "%s (%d bytes)", humanSize(in.Size), in.Size)
	if in.Objects != nil {
		line("Objects", "%d of %s", *in.Objects, humanSize(*in.ObjectSize))
	}
	line("Stored", "about %s, %s", words.Count(in.Stored, "object"), humanSize(in.Bytes))
	line("Format", "version %d", in.Version)
	if in.Policy != nil {
		line("Policy", "%s", *in.Policy)
	}
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
	case fenceExpiry:
		line("Fencing", "by Swift, when the lease ends: it refuses writes whose signature is over (TempURL with the account's key); unlock does not end one before")
	case fenceReady:
		when := "by Swift (TempURL), from the first session with a lease on"
		if in.foreign {
			when += ", if it is the owner's or an account ACL gives it \"admin\": Swift lets no other credentials set the key, nor see one"
		}
		line("Fencing", "%s", when)
	default:
		line("Fencing", "none: %s", *in.FencingWhy)
	}
	switch {
	case in.Version != volume.Version1: // it has none
	case in.Map == mapSaved:
		line("Map", "saved by %s: %s with data, %s, %d unknown", *in.MapSession, words.Count(*in.Known, "chunk"), words.Count(*in.Holes, "hole"), *in.Objects-*in.Known-*in.Holes)
	case in.Map == mapBlank:
		line("Map", "not needed: nothing was ever written")
	case in.Map == mapInUse:
		line("Map", "none while the disk is in use")
	default:
		line("Map", "none: the last session was not ours, or did not end well")
	}
	if in.Version == volume.Version2 {
		in.printLog(line)
	}
	switch {
	case in.Versions == nil:
	case *in.Versions == "stack":
		line("Versions", "not fit to be written: the container %v", &store.RestoresError{Container: in.Container, Archive: *in.Archive})
	case *in.Versions == "history":
		line("Versions", "whatever is overwritten or deleted is kept in %s (X-History-Location)", *in.Archive)
	case *in.Versions == "enabled":
		line("Versions", "whatever is overwritten or deleted is kept in the container (X-Versions-Enabled)")
	default:
		line("Versions", "none are kept now; the container may hold some from before (X-Versions-Enabled: False)")
	}
	if in.Last != nil {
		holder, at := lease.ParseMark(*in.Last)
		line("Last used", "by %s%s", holder, since(at))
	}
	for _, warning := range in.Warnings {
		line("Warning", "%s", warning)
	}
	return w.Flush()
}
