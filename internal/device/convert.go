// SPDX-License-Identifier: MIT

package device

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// convertTime bounds what a conversion does once it has the lease.
const convertTime = 2 * time.Minute

// ErrConvertUnsure says that it is not known which version the disk has.
var ErrConvertUnsure = errors.New("it is not known whether the disk is converted")

// Convert makes a disk of version 1 one of version 2 in its place: its chunks
// become what lies below the log. It takes the lease, and of o only Store, Holder,
// Lease and Log count. check, which may be nil, is called under the lease with the
// container's metadata, and its error ends it. It returns the disk's metadata from
// before.
//
// Whenever it ends, the disk is of one version or the other, with the same bytes.
func Convert(ctx context.Context, o Options, check func(md store.Metadata, meta volume.Meta) error) (meta volume.Meta, err error) {
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if o.Lease.Sibling == nil {
		return meta, errNoLease
	}
	// What cannot be is said before anything is locked.
	if meta, err = volume.Read(ctx, o.Store); err == nil {
		err = meta.Need(volume.Version1)
	}
	if err != nil {
		return meta, err
	}
	was, err := logdisk.FindConversion(ctx, o.Store)
	if err != nil {
		return meta, err
	}
	o.Lease.After = int64(was.Epoch)
	if err := ctx.Err(); err != nil {
		return meta, context.Cause(ctx)
	}
	// It is not interrupted between its few requests.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), convertTime)
	defer cancel()
	held, meta, err := take(ctx, o)
	if err != nil {
		return meta, err
	}
	root, unchanged, err := convert(ctx, o, held, meta, check)
	if unchanged {
		return meta, errors.Join(err, held.ReleaseUnchanged(ctx))
	}
	items := map[string]string{}
	if root != "" {
		items[volume.KeyRoot] = root
	}
	return meta, errors.Join(err, held.ReleaseWith(ctx, items))
}

var errNoLease = errors.New("version 2 of the format needs a lease, and there is none here")

// convert does what Convert does under the lease. It returns the newest root
// without its prefix. unchanged says that nothing of the disk was changed.
func convert(ctx context.Context, o Options, held *lease.Held, meta volume.Meta, check func(store.Metadata, volume.Meta) error) (root string, unchanged bool, err error) {
	if err := meta.Need(volume.Version1); err != nil {
		return "", true, err
	}
	epoch := held.Epoch()
	if epoch < 1 || epoch > math.MaxUint32 {
		return "", true, errNoLease
	}
	ctx, stop, err := held.Fence().Guard(ctx)
	if err != nil {
		return "", true, err
	}
	defer stop()
	md, err := o.Store.Metadata(ctx)
	if err != nil {
		return "", true, err
	}
	if check != nil {
		if err := check(md, meta); err != nil {
			return "", true, err
		}
	}
	was, err := logdisk.FindConversion(ctx, o.Store) // another one may have been interrupted since
	if err != nil {
		return "", true, err
	}
	if was.UUID == (layout.UUID{}) {
		was.UUID = volume.NewUUID()
	}
	c := logdisk.Conversion{
		Store: o.Store, UUID: was.UUID, Epoch: uint32(epoch),
		Objects: meta.Geometry.Objects(), ObjectSize: meta.Geometry.ObjectSize(),
	}
	if root, err = c.Begin(ctx); err != nil {
		// It may be there all the same. It is garbage then, and does no harm.
		_ = o.Store.Delete(ctx, layout.RootName(layout.Position{Epoch: c.Epoch, N: 1}))
		return "", true, err
	}
	items := map[string]string{
		volume.KeyVersion: strconv.Itoa(volume.Version2),
		volume.KeyUUID:    hex.EncodeToString(c.UUID[:]),
		volume.KeySize:    strconv.FormatInt(meta.Size, 10),
		volume.KeyRoot:    root,
		volume.KeyRootOf:  "",
		// With these swiftnbd 0.11 would take it for a disk of its own.
		volume.KeyObjects: "", volume.KeyObjectSize: "", volume.KeyBlank: "", volume.KeyMap: "", volume.KeyUpload: "",
	}
	if err := o.Store.SetMetadata(ctx, items); err != nil {
		if !store.Ambiguous(err) {
			return "", true, err
		}
		now, rerr := volume.Read(ctx, o.Store)
		if rerr != nil || now.UUID != c.UUID {
			// It may come to be later, and the disk is as good then.
			return "", true, fmt.Errorf("%w: %w", ErrConvertUnsure, err)
		}
	}
	// From here on nobody writes chunks: what is known of them stays true. Nobody
	// has written any before, since the lease still holds.
	if ctx.Err() != nil {
		return root, false, nil
	}
	if meta.Map == "" && !meta.Blank {
		return root, false, nil
	}
	next, err := c.Known(ctx, meta.Map, meta.Blank)
	if err != nil {
		// It is converted. What is not known of the chunks costs requests.
		o.Log("the disk is converted, and its map of the chunks is not used: %v", err)
		return root, false, nil
	}
	return next, false, nil
}
