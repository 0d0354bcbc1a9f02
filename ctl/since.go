// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"swiftnbd/internal/increment"
	"swiftnbd/internal/logdisk"
)

// formatIncrement is what has changed from one snapshot to another, as a file
// (docs/INCREMENT.md).
const formatIncrement = "increment"

// sinceOptions are the options of a download of what has changed.
type sinceOptions struct {
	since       string // the snapshot that the target holds; empty: nothing
	format      string
	connections int
	quiet       bool
}

// changesTarget takes what has changed, in any order, from one goroutine.
type changesTarget interface {
	// put writes a range; p is nil if it reads as zeroes.
	put(off, n int64, p []byte) error
	// commit makes it durable, and abort gives up.
	commit() error
	abort(err error) error
}

// downloadSince writes what has changed since a snapshot: into a raw image that
// holds that snapshot, or as an increment.
func (t *tool) downloadSince(ctx context.Context, name, snap, path string, o sinceOptions) error {
	begun := time.Now()
	switch {
	case o.format != "" && o.format != formatRaw && o.format != formatIncrement:
		return usagef("--since and --image-format %s exclude each other: only a raw image can be changed in place", o.format)
	case snap == "":
		return usagef("%s names no snapshot: expected %s@SNAPSHOT, with which the next increment begins", name, name)
	case o.since == snap:
		return usagef("--since %s: that is the same snapshot", snap)
	case o.since != "":
		if err := logdisk.CheckSnapshotName(o.since); err != nil {
			return usagef("--since: %w", err)
		}
	}
	c, x, err := t.openDiff(ctx, name, o.since, snap, true, o.connections)
	if err != nil {
		return err
	}
	defer x.Close()
	var to changesTarget
	out := downloaded{Container: name, Snapshot: &snap, Version: 2, Size: x.To.Size, Format: formatRaw}
	if o.since != "" {
		out.Since = &o.since
	}
	stream := false
	if o.format == formatIncrement {
		f, err := openIncrement(ctx, path, t.stdout, headerOf(name, x))
		if err != nil {
			return c.cut(ctx, err)
		}
		to, stream, out.Format = f, f.final == "", formatIncrement
	} else if to, err = openPatched(path, x); err != nil {
		return err
	}
	bar := t.newProgress("Downloading "+name, max(x.To.Size, 1), true, o.quiet)
	defer func() { bar.end(false) }()
	err = x.Copy(ctx, o.connections, func(off, n int64, p []byte) error {
		out.Fetched += int64(len(p))
		bar.add(int64(len(p)))
		return to.put(off, n, p)
	})
	if err == nil {
		err = c.cut(ctx, to.commit())
	} else {
		err = to.abort(c.explain(ctx, err))
	}
	if err != nil {
		return err
	}
	bar.end(true)
	out.Seconds = time.Since(begun).Seconds()
	if stream && !t.json {
		return nil
	}
	return t.done(out, "Done, %d bytes of data that have changed, the disk has %d bytes", out.Fetched, out.Size)
}

// headerOf returns the header of an increment.
func headerOf(name string, x *logdisk.Diff) increment.Header {
	moment := func(m logdisk.Moment) increment.Moment { return increment.Moment(m) }
	h := increment.Header{UUID: x.UUID, Disk: name, To: moment(x.To)}
	if x.From.Snapshot != "" {
		from := moment(x.From)
		h.From = &from
	}
	return h
}

// incrementFile is an increment that is written. A file appears as a whole or not
// at all.
type incrementFile struct {
	file  *os.File
	buf   *bufio.Writer
	w     *increment.Writer
	final string // its name once it is complete; empty: a stream
}

// openIncrement opens what an increment is written to. "-" is standard output.
func openIncrement(ctx context.Context, path string, stdout io.Writer, h increment.Header) (*incrementFile, error) {
	f := &incrementFile{}
	info, err := os.Stat(path)
	switch {
	case path == "-":
		if f.file, err = streamOf(stdout, "an increment"); err != nil {
			return nil, err
		}
	case err == nil && info.IsDir():
		return nil, fmt.Errorf("%s: is a directory", path)
	case err == nil && isBlockDevice(info.Mode()):
		return nil, fmt.Errorf("%s: an increment goes to a file or a pipe, and not to a block device", path)
	case err == nil && !info.Mode().IsRegular():
		if f.file, err = openWaiting(ctx, path, os.O_WRONLY); err != nil {
			return nil, err
		}
	case err == nil || errors.Is(err, fs.ErrNotExist):
		f.final = path
		if real, err := filepath.EvalSymlinks(path); err == nil { // the target of a link is replaced, not the link
			f.final = real
		}
		if f.file, err = createBeside(f.final); err != nil {
			return nil, err
		}
		if info != nil {
			if err := f.file.Chmod(info.Mode().Perm()); err != nil {
				return nil, f.abort(err)
			}
		}
	default:
		return nil, err
	}
	var out io.Writer = f.file
	if f.final == "" {
		out = &pipeWriter{ctx: ctx, to: f.file}
	}
	f.buf = bufio.NewWriterSize(out, 1<<20)
	if f.w, err = increment.NewWriter(f.buf, h); err != nil {
		return nil, f.abort(err)
	}
	return f, nil
}

