// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/cmdline"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

const (
	// defaultConnections is the default of --connections of download and
	// delete.
	defaultConnections = 16
	// maxConnections is the largest value of --connections.
	maxConnections = 256
	// downloadMemory bounds the chunks that a download holds, bytes, as long
	// as two of them fit.
	downloadMemory = 512 << 20
	// downloadHole is the longest hole that is one piece of a download, bytes. Some
	// targets need time for one.
	downloadHole = 1 << 30
)

// downloading are the options of download.
type downloading struct {
	path, format  string
	connections   int
	quiet, resume bool
}

func (t *tool) downloadCommand() *cobra.Command {
	var o downloading
	var since string
	cmd := &cobra.Command{
		Use:   "download CONTAINER[@SNAPSHOT] FILE",
		Short: "Download a disk as an image",
		Long: `Download a disk as a raw or qcow2 image. The data goes to FILE.partial, which gets the
name FILE when it is complete. Until then an older FILE stays unchanged.
Zeroes of the disk become holes in FILE. FILE may also be a block device, or "-"
for standard output.

After an interrupted download to a file, run the same command with --resume: it goes
on, unless the disk has changed meanwhile.

With --since, only what has changed since a snapshot is downloaded: into a raw image
that holds that snapshot, in place, or with --image-format increment as a file or a
stream for "upload --onto".

The command refuses a locked container. It holds the lock while it downloads. A
snapshot is downloaded without a lock, also while the disk is in use.`,
		Args: needs("CONTAINER", "FILE"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			if o.format != formatIncrement {
				if err := checkFormat(o.format, writeFormats); err != nil {
					return err
				}
			}
			if t.json && args[1] == "-" {
				return usagef("--json and standard output as FILE exclude each other")
			}
			o.path = args[1]
			name, snap, err := t.splitSnapshot(args[0])
			switch {
			case err != nil:
				return err
			case since != "" || o.format == formatIncrement:
				if o.resume {
					return usagef("--resume is for whole images: an increment is written from its beginning, and an image that is changed in place needs the same command again")
				}
				return t.downloadSince(ctx, name, snap, args[1], sinceOptions{since, o.format, o.connections, o.quiet})
			case snap != "":
				return t.downloadSnapshot(ctx, name, snap, o)
			}
			return t.download(ctx, name, o)
		}),
		ValidArgsFunction: completing(t.completeMoment, nil),
	}
	cmd.Flags().StringVarP(&o.format, "image-format", "O", "", "`format` of FILE: raw, qcow2 or increment. If not given: raw")
	values(cmd, "image-format", append(writeFormats, formatIncrement)...)
	cmd.Flags().StringVar(&since, "since", "", "write only what has changed since `SNAPSHOT`: into a raw image that holds it, or as an increment")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "show no progress bar")
	cmdline.Old(cmd.Flags(), "quiet")
	cmd.Flags().BoolVar(&o.resume, "resume", false, "go on with a download that was interrupted, if there is one")
	connectionsFlag(cmd, &o.connections)
	_ = cmd.RegisterFlagCompletionFunc("since", t.completeSince)
	t.jsonFlag(cmd)
	return cmd
}

// downloaded is what download prints as JSON.
type downloaded struct {
	Container string  `json:"container"`
	Snapshot  *string `json:"snapshot"`
	Since     *string `json:"since"`
	Version   int     `json:"version"`
	Size      int64   `json:"size"`       // of the disk and of the image, bytes
	Format    string  `json:"format"`     // of the image
	Resumed   int64   `json:"resumed_at"` // where an earlier download was gone on from
	Fetched   int64   `json:"fetched"`    // bytes that were read from Swift
	Seconds   float64 `json:"seconds"`
}

// doneDownload reports a download that is complete. A stream has its data, and
// people need no more.
func (t *tool) doneDownload(out downloaded, im *image, begun time.Time) error {
	out.Resumed = im.resumed
	out.Format, out.Fetched, out.Seconds = cmp.Or(im.format, formatRaw), im.fetched, time.Since(begun).Seconds()
	if im.kind == imageStream && !t.json {
		return nil
	}
	return t.done(out, "Done, %d bytes written", out.Size)
}

