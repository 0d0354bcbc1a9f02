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
)

func (t *tool) downloadCommand() *cobra.Command {
	var quiet bool
	var connections int
	var format string
	cmd := &cobra.Command{
		Use:   "download CONTAINER[@SNAPSHOT] FILE",
		Short: "Download a disk as an image",
		Long: `Download a disk as a raw or qcow2 image. The data goes to a temporary file, which gets
the name FILE when it is complete. Until then an older FILE stays unchanged.
Zeroes of the disk become holes in FILE. FILE may also be a block device, or "-"
for standard output.

The command refuses a locked container. It holds the lock while it downloads. A
snapshot is downloaded without a lock, also while the disk is in use.`,
		Args: needs("CONTAINER", "FILE"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			if err := checkFormat(format, writeFormats); err != nil {
				return err
			}
			if t.json && args[1] == "-" {
				return usagef("--json and standard output as FILE exclude each other")
			}
			name, snap, err := t.splitSnapshot(args[0])
			switch {
			case err != nil:
				return err
			case snap != "":
				return t.downloadSnapshot(ctx, name, snap, args[1], format, connections, quiet)
			}
			return t.download(ctx, name, args[1], format, connections, quiet)
		}),
		ValidArgsFunction: t.completeContainers(true),
	}
	cmd.Flags().StringVarP(&format, "image-format", "O", "", "`format` of FILE: raw or qcow2. If not given: raw")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress bar")
	cmdline.Old(cmd.Flags(), "quiet")
	connectionsFlag(cmd, &connections)
	t.jsonFlag(cmd)
	return cmd
}

// downloaded is what download prints as JSON.
type downloaded struct {
	Container string  `json:"container"`
	Snapshot  *string `json:"snapshot"`
	Version   int     `json:"version"`
	Size      int64   `json:"size"`    // of the disk and of the image, bytes
	Format    string  `json:"format"`  // of the image
	Fetched   int64   `json:"fetched"` // bytes that were read from Swift
	Seconds   float64 `json:"seconds"`
}

// doneDownload reports a download that is complete. A stream has its data, and
// people need no more.
func (t *tool) doneDownload(out downloaded, im *image, begun time.Time) error {
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

// download copies the disk to path under the container's lock.
func (t *tool) download(ctx context.Context, name, path, format string, connections int, quiet bool) (err error) {
	begun := time.Now()
	c, err := t.open(name)
	if err != nil {
		return err
	}
	state, err := lease.Inspect(ctx, c.lease("", 0))
	if err != nil {
		return c.explain(ctx, err)
	}
	meta := state.Meta
	if err := state.Held(); err != nil {
		return fmt.Errorf("%s is %w, downloading a container in use is unreliable", name, err)
	}
	t.warnOfVersions(name, meta)
	im, err := openImage(path, t.stdout)
	if err != nil {
		return err
	}
	if err := im.setFormat(format); err != nil {
		im.abort()
		return err
	}
	if err := im.prepare(meta.Size); err != nil {
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
	if src, err = t.source(ctx, c, meta, held, state, connections); err == nil {
		// The disk may have been set up anew since, or have another size than
		// the container says.
		if err = im.prepare(src.size()); err == nil {
			err = t.copyDisk(ctx, c, src, im, connections, quiet)
		}
		src.close()
	}
	var unlockErr error
	if held != nil {
		unlockErr = c.release(ctx, held)
	}
	switch {
	case err == nil && errors.Is(unlockErr, lease.ErrLost):
		err = fmt.Errorf("%s was unlocked while it was downloaded: the image is not to be trusted, and not kept", name)
	case unlockErr != nil && !errors.Is(unlockErr, lease.ErrLost):
		unlockErr = fmt.Errorf("%s stays locked: %w", name, oneLine{unlockErr})
		if err != nil {
			t.fault(unlockErr)
		}
	}
	if err != nil {
		im.abort()
		return err
	}
	if err := im.commit(); err != nil {
		return err
	}
	if unlockErr != nil {
		return unlockErr
	}
	return t.doneDownload(downloaded{Container: name, Version: meta.Version, Size: src.size()}, im, begun)
}

// fetched is the result of reading one chunk.
type fetched struct {
	data []byte // nil for a hole
	err  error
}

// copyDisk writes every chunk to im, in order, with up to connections reads
// under way.
func (t *tool) copyDisk(ctx context.Context, c *container, src source, im *image, connections int, quiet bool) error {
	unit, chunks := src.unit(), (src.size()-1)/src.unit()+1
	bar := t.newProgress("Downloading "+c.name, src.size(), true, quiet)
	defer bar.end(false)

	// Chunks are read ahead into places, each of which holds a buffer once
	// it has been used.
	places := min(int64(2*connections), max(2, downloadMemory/unit), chunks)
	slots := make(chan struct{}, connections)
	free := make(chan []byte, places)
	queue := make(chan chan fetched, places)

	readCtx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait() // runs after the reads were cancelled
	defer cancel()
	readers.Go(func() {
		defer close(queue)
		for i := range chunks {
			done := make(chan fetched, 1)
			select {
			case queue <- done:
			case <-readCtx.Done():
				return
			}
			select {
			case slots <- struct{}{}:
			case <-readCtx.Done():
				done <- fetched{err: readCtx.Err()}
				return
			}
			readers.Go(func() {
				defer func() { <-slots }()
				done <- fetch(readCtx, src, i, free)
			})
		}
	})

	left := src.size()
	for done := range queue {
		f := <-done
		err := f.err
		n := min(unit, left)
		left -= n
		switch {
		case err != nil:
			return c.explain(ctx, err)
		case f.data == nil:
			err = im.hole(n)
		default:
			err = im.write(f.data[:n])
			im.fetched += n
			select {
			case free <- f.data:
			default:
			}
		}
		if err != nil {
			return err
		}
		bar.add(n)
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
	if src.hole(i) {
		return fetched{}
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
		return fetched{}
	}
	return fetched{data: p}
}
