// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
	"swiftnbd/internal/words"
)

// verifyGC is by how many percent the heap may grow between collections while a disk of
// version 2 is verified: docs/LOG.md, "Checking all of it".
const verifyGC = 25

// verifying says how verify was called.
type verifying struct {
	quick, repair, quiet bool
	connections          int
}

func (t *tool) verifyCommand() *cobra.Command {
	var v verifying
	cmd := &cobra.Command{
		Use:   "verify CONTAINER",
		Short: "Check everything that Swift has of a disk",
		Long: `Check everything that Swift has of a disk. Of a disk of version 2: the root, the
map, each data object that is needed, and each block in it, against their
checksums and against each other. Of a disk of version 1: each object's size, and
its content against its checksum.

The command refuses a locked container. It holds the lock while it reads. It
changes nothing without --repair.

The exit status is 0 if all is well, 3 if there are only stray objects, which
nothing needs, and 4 if something is damaged or lost.`,
		Args: needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			return t.verify(ctx, args[0], v)
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	f := cmd.Flags()
	f.BoolVar(&v.quick, "quick", false, "check that all objects are there, and what they say of themselves, and do not read the data")
	f.BoolVar(&v.repair, "repair", false, "do what needs no guess: delete stray objects, and write the name of the newest root anew")
	f.BoolVarP(&v.quiet, "quiet", "q", false, "show no progress bar")
	connectionsFlag(cmd, &v.connections)
	t.jsonFlag(cmd)
	return cmd
}

// verified is the result of verify in JSON. Every key is always there; what does
// not apply is null.
type verified struct {
	Container  string        `json:"container"`
	Version    int           `json:"version"`
	Size       int64         `json:"size"`
	Quick      bool          `json:"quick"`
	Verdict    string        `json:"verdict"` // clean, strays or damaged
	Root       *string       `json:"root"`    // of version 2: the newest
	Runs       *int64        `json:"runs"`
	Objects    int64         `json:"objects"` // data objects that were checked
	Bytes      int64         `json:"bytes"`   // of them
	Live       *int64        `json:"live_bytes"`
	DeadFrames *int64        `json:"unneeded_damaged_blocks"`
	Damage     []damageFound `json:"damage"`
	LostKnown  bool          `json:"losses_known"` // an object that is missing would have been noticed
	Judged     bool          `json:"strays_known"`
	Strays     int64         `json:"strays"`
	StrayBytes int64         `json:"stray_bytes"`
	Waiting    int64         `json:"strays_too_young"`
	Unfinished int64         `json:"unfinished"`
	Foreign    []string      `json:"foreign"`
	Deleted    int64         `json:"deleted"`
	RootNoted  bool          `json:"root_noted"`
	Parent     *string       `json:"parent"` // of a clone: what it has not written itself is checked there
}

// damageFound is one object that is damaged or lost.
type damageFound struct {
	Object string       `json:"object"`
	Lost   bool         `json:"lost"`
	Why    string       `json:"why"`
	Bytes  int64        `json:"bytes"`  // of the disk
	Ranges []rangeFound `json:"ranges"` // where they are, the first ones
}

type rangeFound struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// The verdicts.
const (
	verdictClean   = "clean"
	verdictStrays  = "strays"
	verdictDamaged = "damaged"
)

// verify checks the disk under the container's lock.
func (t *tool) verify(ctx context.Context, name string, v verifying) error {
	c, err := t.open(name)
	if err != nil {
		return err
	}
	state, err := c.inspect(ctx)
	if err != nil {
		return err
	}
	if err := state.Held(); err != nil {
		return fmt.Errorf("%s is %w: not verified, what a server writes meanwhile would look like damage", name, err)
	}
	t.warnOfVersions(name, state.Meta)
	held, meta, err := c.mark(ctx, holderVerify, downloadTerm)
	if err != nil {
		return c.explain(ctx, err)
	}
	var out *verified
	if meta.Version == volume.Version2 {
		out, err = t.verifyLog(ctx, c, meta, held, state, v)
	} else if err = meta.Need(volume.Version1); err == nil {
		out, err = t.verifyChunks(ctx, c, meta, v)
	}
	lost := held.Fence().Lost()
	if uerr := c.release(ctx, held); errors.Is(uerr, lease.ErrLost) || lost != nil {
		return fmt.Errorf("%s was unlocked while it was verified: the result is not to be trusted", name)
	} else if uerr != nil {
		t.fault(fmt.Errorf("%s stays locked: %w", name, oneLine{uerr}))
		if err == nil {
			err = errReported
		}
	}
	if out == nil {
		return c.explain(ctx, err)
	}
	if perr := t.printVerified(out, v); perr != nil {
		return perr
	}
	if err != nil {
		if errors.Is(err, errReported) {
			return err
		}
		return c.explain(ctx, err)
	}
	switch out.Verdict {
	case verdictStrays:
		return verdictError(exitStrays)
	case verdictDamaged:
		return verdictError(exitDamage)
	}
	return nil
}

// verifyLog checks a disk of version 2. If the repair fails it returns both what
// was found and the error.
func (t *tool) verifyLog(ctx context.Context, c *container, meta volume.Meta, held *lease.Held, state lease.State, v verifying) (*verified, error) {
	o := c.logOptions(t, meta, held, state, v.connections)
	o.Timeout, o.Horizon = t.pace.verify, t.pace.youngest
	bar := &progress{}
	defer func() { bar.end(false) }()
	defer debug.SetGCPercent(debug.SetGCPercent(verifyGC))
	r, err := logdisk.Verify(ctx, o, logdisk.VerifyOptions{
		Quick: v.quick, Repair: v.repair,
		Held: func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return held.Fence().Check()
		},
		Begin: func(total int64) {
			bar = t.newProgress("Verifying "+c.name, max(total, 1), !v.quick, v.quiet)
		},
		Add: func(n int64) { bar.add(n) },
	})
	bar.end(err == nil)
	if r == nil {
		return nil, err
	}
	liveBytes := r.Live * 4096
	out := &verified{
		LostKnown: !r.Unmapped,
		Container: c.name, Version: meta.Version, Size: r.Size, Quick: v.quick,
		Runs: &r.Runs, Objects: r.Data.Count + r.Chunks.Count, Bytes: r.Data.Bytes + r.Chunks.Bytes, Live: &liveBytes, DeadFrames: &r.DeadFrames,
		Damage: []damageFound{}, Judged: r.Judged, Strays: r.Strays.Count, StrayBytes: r.Strays.Bytes, Waiting: r.Waiting.Count,
		Unfinished: r.Unfinished.Count, Foreign: append([]string{}, r.Foreign...), Deleted: r.Deleted.Count, RootNoted: r.HintFixed,
	}
	if r.Base != nil {
		parent := r.Base.Container + "@" + r.Base.Snapshot
		out.Parent = &parent
	}
	if r.Root != "" {
		out.Root = &r.Root
	} else {
		out.Size = meta.Size
	}
	for _, f := range r.Damage {
		found := damageFound{Object: f.Object, Lost: f.Lost, Why: f.Why, Bytes: f.Blocks * 4096, Ranges: []rangeFound{}}
		for _, part := range f.Ranges {
			found.Ranges = append(found.Ranges, rangeFound{part.Off, part.Len})
		}
		out.Damage = append(out.Damage, found)
	}
	out.judge()
	return out, err
}

