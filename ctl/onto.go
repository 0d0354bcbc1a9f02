// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/increment"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// Onto
//
// An increment goes onto a disk that is a copy of the snapshot From: it has a
// snapshot that says so (layout.Pin.Of), and nobody has written to it since. When
// all is written, the disk gets a snapshot that says that it is a copy of To.
//
// Until then the item volume.KeyUpload of the container's metadata is
//
//	onto UUID FROM TO MARK
//
// with the names of the two roots, or - for nothing, and with the mark of the
// session that writes. If the disk's last session has this mark, then nobody has
// written to it but an upload of the same increment, which can be done again: it
// writes all that the first one has written.

// ontoRecord is what the item says.
type ontoRecord struct {
	of       layout.UUID
	from, to layout.Position
	mark     string
}

const ontoTag = "onto"

func (r ontoRecord) String() string {
	root := func(at layout.Position) string {
		if at.IsZero() {
			return "-"
		}
		return layout.RootText(at)
	}
	return fmt.Sprintf("%s %v %s %s %s", ontoTag, r.of, root(r.from), root(r.to), r.mark)
}

// parseOntoRecord reads the item. ok is false if it says nothing of an increment.
func parseOntoRecord(item string) (r ontoRecord, ok bool) {
	fields := strings.SplitN(item, " ", 5)
	if len(fields) != 5 || fields[0] != ontoTag || fields[4] == "" {
		return r, false
	}
	var err error
	if r.of, err = layout.ParseUUID(fields[1]); err != nil {
		return r, false
	}
	if r.from, ok = layout.ParseRootText(fields[2]); !ok && fields[2] != "-" {
		return r, false
	}
	r.to, ok = layout.ParseRootText(fields[3])
	r.mark = fields[4]
	return r, ok
}

// recordOf returns the record of an increment.
func recordOf(h increment.Header) ontoRecord {
	r := ontoRecord{of: h.UUID, to: h.To.Root}
	if h.From != nil {
		r.from = h.From.Root
	}
	return r
}

// onto writes the increment path onto the disk.
func (t *tool) onto(ctx context.Context, path, name string, o uploadOptions) error {
	begun := time.Now()
	c, err := t.open(name)
	if err != nil {
		return err
	}
	if err := c.writable(); err != nil {
		return err
	}
	in, size, err := t.openStream(ctx, path)
	if err != nil {
		return c.cut(ctx, err)
	}
	defer func() { _ = in.Close() }()
	r, err := increment.NewReader(bufio.NewReaderSize(in, 1<<20))
	if err != nil {
		return c.cut(ctx, fmt.Errorf("%s: %w", path, err))
	}
	h := r.Header
	state, err := t.readyOnto(ctx, c, h)
	if err != nil {
		return err
	}
	out := uploaded{Container: name, Version: volume.Version2, Size: h.To.Size, Snapshot: &h.To.Snapshot}
	if h.From != nil {
		out.Since = &h.From.Snapshot
	}
	list, err := logdisk.Snapshots(ctx, c.logOptions(t, state.Meta, nil, state, o.connections))
	if err != nil {
		return c.explain(ctx, err)
	}
	_, there, err := ontoWhich(name, state.Meta.UUID, h, list)
	if err != nil {
		return err
	}
	if there {
		return t.done(out, "Done, %s has the snapshot %s already", name, h.To.Snapshot)
	}
	d, s, err := t.openToWrite(ctx, c, o, logdisk.MinCache())
	if err != nil {
		return err
	}
	a := &applying{tool: t, container: c, device: d, store: s, reader: r, path: path, size: size, o: o}
	a.broken, a.fail = context.WithCancelCause(context.WithoutCancel(ctx))
	err = a.run(ctx, state)
	if err = a.end(ctx, err); err != nil {
		return err
	}
	out.Sent, out.Image, out.Seconds = a.sent.Load(), a.image, time.Since(begun).Seconds()
	return t.done(out, "Done, %s has the snapshot %s, %d bytes of data were sent", name, h.To.Snapshot, out.Sent)
}

// openStream opens a file that is read once. size is -1 if it is not known.
func (t *tool) openStream(ctx context.Context, path string) (in io.ReadCloser, size int64, err error) {
	if path == "-" {
		if f, ok := t.stdin.(*os.File); ok {
			if _, tty := terminal(f); tty {
				return nil, 0, errors.New("not reading an increment from a terminal")
			}
		}
		return io.NopCloser(&pipeReader{ctx: ctx, from: t.stdin}), -1, nil
	}
	f, err := openWaiting(ctx, path, os.O_RDONLY)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s: is a directory", path)
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return struct {
			io.Reader
			io.Closer
		}{&pipeReader{ctx: ctx, from: f}, f}, -1, nil
	}
	return f, info.Size(), nil
}

