// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/spf13/cobra"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

const (
	// defaultConnections is how many requests download and delete make at
	// once unless told.
	defaultConnections = 16
	// maxConnections is the most that they can be told.
	maxConnections = 256
	// downloadMemory bounds the chunks that a download holds, bytes, as long
	// as two of them fit.
	downloadMemory = 512 << 20
)

func (t *tool) downloadCommand() *cobra.Command {
	var quiet bool
	var connections int
	cmd := &cobra.Command{
		Use:   "download CONTAINER FILE",
		Short: "Download a disk as a raw image",
		Long: `Download a disk as a raw image. FILE gets its name only when the whole disk is
in it; an older FILE stays as it is until then. Where the disk has zeroes, FILE
has holes. FILE may be a block device, or "-" for standard output.

The container is locked while it is downloaded; one that is locked is refused.`,
		Args: needs("CONTAINER", "FILE"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			if err := checkConnections(connections); err != nil {
				return err
			}
			return t.download(ctx, args[0], args[1], connections, quiet)
		}),
		ValidArgsFunction: t.completeContainers(true),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress bar")
	connectionsFlag(cmd, &connections)
	return cmd
}

// connectionsFlag gives a command its --connections.
func connectionsFlag(cmd *cobra.Command, n *int) {
	cmd.Flags().IntVar(n, "connections", defaultConnections, "make up to `N` requests at once")
}

func checkConnections(n int) error {
	if n < 1 || n > maxConnections {
		return usagef("--connections: %d is not in 1 to %d", n, maxConnections)
	}
	return nil
}

// download copies the disk to path under the container's lock.
func (t *tool) download(ctx context.Context, name, path string, connections int, quiet bool) (err error) {
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
	im, err := openImage(path, t.stdout)
	if err != nil {
		return err
	}
	if err := im.prepare(meta.Geometry.Size()); err != nil {
		im.abort()
		return err
	}

	held, marked, err := c.mark(ctx, holderDownload, downloadTerm)
	switch {
	case err == nil:
		meta = marked
	case c.export.ReadOnly && errors.Is(err, store.ErrForbidden):
		t.warn("%s cannot be locked with these credentials; whoever writes to it meanwhile spoils the image", name)
	default:
		im.abort()
		return c.explain(ctx, err)
	}
	err = im.prepare(meta.Geometry.Size()) // it may have been set up anew since
	if err == nil {
		err = t.copyDisk(ctx, c, meta, held != nil, im, connections, quiet)
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
	if im.kind == imageStream {
		return nil
	}
	t.say("Done, %d bytes written", meta.Geometry.Size())
	return nil
}

// fetched is a chunk on its way: what Read said of it.
type fetched struct {
	data []byte // nil for a hole
	err  error
}

// copyDisk writes every chunk to im, in order, with up to connections reads
// under way.
// locked says that nobody writes to the disk meanwhile.
func (t *tool) copyDisk(ctx context.Context, c *container, meta volume.Meta, locked bool, im *image, connections int, quiet bool) error {
	g := meta.Geometry
	// Under our lock a chunk is what the last session left, or damaged.
	v, warning := volume.Open(ctx, c, meta, !locked)
	if warning != nil {
		t.log.DebugContext(ctx, "reading without the map of the last session", "container", c.name, "error", warning)
	}
	bar := t.newProgress("Downloading "+c.name, g.Size(), true, quiet)
	defer bar.end(false)

	// Chunks are read ahead into places, each of which holds a buffer once
	// it has been used.
	places := min(int64(2*connections), max(2, downloadMemory/g.ObjectSize()), g.Objects())
	slots := make(chan struct{}, connections)
	free := make(chan []byte, places)
	queue := make(chan chan fetched, places)

	readCtx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait() // after the reads have been told to end
	defer cancel()
	readers.Go(func() {
		defer close(queue)
		for i := range geometry.ChunkIndex(g.Objects()) {
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
				done <- fetch(readCtx, v, i, free)
			})
		}
	})

	for done := range queue {
		f := <-done
		err := f.err
		switch {
		case err != nil:
			return c.explain(ctx, err)
		case f.data == nil:
			err = im.hole(g.ObjectSize())
		default:
			err = im.write(f.data)
			select {
			case free <- f.data:
			default:
			}
		}
		if err != nil {
			return err
		}
		bar.add(g.ObjectSize())
	}
	if err := ctx.Err(); err != nil {
		return c.explain(ctx, err)
	}
	bar.end(true)
	return nil
}

// fetch reads chunk i into a buffer of free, or a new one. A buffer whose read
// failed is dropped, since a late answer may still be written into it.
func fetch(ctx context.Context, v *volume.Volume, i geometry.ChunkIndex, free chan []byte) fetched {
	if v.Knowledge(i) == volume.Hole {
		return fetched{}
	}
	var p []byte
	select {
	case p = <-free:
	default:
		p = make([]byte, v.Geometry().ObjectSize())
	}
	hole, err := v.Read(ctx, i, 0, p)
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
