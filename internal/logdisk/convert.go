// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"fmt"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// Conversion makes a disk of version 1 one of version 2, whose root has its
// chunks below. docs/FORMAT-V2.md, "Disks that were of version 1", has the steps.
type Conversion struct {
	Store      store.Store
	UUID       layout.UUID // of the disk that comes to be
	Epoch      uint32      // the number of the lease that is held
	Objects    int64
	ObjectSize int64 // bytes
}

// FindConversion finds what a conversion has left that was interrupted, in a
// container that has a disk of version 1: its Epoch is the newest one's, 0 if
// there is none. The next one takes its UUID: the request that was to make the
// disk one of version 2 may arrive after its own, and must not make another disk
// of it. That request was sent after the root was in Swift.
func FindConversion(ctx context.Context, s store.Store) (c Conversion, err error) {
	// A root that is listed and not found is away, or gone, and the listing is late.
	// Its absence from both says that it is gone. So the listing is read again, after
	// short looks, as long as Swift may take.
	const look = time.Second
	d := newDisk(Options{Store: s, Timeout: look})
	defer d.cancel(ErrClosed)
	for end := time.Now().Add(patience); ; {
		missing := false
		c = Conversion{}
		for page, err := range store.Pages(ctx, s, store.ListOptions{Prefix: layout.RootPrefix}) {
			if err != nil {
				return c, fmt.Errorf("list the roots: %w", err)
			}
			for _, info := range page {
				at, ok := layout.ParseRootName(info.Name)
				if !ok || missing {
					continue
				}
				root, err := d.rootOf(ctx, at, info.Size)
				switch {
				case err == nil:
					c.UUID, c.Epoch = root.UUID, max(c.Epoch, at.Epoch)
				case !away(err):
					return c, err
				default:
					missing = time.Now().Before(end)
				}
			}
		}
		if !missing {
			return c, nil
		}
	}
}

// FindLeft returns the identity of a disk that somebody has begun to make in the container,
// if a root of it is there; zero: none is. Whoever makes the disk takes it: what the other
// one has sent may arrive still, and must not make another disk of it.
func FindLeft(ctx context.Context, s store.Store) (layout.UUID, error) {
	was, err := FindConversion(ctx, s)
	if content(err) || unsupported(err) {
		err = nil
	}
	return was.UUID, err
}

// patience is how long a root may be away that is listed.
const patience = 30 * time.Second

// Begin writes the first root, and returns its name without its prefix. Nothing
// is known of the chunks in it: if the request that makes the disk one of version
// 2 arrives late, others have written chunks meanwhile.
func (c Conversion) Begin(ctx context.Context) (root string, err error) {
	return c.put(ctx, 1, c.root())
}

// Known writes the next root, when Swift has said that the disk is one of version
// 2: session is the one whose map of the chunks is valid, and blank says that
// there are no chunks.
func (c Conversion) Known(ctx context.Context, session string, blank bool) (root string, err error) {
	r := c.root()
	if blank {
		r.Requires, r.Below = nil, nil
	} else {
		r.Below.Disk.Map = session
	}
	return c.put(ctx, 2, r)
}

func (c Conversion) root() layout.Root {
	size := c.Objects * c.ObjectSize
	return layout.Root{
		Requires: []string{layout.FeatureChunks}, UUID: c.UUID, Size: size,
		Below: &layout.Below{Disk: &layout.Disk{Objects: c.Objects, ObjectSize: c.ObjectSize, Size: size}},
	}
}

func (c Conversion) put(ctx context.Context, n uint64, r layout.Root) (string, error) {
	r.Name = layout.Position{Epoch: c.Epoch, N: n}
	b, err := r.Marshal()
	if err != nil {
		return "", err
	}
	name := layout.RootName(r.Name)
	if err := c.Store.Put(ctx, name, b, etagOf(b)); err != nil {
		return "", fmt.Errorf("write root %s: %w", name, err)
	}
	return name[len(layout.RootPrefix):], nil
}