// connectionsFlag gives a command its --connections.
func connectionsFlag(cmd *cobra.Command, n *int) {
	cmdline.IntVarP(cmd.Flags(), n, "connections", "", defaultConnections, 1, maxConnections, "make up to `N` requests at once")
}

// warnOfVersions warns of a disk that is read although a DELETE in its container
// brings old data back. Who wrote it may not have known.
func (t *tool) warnOfVersions(name string, meta volume.Meta) {
	if err := meta.Versions.Restores(name); err != nil {
		t.warn("%s %v", name, err)
	}
}

// setFormat says which format the image is to have; empty is raw.
func (im *image) setFormat(format string) error {
	if format == "" || format == formatRaw {
		return nil
	}
	if im.kind != imageFile {
		return fmt.Errorf("%s: only a file can be a %s image", im.path, format)
	}
	im.format = format
	return nil
}

// target opens the image that a download writes.
func (t *tool) target(ctx context.Context, o downloading) (*image, error) {
	im, err := openImage(ctx, o.path, t.stdout, &t.pace)
	if err != nil {
		return nil, err
	}
	if err = im.setFormat(o.format); err == nil && o.resume {
		err = im.checkResume()
	}
	if err != nil {
		im.abort()
		return nil, err
	}
	return im, nil
}

// copyTo makes im what the disk is, from its beginning or from where an earlier
// download was.
func (t *tool) copyTo(ctx context.Context, c *container, src source, im *image, m moment, o downloading) error {
	im.now = downloadRecord{format: cmp.Or(im.format, formatRaw), unit: src.unit(), moment: m}
	var err error
	if o.resume && im.was.at > 0 {
		err = t.goOn(ctx, c, src, im, o)
	} else {
		err = im.begin(src.size())
	}
	if err == nil {
		err = t.copyDisk(ctx, c, src, im, o.connections, o.quiet)
	}
	if ctx.Err() != nil {
		return c.explain(ctx, err)
	}
	return err
}

// download copies the disk to a file under the container's lock.
func (t *tool) download(ctx context.Context, name string, o downloading) (err error) {
	begun := time.Now()
	c, err := t.open(name)
	if err != nil {
		return err
	}
	state, err := c.inspect(ctx)
	if err != nil {
		return err
	}
	meta := state.Meta
	if err := state.Held(); err != nil {
		return fmt.Errorf("%s is %w, downloading a container in use is unreliable", name, err)
	}
	t.warnOfVersions(name, meta)
	im, err := t.target(ctx, o)
	if err != nil {
		return c.cut(ctx, err)
	}
	if err := im.canHold(meta.Size); err != nil {
		im.abort()
		return err
	}

	held, marked, err := c.mark(ctx, holderDownload, downloadTerm)
	switch {
	case err == nil:
		meta = marked
	case (c.export.ReadOnly || c.export.Login.StorageURL != "") && errors.Is(err, store.ErrForbidden):
		if meta.Version == volume.Version1 {
			t.warn("%s cannot be locked with these credentials; whoever writes to it meanwhile spoils the image", name)
		}
		// A log is read as it is now, whoever goes on writing it.
	default:
		im.abort()
		return c.explain(ctx, err)
	}
	var src source
	if src, err = t.source(ctx, c, meta, held, state, o.connections); err == nil {
		// The disk may have been set up anew since, or have another size than
		// the container says.
		m := src.moment()
		if meta.Version == volume.Version1 {
			m.disk, m.at = name+"/"+m.disk, meta.Last
			m.lease, m.before = state.Epoch, state.Epoch
			if held != nil {
				m.mark, m.lease, m.before = held.Mark(), held.Epoch(), held.Epoch()-1
			}
		}
		err = t.copyTo(ctx, c, src, im, m, o)
		src.close()
	}
	var unlockErr error
	if held != nil {
		unlockErr = c.release(ctx, held)
	}
	switch {
	case err == nil && errors.Is(unlockErr, lease.ErrLost):
		im.begun = true // also what an earlier download has left
		im.abort()
		return fmt.Errorf("%s was unlocked while it was downloaded: the image is not to be trusted, and not kept", name)
	case unlockErr != nil && !errors.Is(unlockErr, lease.ErrLost):
		unlockErr = fmt.Errorf("%s stays locked: %w", name, oneLine{unlockErr})
		if err != nil {
			t.fault(unlockErr)
		}
	}
	if err != nil {
		return im.end(err)
	}
	if err := im.commit(); err != nil {
		return err
	}
	if unlockErr != nil {
		return unlockErr
	}
	return t.doneDownload(downloaded{Container: name, Version: meta.Version, Size: src.size()}, im, begun)
}