// readyOnto finds out how the disk is. It sets it up for an increment that is a
// whole disk.
func (t *tool) readyOnto(ctx context.Context, c *container, h increment.Header) (lease.State, error) {
	state, err := lease.Inspect(ctx, c.lease("", 0))
	if err == nil {
		err = c.checkPolicy(ctx, t.policy, true)
		if err != nil {
			return state, err
		}
	}
	if errors.Is(err, store.ErrContainerNotFound) || errors.Is(err, volume.ErrNotSetUp) {
		if h.From != nil {
			return state, fmt.Errorf("%s is not set up, and has to be a copy of %s@%s: begin with an increment without --since", c.name, h.Disk, h.From.Snapshot)
		}
		if _, err := t.setupLog(ctx, []string{c.name}, fmt.Sprint(h.To.Size), "", false); err != nil {
			return state, err
		}
		state, err = lease.Inspect(ctx, c.lease("", 0))
	}
	if err != nil {
		return state, c.explain(ctx, err)
	}
	if state.Meta.Version == volume.Version1 {
		return state, fmt.Errorf("%s: %w", c.name, device.ErrNoSnapshots)
	}
	if err := state.Meta.Need(volume.Version2); err != nil {
		return state, c.explain(ctx, err)
	}
	if err := state.Held(); err != nil {
		return state, fmt.Errorf("%s is %w", c.name, err)
	}
	return state, nil
}

// ontoWhich returns which of a disk's snapshots an increment goes onto: -1 if onto
// nothing. there says that the disk has what the increment brings.
func ontoWhich(name string, own layout.UUID, h increment.Header, list []logdisk.Snapshot) (i int, there bool, err error) {
	is := func(s logdisk.Snapshot, m increment.Moment) bool {
		return s.Of == layout.Copied{UUID: h.UUID, Root: m.Root} || own == h.UUID && s.Root == m.Root
	}
	var copies []string
	i = -1
	for k, s := range list {
		switch {
		case is(s, h.To):
			return k, true, nil
		case s.Name == h.To.Snapshot:
			return 0, false, fmt.Errorf("%s has another snapshot %s, which is no copy of %s@%s: delete it first", name, s.Name, h.Disk, h.To.Snapshot)
		case h.From != nil && is(s, *h.From):
			i = k
		}
		if s.Of.UUID == h.UUID {
			copies = append(copies, s.Name)
		}
	}
	if h.From == nil || i >= 0 {
		return i, false, nil
	}
	has := "it has none of that disk"
	if len(copies) > 0 {
		has = "the newest that it has is " + copies[len(copies)-1]
	}
	return 0, false, fmt.Errorf("%s has no copy of the snapshot %s of %s, onto which the increment goes: %s", name, h.From.Snapshot, h.Disk, has)
}

// applying is an increment on its way to a disk that is open.
type applying struct {
	tool      *tool
	container *container
	device    *device.Device
	store     store.Store // the container, for the record
	reader    *increment.Reader
	path      string
	size      int64 // of the file; -1: not known
	o         uploadOptions

	// broken ends with the first error of the disk, and fail ends it.
	broken context.Context
	fail   context.CancelCauseFunc

	begun bool  // something was written
	image int64 // bytes of the disk that the increment has
	sent  atomic.Int64
}

