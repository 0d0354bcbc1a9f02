// SPDX-License-Identifier: MIT

package chunked

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
)

// Restoring is called if a DELETE has left an object in place of chunk i, and
// zeroes are written there instead. versions are the container's headers about
// older versions. With a Stack, no DELETE is made any more.
type Restoring func(i geometry.ChunkIndex, versions store.Versions)

// OnRestoring sets the function to call. It is called before the first Delete.
func (v *Volume) OnRestoring(tell Restoring) { v.restoring = tell }

// Distrust makes Delete write chunks of zeroes from now on, because the
// container brings older versions back. It may be called at any time.
func (v *Volume) Distrust() { v.distrusted.Store(true) }

// Delete makes chunk i read as zeroes. A chunk that is known to be a hole costs
// no request. After an error the chunk is Unknown.
//
// Delete does not believe a successful answer to a DELETE. In a container with
// X-Versions-Location, which may be set while the disk is served, a DELETE
// brings the object's previous version back. The chunk is a hole only if the
// newest of all replicas is a 404. Otherwise Delete writes zeroes.
func (v *Volume) Delete(ctx context.Context, i geometry.ChunkIndex) error {
	k, etag, err := v.know(ctx, i)
	switch {
	case err != nil:
		return err
	case k == Hole:
		return nil
	case v.distrusted.Load() && k == Known && etag == v.zeroSum():
		return nil
	}
	v.markChanging(i)
	if !v.distrusted.Load() {
		gone, err := v.remove(ctx, i)
		if err != nil {
			return fmt.Errorf("delete chunk %d: %w", i, err)
		}
		if gone {
			v.table.set(i, Hole, "")
			return nil
		}
		v.restored(ctx, i)
	}
	if err := v.store.Put(ctx, ObjectName(i), zeroes(v.geo.ObjectSize()), v.zeroSum()); err != nil {
		return fmt.Errorf("write zeroes in place of chunk %d: %w", i, err)
	}
	v.table.set(i, Known, v.zeroSum())
	return nil
}

// remove deletes the object of chunk i, and says whether it is gone.
func (v *Volume) remove(ctx context.Context, i geometry.ChunkIndex) (gone bool, err error) {
	if err := v.store.Delete(ctx, ObjectName(i)); err != nil && !errors.Is(err, store.ErrNotFound) {
		return false, err
	}
	if _, err = v.store.Head(ctx, ObjectName(i)); errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look whether it is gone: %w", err)
	}
	return false, nil
}

// restored finds out why the object of chunk i is there after its DELETE.
func (v *Volume) restored(ctx context.Context, i geometry.ChunkIndex) {
	// If this cannot be found out, the next DELETE is checked in the same way.
	md, _ := v.store.Metadata(ctx)
	if md.Versions.Stack != "" {
		v.Distrust()
	}
	if v.restoring != nil {
		v.restoring(i, md.Versions)
	}
}

// zeroSum returns the ETag of a chunk of zeroes.
func (v *Volume) zeroSum() store.ETag {
	v.zeroOnce.Do(func() { v.zeroETag = sum(zeroes(v.geo.ObjectSize())) })
	return v.zeroETag
}

// zeroed has a chunk of zeroes for each object size of this process. Nobody
// writes to this mapping, so it takes address space but no memory, except the
// kernel's shared page of zeroes.
var zeroed struct {
	sync.Mutex
	chunks map[int64][]byte
}

// zeroes returns size bytes, which may not be written to.
func zeroes(size int64) []byte {
	zeroed.Lock()
	defer zeroed.Unlock()
	if p := zeroed.chunks[size]; p != nil {
		return p
	}
	p, err := syscall.Mmap(-1, 0, int(size), syscall.PROT_READ, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return make([]byte, size) // the system has no address space left
	}
	if zeroed.chunks == nil {
		zeroed.chunks = make(map[int64][]byte)
	}
	zeroed.chunks[size] = p
	return p
}
