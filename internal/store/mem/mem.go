// SPDX-License-Identifier: MIT

// Package mem is an object store in memory. It answers as Swift does in
// everything that the Store interface names. It is always consistent: a read
// sees the last write. Package faulty adds failures and stale reads.
package mem

import (
	"cmp"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"swiftnbd/internal/store"
)

// Cluster is a set of containers, by name. It may be used by many goroutines.
type Cluster struct {
	mu         sync.Mutex
	containers map[string]*contents
	last       time.Time // the newest timestamp given out
}

// contents is one existing container; Cluster.mu guards it.
type contents struct {
	objects map[string]object
	meta    map[string]string
	bytes   int64
}

// object is one stored object. data is never changed once stored, so that a
// reader may copy from it without the lock.
type object struct {
	data []byte
	etag store.ETag
	sum  store.Checksum
	at   time.Time
}

// NewCluster returns a cluster without containers.
func NewCluster() *Cluster {
	return &Cluster{containers: make(map[string]*contents)}
}

// Container returns the container of that name, which need not exist yet. Two
// calls with one name return the same container.
func (c *Cluster) Container(name string) *Container {
	return &Container{cluster: c, name: name}
}

// Names returns the names of the containers that exist, in order.
func (c *Cluster) Names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.containers))
}

// New returns the one container of a cluster of its own. It does not exist
// until CreateContainer is called.
func New() *Container { return NewCluster().Container("mem") }

// tickLocked returns a timestamp newer than any before.
func (c *Cluster) tickLocked() time.Time {
	now := time.Now().Round(0) // the wall clock's reading alone
	if !now.After(c.last) {
		now = c.last.Add(time.Microsecond)
	}
	c.last = now
	return now
}

// Container is a store.Store.
type Container struct {
	cluster *Cluster
	name    string
	fence   *store.Fence // nil: anybody writes
	under   func()       // nil, or a function that is called between a write's signing and its arrival
}

// Fenced returns the same container behind the fence f. Its objects are written
// only while f holds. If f has a key, it must be the container's own, and the
// signature must be valid.
func (c *Container) Fenced(f *store.Fence) *Container {
	return &Container{cluster: c.cluster, name: c.name, fence: f}
}

// UnderWay returns the same container. Each of its writes calls under after it
// was signed and before it arrives.
func (c *Container) UnderWay(under func()) *Container {
	return &Container{cluster: c.cluster, name: c.name, fence: c.fence, under: under}
}

// fenceKey is the item of the container's metadata that holds the key.
const fenceKey = "Temp-Url-Key-2"

// signature is the signature of a write.
type signature struct {
	key     string
	expires time.Time
}

// sign signs a write, if the fence allows it, and calls under.
func (c *Container) sign(op string) (signature, error) {
	var s signature
	if c.fence != nil {
		g, err := c.fence.Grant()
		if err != nil {
			return s, fmt.Errorf("%s: %w", op, err)
		}
		s.key, s.expires = g.Key, time.Now().Add(cmp.Or(g.SignedFor, 10*time.Second))
		if s.expires.After(g.UntilServer) {
			s.expires = g.UntilServer
		}
	}
	if c.under != nil {
		c.under()
	}
	return s, nil
}

// allowedLocked says whether the store accepts a write with the signature s.
func (c *Container) allowedLocked(op string, s signature) error {
	if s.key == "" {
		return nil
	}
	k := c.cluster.containers[c.name]
	if k != nil && k.meta[fenceKey] == s.key && time.Now().Before(s.expires) {
		return nil
	}
	c.fence.Doubt()
	return status(op, http.StatusUnauthorized, store.ErrFenced)
}

var _ store.Store = (*Container)(nil)

// begin is the beginning of every request.
func begin(ctx context.Context, op string) error {
	if ctx.Err() != nil {
		return &store.TransportError{Op: op, Err: context.Cause(ctx)}
	}
	return nil
}

func (c *Container) op(method, name string) string {
	if name == "" {
		return method + " " + c.name
	}
	return store.OneLine(method + " " + c.name + "/" + name)
}

func status(op string, code int, err error) error {
	return &store.StatusError{Op: op, Code: code, Err: err}
}

// object finds an object for a read.
func (c *Container) object(name string) (object, bool) {
	c.cluster.mu.Lock()
	defer c.cluster.mu.Unlock()
	k, ok := c.cluster.containers[c.name]
	if !ok {
		return object{}, false
	}
	o, ok := k.objects[name]
	return o, ok
}

func (o object) info(name string) store.ObjectInfo {
	return store.ObjectInfo{Name: name, Size: int64(len(o.data)), ETag: o.etag, Checksum: o.sum, LastModified: o.at}
}