// judge sets the verdict.
func (v *verified) judge() {
	switch {
	case len(v.Damage) > 0:
		v.Verdict = verdictDamaged
	case v.Strays > v.Deleted:
		v.Verdict = verdictStrays
	default:
		v.Verdict = verdictClean
	}
}

// printVerified prints what verify has found.
func (t *tool) printVerified(out *verified, v verifying) error {
	if t.json {
		return t.encode(out)
	}
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	for _, d := range out.Damage {
		what := "damaged"
		if d.Lost {
			what = "lost"
		}
		where := ""
		if d.Bytes > 0 {
			where = fmt.Sprintf("; %s of the disk", humanSize(d.Bytes))
			for i, r := range d.Ranges {
				if i == 4 {
					where += ", …"
					break
				}
				where += fmt.Sprintf(", %s from byte %d on", humanSize(r.Length), r.Offset)
			}
		}
		line("%s: %s: %s%s", what, store.OneLine(d.Object), d.Why, where)
	}
	for i, name := range out.Foreign {
		if i == 3 {
			line("and %d more that are not of the disk", len(out.Foreign)-i)
			break
		}
		line("not of the disk: %s", store.OneLine(name))
	}
	if out.DeadFrames != nil && *out.DeadFrames > 0 {
		line("%s damaged that nothing needs", words.Count(*out.DeadFrames, "block"))
	}
	if out.RootNoted {
		line("repaired: the container names the newest root, %s", *out.Root)
	}
	if v.repair && out.Version == volume.Version1 {
		line("nothing is repaired: --repair is for disks of version 2")
	}
	if out.Deleted > 0 {
		line("repaired: %s deleted", words.Count(out.Deleted, "stray object"))
	}
	if left := out.Strays - out.Deleted; left > 0 {
		hint := " (--repair deletes them)"
		if v.repair {
			hint = " (not deleted: something is damaged, and they may have what is left of it)"
		}
		line("%s, %s in all, that nothing needs%s", words.Count(left, "stray object"), humanSize(out.StrayBytes), hint)
	}
	if out.Waiting > 0 {
		line("%s that nothing needs, too young to be deleted", words.Count(out.Waiting, "object"))
	}
	if out.Unfinished > 0 {
		line("%s of a session that died, which the next session drops", words.Count(out.Unfinished, "object"))
	}
	if !out.LostKnown {
		line("no map says which objects there were: one that is missing reads as zeroes, and is not noticed")
	}
	if !out.Judged {
		line("what nothing needs is not known")
	}
	if out.Parent != nil {
		line("a clone of %s: what it has not written itself is checked there, not here", store.OneLine(*out.Parent))
	}
	how := "every byte"
	if v.quick {
		how = "not the data"
	}
	verdict := map[string]string{verdictClean: "it is clean", verdictStrays: "it is whole, with stray objects", verdictDamaged: "it is DAMAGED"}[out.Verdict]
	line("Done, %s: %s, %s, checked %s: %s", out.Container, words.Count(out.Objects, "object"), humanSize(out.Bytes), how, verdict)
	_, err := t.stdout.Write([]byte(b.String()))
	return err
}