// fetched is the result of reading one chunk, or a hole of several.
type fetched struct {
	chunks int64
	data   []byte // nil for a hole
	err    error
}

// copyDisk writes every chunk to im, in order, with up to connections reads
// under way.
func (t *tool) copyDisk(ctx context.Context, c *container, src source, im *image, connections int, quiet bool) error {
	unit, first, chunks := src.unit(), (im.at+src.unit()-1)/src.unit(), (src.size()-1)/src.unit()+1
	bar := t.newProgress("Downloading "+c.name, max(1, src.size()-im.at), true, quiet)
	defer bar.end(false)

	// Chunks are read ahead into places, each of which holds a buffer once
	// it has been used.
	places := max(1, min(int64(2*connections), max(2, downloadMemory/unit), chunks-first))
	slots := make(chan struct{}, connections)
	free := make(chan []byte, places)
	queue := make(chan chan fetched, places)

	readCtx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait() // runs after the reads were cancelled
	defer cancel()
	readers.Go(func() {
		defer close(queue)
		for i := first; i < chunks; {
			done := make(chan fetched, 1)
			select {
			case queue <- done:
			case <-readCtx.Done():
				return
			}
			// A disk may be nearly all holes, and have ten million chunks.
			if n := src.holes(i, min(chunks-i, max(1, downloadHole/unit))); n > 0 {
				done <- fetched{chunks: n}
				i += n
				continue
			}
			at := i
			i++
			select {
			case slots <- struct{}{}:
			case <-readCtx.Done():
				done <- fetched{err: readCtx.Err()}
				return
			}
			readers.Go(func() {
				defer func() { <-slots }()
				done <- fetch(readCtx, src, at, free)
			})
		}
	})

	left := src.size() - im.at
	for done := range queue {
		f := <-done
		err := f.err
		n := min(f.chunks*unit, left)
		left -= n
		switch {
		case err != nil:
			return c.explain(ctx, err)
		case f.data == nil:
			err = im.hole(n)
		default:
			im.fetched += n
			if im.kind == imageFile && !zero(f.data[:n]) {
				im.digest.add(im.at, f.data[:n])
			}
			err = im.write(f.data[:n])
			select {
			case free <- f.data:
			default:
			}
		}
		if err != nil {
			return err
		}
		bar.add(n)
		im.chunks += f.chunks
		if err := im.due(); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return c.explain(ctx, err)
	}
	bar.end(true)
	return nil
}

// fetch reads chunk i into a buffer of free, or a new one. A buffer whose read
// failed is dropped, since a late answer may still be written into it.
func fetch(ctx context.Context, src source, i int64, free chan []byte) fetched {
	if src.holes(i, 1) > 0 {
		return fetched{chunks: 1}
	}
	var p []byte
	select {
	case p = <-free:
	default:
		p = make([]byte, src.unit())
	}
	hole, err := src.read(ctx, i, p)
	if err != nil {
		return fetched{err: err}
	}
	if hole {
		select {
		case free <- p:
		default:
		}
		return fetched{chunks: 1}
	}
	return fetched{chunks: 1, data: p}
}