// createBeside makes a hidden file beside path.
func createBeside(path string) (*os.File, error) {
	dir, base := filepath.Split(path)
	for range 100 {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf(".%.200s.partial-%08x", base, rand.Uint32())), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if !errors.Is(err, fs.ErrExist) {
			return f, err
		}
	}
	return nil, fmt.Errorf("%s: cannot find a name for a file beside it", path)
}

func (f *incrementFile) put(off, n int64, p []byte) error {
	if p == nil {
		return f.w.Zero(off, n)
	}
	for len(p) > 0 {
		part := p[:min(len(p), increment.MaxData)]
		if err := f.w.Data(off, part); err != nil {
			return err
		}
		off, p = off+int64(len(part)), p[len(part):]
	}
	return nil
}

func (f *incrementFile) commit() error {
	err := f.w.End()
	if err == nil {
		err = f.buf.Flush()
	}
	if err == nil && f.final != "" {
		err = f.file.Sync()
	}
	if err != nil {
		return f.abort(err)
	}
	if f.final == "" {
		if f.file != os.Stdout {
			return f.file.Close()
		}
		return nil
	}
	if err := f.file.Close(); err != nil {
		return f.abort(err)
	}
	if err := renameDurably(f.file.Name(), f.final); err != nil {
		return f.abort(err)
	}
	return nil
}

func (f *incrementFile) abort(err error) error {
	if f.final != "" {
		_ = f.file.Close()
		_ = os.Remove(f.file.Name())
	}
	return err
}

// patched is a raw image that is changed in place.
type patched struct {
	file   *os.File
	path   string
	size   int64 // of the disk
	device bool

	now    sinceRecord // what this run makes of it
	record string      // the path of the record; empty: there is none
	begun  bool        // the record is there
}

// openPatched opens the image that holds the snapshot From.
func openPatched(path string, x *logdisk.Diff) (*patched, error) {
	if path == "-" {
		return nil, usagef("standard output cannot be changed in place: --image-format increment makes a stream")
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: with --since the image has to be there, and to hold the snapshot %s", err, x.From.Snapshot)
	}
	if err != nil {
		return nil, err
	}
	p := &patched{path: path, size: x.To.Size, device: isBlockDevice(info.Mode()), now: sinceRecordOf(x)}
	flags := os.O_RDWR
	switch {
	case info.IsDir():
		return nil, fmt.Errorf("%s: is a directory", path)
	case p.device:
		flags |= os.O_EXCL // one that is in use is refused
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: only a file or a block device can be changed in place", path)
	}
	if p.file, err = os.OpenFile(path, flags, 0); err != nil {
		return nil, err
	}
	if err := p.check(x); err != nil {
		_ = p.file.Close()
		return nil, err
	}
	return p, nil
}

// check refuses what cannot be an image of the snapshot From.
func (p *patched) check(x *logdisk.Diff) error {
	has, err := p.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if p.device {
		if need := max(x.From.Size, x.To.Size); has < need {
			return fmt.Errorf("%s has %s, the disk %s", p.path, humanSize(has), humanSize(need))
		}
		if grown := x.To.Size - x.From.Size; grown > 0 {
			// What a disk has grown by is no change as long as it is zeroes. A file grows
			// with zeroes, too, and a device has there whatever it had before.
			return p.put(x.From.Size, grown, nil)
		}
		return nil
	}
	if err := p.checkRecord(); err != nil {
		return err
	}
	// An interrupted run may have set the new size.
	if has != x.From.Size && has != x.To.Size {
		return fmt.Errorf("%s has %d bytes, and the snapshot %s has %d: it is no image of it", p.path, has, x.From.Snapshot, x.From.Size)
	}
	begin := make([]byte, 512)
	if n, err := p.file.ReadAt(begin, 0); err == nil || errors.Is(err, io.EOF) {
		if format := guessFormat(begin[:n]); format != "" && format != formatRaw {
			return fmt.Errorf("%s is a %s image: only a raw image can be changed in place", p.path, format)
		}
	}
	if has < p.size {
		if err := p.begin(); err != nil {
			return err
		}
		return p.file.Truncate(p.size)
	}
	return nil
}

func (p *patched) put(off, n int64, data []byte) error {
	if err := p.begin(); err != nil {
		return err
	}
	if data != nil {
		_, err := p.file.WriteAt(data, off)
		return err
	}
	// A file has a hole then, and a block device zeroes, or they refuse it.
	if unix.Fallocate(int(p.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n) == nil {
		return nil
	}
	for n > 0 {
		part := min(n, int64(len(zeroes)))
		if _, err := p.file.WriteAt(zeroes[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

func (p *patched) commit() error {
	var err error
	if !p.device {
		if err = p.begin(); err == nil {
			err = p.file.Truncate(p.size)
		}
	}
	if err == nil {
		err = p.file.Sync()
	}
	if err == nil {
		err = p.whole()
	}
	if err != nil {
		return p.abort(err)
	}
	return p.file.Close()
}

func (p *patched) abort(err error) error {
	_ = p.file.Close()
	return fmt.Errorf("%w; %s is partly changed: run the same command again", err, p.path)
}
