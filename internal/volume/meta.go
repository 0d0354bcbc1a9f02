// SPDX-License-Identifier: MIT

// Package volume is the format of a disk in Swift: the names of its objects,
// the metadata of its container, and what is known of each chunk. Version 1 is
// swiftnbd 0.11's, exactly; docs/FORMAT.md describes it for people. Only this
// package and store know how a chunk is kept, so that another version may keep
// it otherwise.
package volume

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
)

// The keys of the container's metadata, as store.Metadata has them. The first
// five are swiftnbd 0.11's; it ignores all others.
const (
	KeyVersion    = "Swiftnbd-Version"
	KeyObjects    = "Swiftnbd-Objects"
	KeyObjectSize = "Swiftnbd-Object-Size"
	KeyClient     = "Swiftnbd-Client"
	KeyLast       = "Swiftnbd-Last"

	// KeyBlank marks a volume that nobody has opened since it was created
	// empty. Its value is the KeyLast that setup wrote with it: whoever
	// opens the volume, 0.11 too, leaves another Last, and even 0.11's
	// forced setup, which empties Last, makes it void.
	KeyBlank = "Swiftnbd-Blank"

	// KeyMap names the session whose map of the chunks holds. It is valid
	// while KeyLast names the same session and KeyClient nobody.
	KeyMap = "Swiftnbd-Map"
)

// FormatVersion is the version of the on-Swift format that is written and the
// highest that is understood.
const FormatVersion = 1

// The object size of a new volume, bytes, unless somebody says otherwise.
// DefaultObjectSize is what measuring argues for (nbdkit-swift-plugin(1),
// PERFORMANCE). Who gives a number of objects and not a size means swiftnbd
// 0.11's, or the disk would not have the size that they count on.
const (
	DefaultObjectSize  = 1 << 20
	SwiftnbdObjectSize = 64 << 10
)

// Prefix begins the name of each object that holds a chunk. ExtraPrefix begins
// the name of whatever else is kept in the container.
const (
	Prefix      = "disk.part/"
	ExtraPrefix = "swiftnbd/"
)

// ObjectName returns the name of the object that holds chunk i: decimal, at
// least eight digits.
func ObjectName(i geometry.ChunkIndex) string {
	return fmt.Sprintf("%s%08d", Prefix, int64(i))
}

// ParseObjectName is ObjectName's inverse; ok is false for any name that
// ObjectName does not return.
func ParseObjectName(name string) (i geometry.ChunkIndex, ok bool) {
	digits, found := strings.CutPrefix(name, Prefix)
	if !found || len(digits) < 8 {
		return 0, false
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || ObjectName(geometry.ChunkIndex(n)) != name {
		return 0, false
	}
	return geometry.ChunkIndex(n), true
}

// Meta is the container's metadata, read.
type Meta struct {
	Version  int
	Geometry geometry.Geometry
	Client   string // who holds the lock mark: "HOST:PORT@UNIX", "ctl@UNIX"; empty when nobody
	Last     string // who held it before
	Blank    bool   // created empty and never opened since: every chunk is a hole
	Map      string // the session whose map is valid, or empty
}

// ErrNotSetUp is the error for a container that exists and is no volume.
var ErrNotSetUp = errors.New("container has not been set up for swiftnbd")

// FormatError is container metadata that is there and makes no sense.
type FormatError struct {
	Key, Value string
	Err        error
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("container metadata X-Container-Meta-%s: %q: %v", e.Key, e.Value, e.Err)
}
func (e *FormatError) Unwrap() error { return e.Err }

// Read reads the metadata of s's container. It ends with
// store.ErrContainerNotFound, ErrNotSetUp (as 0.11, when one of version,
// objects and object-size is missing), a *FormatError, or a store error.
func Read(ctx context.Context, s store.Store) (Meta, error) {
	md, err := s.Metadata(ctx)
	if err != nil {
		return Meta{}, err
	}
	return ParseMeta(md.Items)
}

// ParseMeta reads metadata items. Errors as Read's.
func ParseMeta(items map[string]string) (Meta, error) {
	for _, k := range []string{KeyVersion, KeyObjects, KeyObjectSize} {
		if items[k] == "" {
			return Meta{}, ErrNotSetUp
		}
	}
	m := Meta{Client: items[KeyClient], Last: items[KeyLast]}
	number := func(key string) (int64, error) {
		n, err := strconv.ParseInt(strings.TrimSpace(items[key]), 10, 64)
		if err != nil {
			return 0, &FormatError{key, items[key], errors.New("not a whole number")}
		}
		return n, nil
	}
	version, err := number(KeyVersion)
	if err != nil {
		return Meta{}, err
	}
	if version != FormatVersion {
		return Meta{}, &FormatError{KeyVersion, items[KeyVersion],
			fmt.Errorf("this program understands version %d", FormatVersion)}
	}
	m.Version = int(version)
	objects, err := number(KeyObjects)
	if err != nil {
		return Meta{}, err
	}
	objectSize, err := number(KeyObjectSize)
	if err != nil {
		return Meta{}, err
	}
	if m.Geometry, err = geometry.New(objectSize, objects); err != nil {
		key := KeyObjects
		if objectSize < 1 || objectSize > geometry.MaxObjectSize {
			key = KeyObjectSize
		}
		return Meta{}, &FormatError{key, items[key], err}
	}
	if m.Client == "" && m.Last != "" {
		m.Blank = items[KeyBlank] == m.Last
		if items[KeyMap] == m.Last {
			m.Map = m.Last
		}
	}
	return m, nil
}

// Create sets the container up as a volume of geometry g, making the container
// where there is none. It writes metadata only and touches no object. An
// existing volume must have been ruled out, or be wanted over, by the caller.
func Create(ctx context.Context, s store.Store, g geometry.Geometry) error {
	items := map[string]string{
		KeyVersion:    strconv.Itoa(FormatVersion),
		KeyObjects:    strconv.FormatInt(g.Objects(), 10),
		KeyObjectSize: strconv.FormatInt(g.ObjectSize(), 10),
		KeyClient:     "",
		KeyLast:       "",
		KeyBlank:      "",
		KeyMap:        "",
	}
	created, err := s.CreateContainer(ctx, items)
	if err != nil || !created {
		return err
	}
	// Swift made the container in this very request, so it holds nothing.
	by := fmt.Sprintf("ctl-setup@%d", time.Now().Unix())
	return s.SetMetadata(ctx, map[string]string{KeyLast: by, KeyBlank: by})
}