// run checks that the increment goes onto the disk as it is, writes it, and makes
// the snapshot.
func (a *applying) run(ctx context.Context, state lease.State) error {
	c, h := a.container, a.reader.Header
	md, err := a.store.Metadata(ctx)
	if err != nil {
		return c.explain(ctx, err)
	}
	note := func(r ontoRecord) error {
		return c.explain(ctx, a.store.SetMetadata(ctx, map[string]string{volume.KeyUpload: r.String()}))
	}
	record := recordOf(h)
	record.mark = md.Items[volume.KeyClient]
	was, unfinished := parseOntoRecord(md.Items[volume.KeyUpload])
	if unfinished = unfinished && was.mark == a.device.Meta().Last; unfinished {
		// From now on it is this session's, also if that changes nothing.
		was.mark = record.mark
		if err := note(was); err != nil {
			return err
		}
	}
	list, written := a.device.Copies()
	i, there, err := ontoWhich(c.name, a.device.Meta().UUID, h, list)
	if err != nil || there {
		return err
	}
	// A disk that was converted may end within a block, and no other one does.
	if size := a.device.Size(); size != h.To.Size && size != (h.To.Size+layout.BlockSize-1)/layout.BlockSize*layout.BlockSize {
		return fmt.Errorf("%s has %d bytes, and %s@%s has %d: give it that size first (swiftnbd-ctl resize)", c.name, a.device.Size(), h.Disk, h.To.Snapshot, h.To.Size)
	}
	if !unfinished || was != record {
		if err := a.unchanged(ctx, state, list, written, i); err != nil {
			return err
		}
		if err := note(record); err != nil {
			return err
		}
	}
	a.begun = true
	if err := a.apply(ctx); err != nil {
		return err
	}
	if rest := a.device.Size() - h.To.Size; rest > 0 {
		if err := a.device.Zero(h.To.Size, rest, false, false); err != nil {
			return err
		}
	}
	if err := a.device.Sync(); err != nil {
		return err
	}
	return a.device.SnapshotOf(ctx, h.To.Snapshot, layout.Copied{UUID: h.UUID, Root: h.To.Root})
}

// errChanged ends the look for changes.
var errChanged = errors.New("it has changed")

// unchanged refuses a disk that is not what snapshot i is, or that is not empty if
// i is -1.
func (a *applying) unchanged(ctx context.Context, state lease.State, list []logdisk.Snapshot, written []bool, i int) error {
	what := logdisk.DiffOptions{Exact: true}
	if i >= 0 {
		if !written[i] {
			return nil
		}
		what.From = list[i].Name
	}
	c := a.container
	o := c.logOptions(a.tool, a.device.Meta(), nil, state, a.o.connections)
	o.Newest += 16 // our own lease, which is behind those that were there
	x, err := logdisk.OpenDiff(ctx, o, what)
	if err != nil {
		return c.explain(ctx, err)
	}
	defer x.Close()
	var at int64
	err = x.Changes(ctx, func(change logdisk.Change) error {
		at = change.Off
		return errChanged
	})
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, errChanged):
		return c.explain(ctx, err)
	case i < 0:
		return fmt.Errorf("%s has data, and the increment is a whole disk, which goes to an empty one", c.name)
	}
	return fmt.Errorf("%s was written to since it became the copy %s, at byte %d: the increment does not go onto that (swiftnbd-ctl revert drops it)", c.name, list[i].Name, at)
}

// apply writes the increment's records to the disk, some beside each other.
func (a *applying) apply(ctx context.Context) error {
	bar := a.tool.newProgress("Uploading "+a.container.name, max(a.size, 1), true, a.o.quiet)
	defer func() { bar.end(false) }()
	places := max(2, min(a.o.connections, uploadMemory/increment.MaxData))
	free := make(chan []byte, places)
	for range places {
		free <- nil
	}
	var writers sync.WaitGroup
	defer writers.Wait()
	for {
		var p []byte
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.broken.Done():
			return context.Cause(a.broken)
		case p = <-free:
		}
		rec, err := a.reader.Next(p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", a.path, err)
		}
		a.image += rec.Len
		writers.Go(func() {
			if err := a.write(rec); err != nil {
				a.fail(err)
			}
			bar.add(int64(len(rec.Data)))
			if rec.Data != nil {
				p = rec.Data
			}
			free <- p
		})
	}
	writers.Wait()
	bar.end(true)
	return context.Cause(a.broken)
}

func (a *applying) write(rec increment.Record) error {
	if rec.Data == nil {
		return a.device.Zero(rec.Off, rec.Len, false, false)
	}
	_, err := a.device.WriteAt(rec.Data, rec.Off)
	a.sent.Add(int64(len(rec.Data)))
	return err
}

// end gives the disk back, after run has returned err.
func (a *applying) end(ctx context.Context, err error) error {
	c := a.container
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
	defer cancel()
	if err == nil {
		if rerr := a.store.SetMetadata(within, map[string]string{volume.KeyUpload: ""}); rerr != nil {
			a.tool.log.DebugContext(ctx, "the record of the increment stays", "error", rerr)
		}
	}
	lost, err := a.tool.giveBack(ctx, within, c, a.device, context.Cause(a.broken) != nil, err)
	switch {
	case lost:
		return fmt.Errorf("%s was unlocked while it was uploaded: it is not complete", c.name)
	case err == nil:
		return nil
	case !a.begun:
		return err
	}
	return fmt.Errorf("%w; the increment is not complete: run the same command again", c.explain(ctx, err))
}