// Get implements store.Store.
func (c *Container) Get(ctx context.Context, name string, p []byte, opt store.GetOptions) (store.ObjectInfo, error) {
	op := c.op("GET", name)
	if err := begin(ctx, op); err != nil {
		return store.ObjectInfo{}, err
	}
	if err := store.CheckGet(name, p, opt); err != nil {
		return store.ObjectInfo{}, fmt.Errorf("%s: %w", op, err)
	}
	o, ok := c.object(name)
	if !ok {
		return store.ObjectInfo{}, status(op, http.StatusNotFound, store.ErrNotFound)
	}
	if opt.IfMatch != "" && opt.IfMatch != o.etag {
		return store.ObjectInfo{}, status(op, http.StatusPreconditionFailed, store.ErrPrecondition)
	}
	size := int64(len(o.data))
	if opt.Offset > size || int64(len(p)) > size-opt.Offset {
		return store.ObjectInfo{}, fmt.Errorf("%s: the object has %d bytes, %d at offset %d were wanted: %w",
			op, size, len(p), opt.Offset, io.ErrUnexpectedEOF)
	}
	opt.Fill(p, o.data[opt.Offset:])
	return o.info(name), nil
}

// Head implements store.Store.
func (c *Container) Head(ctx context.Context, name string) (store.ObjectInfo, error) {
	op := c.op("HEAD", name)
	if err := begin(ctx, op); err != nil {
		return store.ObjectInfo{}, err
	}
	if err := store.CheckObjectName(name); err != nil {
		return store.ObjectInfo{}, fmt.Errorf("%s: %w", op, err)
	}
	o, ok := c.object(name)
	if !ok {
		return store.ObjectInfo{}, status(op, http.StatusNotFound, store.ErrNotFound)
	}
	return o.info(name), nil
}

// Put implements store.Store.
func (c *Container) Put(ctx context.Context, name string, data []byte, etag store.ETag) error {
	op := c.op("PUT", name)
	if err := begin(ctx, op); err != nil {
		return err
	}
	if err := store.CheckObjectName(name); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	signed, err := c.sign(op)
	if err != nil {
		return err
	}
	data = slices.Clone(data)
	sum := md5.Sum(data)
	own := store.ETag(hex.EncodeToString(sum[:]))

	c.cluster.mu.Lock()
	defer c.cluster.mu.Unlock()
	k, ok := c.cluster.containers[c.name]
	if !ok {
		return status(op, http.StatusNotFound, store.ErrContainerNotFound)
	}
	if err := c.allowedLocked(op, signed); err != nil {
		return err
	}
	if etag != "" && etag != own {
		return status(op, http.StatusUnprocessableEntity, nil)
	}
	k.bytes += int64(len(data)) - int64(len(k.objects[name].data))
	k.objects[name] = object{data: data, etag: own, sum: store.ChecksumOf(data), at: c.cluster.tickLocked()}
	return nil
}

// Delete implements store.Store.
func (c *Container) Delete(ctx context.Context, name string) error {
	op := c.op("DELETE", name)
	if err := begin(ctx, op); err != nil {
		return err
	}
	if err := store.CheckObjectName(name); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	signed, err := c.sign(op)
	if err != nil {
		return err
	}
	c.cluster.mu.Lock()
	defer c.cluster.mu.Unlock()
	if err := c.allowedLocked(op, signed); err != nil {
		return err
	}
	if !c.deleteLocked(name) {
		return status(op, http.StatusNotFound, store.ErrNotFound)
	}
	return nil
}

func (c *Container) deleteLocked(name string) bool {
	k, ok := c.cluster.containers[c.name]
	if !ok {
		return false
	}
	o, ok := k.objects[name]
	if ok {
		k.bytes -= int64(len(o.data))
		delete(k.objects, name)
	}
	return ok
}

// BulkDelete implements store.Store. As with Swift, it is not signed.
func (c *Container) BulkDelete(ctx context.Context, names []string) error {
	op := c.op("BULK DELETE", "")
	if err := begin(ctx, op); err != nil {
		return err
	}
	if c.fence != nil {
		if err := c.fence.Check(); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	for _, name := range names {
		if err := store.CheckObjectName(name); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	c.cluster.mu.Lock()
	defer c.cluster.mu.Unlock()
	for _, name := range names {
		c.deleteLocked(name)
	}
	return nil
}

// List implements store.Store.
func (c *Container) List(ctx context.Context, opt store.ListOptions) ([]store.ObjectInfo, error) {
	op := c.op("GET", "")
	if err := begin(ctx, op); err != nil {
		return nil, err
	}
	c.cluster.mu.Lock()
	defer c.cluster.mu.Unlock()
	k, ok := c.cluster.containers[c.name]
	if !ok {
		return nil, status(op, http.StatusNotFound, store.ErrContainerNotFound)
	}
	var page []store.ObjectInfo
	for name, o := range k.objects {
		if strings.HasPrefix(name, opt.Prefix) && name > opt.Marker && (opt.EndMarker == "" || name < opt.EndMarker) {
			info := o.info(name)
			info.Checksum = "" // listings have no objects' metadata
			page = append(page, info)
		}
	}
	slices.SortFunc(page, func(a, b store.ObjectInfo) int { return strings.Compare(a.Name, b.Name) })
	limit := store.MaxListing
	if opt.Limit > 0 {
		limit = min(limit, opt.Limit)
	}
	return page[:min(limit, len(page))], nil
}
