// SPDX-License-Identifier: MIT

// Package volume is the metadata of a disk's container: which version of the
// format it has, who holds it, and how it is created. It does not know how the
// disk's bytes are kept. Each version has a package for that (chunked is
// version 1).
package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
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

	// KeyBlank marks a volume that was created empty and not opened since. Its
	// value is the KeyLast that setup wrote with it. Every program that opens
	// the volume, 0.11 too, leaves another Last. Even 0.11's forced setup,
	// which empties Last, makes KeyBlank void.
	KeyBlank = "Swiftnbd-Blank"

	// KeyMap names the session that saved the map of the chunks. It is valid
	// while KeyLast names the same session and KeyClient is empty.
	KeyMap = "Swiftnbd-Map"

	// KeyUpload says how far an upload is that has not come to its end, for
	// swiftnbd-ctl. A disk of either version may have it.
	KeyUpload = "Swiftnbd-Upload"

	// Version 2 has these, with KeyVersion, KeyClient and KeyLast, and none of
	// the others: see docs/FORMAT-V2.md.
	KeyUUID = "Swiftnbd-Uuid"
	KeySize = "Swiftnbd-Size"
	KeyRoot = "Swiftnbd-Root"
	// KeyRootOf is the identity of the volume of which KeyRoot is true: see RootItems.
	KeyRootOf = "Swiftnbd-Root-Of"
	// KeyParent names what the disk is a clone of, for lists: see FormatParent.
	KeyParent = "Swiftnbd-Parent"
)

// The versions of the format.
const (
	Version1 = 1 // swiftnbd 0.11's: chunk i is object i (package chunked)
	Version2 = 2 // a log of packed objects
)

// ExtraPrefix is the beginning of the names of all our objects that swiftnbd
// 0.11 does not know.
const ExtraPrefix = "swiftnbd/"

// Meta is the container's metadata after parsing.
type Meta struct {
	Version int   // of the format: Version1 or Version2
	Size    int64 // of the disk, bytes. Of version 2 it may be old: the root decides

	// Version 1's alone; zero of version 2.
	Geometry geometry.Geometry
	Blank    bool   // created empty and never opened since: every chunk is a hole
	Map      string // the session whose map is valid, or empty

	// Version 2's alone; zero of version 1.
	UUID [16]byte // the volume's identity
	Root string   // where to begin to look for the newest root: it may be old, or empty
	// Parent is what the disk was made a clone of, as FormatParent has it; empty:
	// of nothing. Both names are empty if they are too long. For people: the root
	// decides.
	Parent string

	Client string // who holds the lock mark: "HOST:PORT@UNIX", "ctl@UNIX"; empty when nobody
	Last   string // who held it before

	// Versions says what Swift does with older versions of the objects.
	// ParseMeta leaves it empty.
	Versions store.Versions
}

// ErrNotSetUp says that the container exists and is no volume.
var ErrNotSetUp = errors.New("container has not been set up for swiftnbd")

// Need ends with a *VersionError unless the volume has that version of the
// format: for those who can do no other.
func (m Meta) Need(version int) error {
	if m.Version != version {
		return &VersionError{m.Version, version}
	}
	return nil
}

// VersionError is a volume of a version of the format that this program knows,
// and cannot do here what was asked for.
type VersionError struct{ Has, Need int }

func (e *VersionError) Error() string {
	return fmt.Sprintf("the disk has version %d of the format, and this can be done with version %d only", e.Has, e.Need)
}

// FormatError says that an item of the container's metadata makes no sense.
type FormatError struct {
	Key, Value string
	Version    int // of the format, as far as it is known: 0, Version1 or Version2
	Err        error
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("container metadata X-Container-Meta-%s: %q: %v", e.Key, e.Value, e.Err)
}
func (e *FormatError) Unwrap() error { return e.Err }

// Read reads the metadata of s's container, of either version. It ends with
// store.ErrContainerNotFound, ErrNotSetUp (as 0.11, when there is no version,
// or version 1 without objects or object-size), a *FormatError, or a store
// error. A version that this program does not know is a *FormatError of
// KeyVersion, even if other keys are missing. A later version need not have the
// keys of version 1, and such a container must never count as free. Version 2
// without one of its keys is a *FormatError too.
func Read(ctx context.Context, s store.Store) (Meta, error) {
	md, err := s.Metadata(ctx)
	if err != nil {
		return Meta{}, err
	}
	return FromMetadata(md)
}

// FromMetadata is ParseMeta, and also fills in what Swift reports about the
// container outside its metadata items.
func FromMetadata(md store.Metadata) (Meta, error) {
	m, err := ParseMeta(md.Items)
	m.Versions = md.Versions
	return m, err
}

// ReadHint is Read for any copy of the metadata. The copy may be stale: see
// store.Store.
func ReadHint(ctx context.Context, s store.Store) (Meta, error) {
	md, err := s.MetadataHint(ctx)
	if err != nil {
		return Meta{}, err
	}
	return ParseMeta(md.Items)
}

// ParseMeta reads metadata items. Its errors are Read's.
func ParseMeta(items map[string]string) (Meta, error) {
	if items[KeyVersion] == "" {
		return Meta{}, ErrNotSetUp
	}
	version, err := number(items, KeyVersion, 0)
	if err != nil {
		return Meta{}, err
	}
	var m Meta
	switch version {
	case Version1:
		m, err = parse1(items)
	case Version2:
		m, err = parse2(items)
	default:
		err = &FormatError{KeyVersion, items[KeyVersion], 0,
			fmt.Errorf("this program understands versions %d and %d", Version1, Version2)}
	}
	if err != nil {
		return Meta{}, err
	}
	m.Version = int(version)
	return m, nil
}

// number reads an item that is a whole number.
func number(items map[string]string, key string, version int) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(items[key]), 10, 64)
	if err != nil {
		return 0, &FormatError{key, items[key], version, errors.New("not a whole number")}
	}
	return n, nil
}

// parse1 is ParseMeta of version 1.
func parse1(items map[string]string) (Meta, error) {
	m := Meta{Client: items[KeyClient], Last: items[KeyLast]}
	if items[KeyObjects] == "" || items[KeyObjectSize] == "" {
		return Meta{}, ErrNotSetUp
	}
	objects, err := number(items, KeyObjects, Version1)
	if err != nil {
		return Meta{}, err
	}
	objectSize, err := number(items, KeyObjectSize, Version1)
	if err != nil {
		return Meta{}, err
	}
	if m.Geometry, err = geometry.New(objectSize, objects); err != nil {
		key := KeyObjects
		if objectSize < 1 || objectSize > geometry.MaxObjectSize {
			key = KeyObjectSize
		}
		return Meta{}, &FormatError{key, items[key], Version1, err}
	}
	m.Size = m.Geometry.Size()
	if m.Client == "" && m.Last != "" {
		m.Blank = items[KeyBlank] == m.Last
		if items[KeyMap] == m.Last {
			m.Map = m.Last
		}
	}
	return m, nil
}

// parse2 is ParseMeta of version 2.
func parse2(items map[string]string) (Meta, error) {
	m := Meta{Client: items[KeyClient], Last: items[KeyLast], Root: items[KeyRoot], Parent: items[KeyParent]}
	for _, key := range []string{KeyUUID, KeySize} {
		if items[key] == "" {
			return Meta{}, &FormatError{KeyVersion, items[KeyVersion], Version2, fmt.Errorf("there is no X-Container-Meta-%s, which this version has", key)}
		}
	}
	uuid, err := hex.DecodeString(items[KeyUUID])
	if copy(m.UUID[:], uuid); err != nil || len(uuid) != len(m.UUID) || m.UUID == [16]byte{} {
		return Meta{}, &FormatError{KeyUUID, items[KeyUUID], Version2, errors.New("not 32 hexadecimal digits, or all of them 0")}
	}
	if of := items[KeyRootOf]; of != "" && of != hex.EncodeToString(m.UUID[:]) {
		m.Root = ""
	}
	if m.Size, err = number(items, KeySize, Version2); err != nil {
		return Meta{}, err
	}
	if m.Size < 1 {
		return Meta{}, &FormatError{KeySize, items[KeySize], Version2, errors.New("must be at least 1 byte")}
	}
	return m, nil
}

// Create makes the container, if there is none, and sets it up as SetUp does.
func Create(ctx context.Context, s store.Store, g geometry.Geometry) error {
	created, err := s.CreateContainer(ctx, nil)
	if err != nil {
		return err
	}
	return SetUp(ctx, s, g, created)
}

// SetUp sets a container up as a volume of version 1 with geometry g. created says
// that the caller has just created it, so that it is empty. SetUp writes metadata only
// and touches no object. The caller must check before that there is no volume, or that
// it may be overwritten.
func SetUp(ctx context.Context, s store.Store, g geometry.Geometry, created bool) error {
	by := ""
	if created {
		by = fmt.Sprintf("ctl-setup@%d", time.Now().Unix())
	}
	return s.SetMetadata(ctx, map[string]string{
		KeyVersion:    strconv.Itoa(Version1),
		KeyObjects:    strconv.FormatInt(g.Objects(), 10),
		KeyObjectSize: strconv.FormatInt(g.ObjectSize(), 10),
		KeyClient:     "",
		KeyLast:       by,
		KeyBlank:      by,
		KeyMap:        "",
	})
}

// Create2 sets the container up as the volume of version 2 that m describes by
// UUID, Size and Root, making the container where there is none. It writes
// metadata only. The root must exist already, so that a program that finds the
// volume also finds its content, except in a container that this call creates.
// The caller must check before that there is no volume.
func Create2(ctx context.Context, s store.Store, m Meta) error {
	items := map[string]string{
		KeyVersion: strconv.Itoa(Version2),
		KeyUUID:    hex.EncodeToString(m.UUID[:]),
		KeySize:    strconv.FormatInt(m.Size, 10),
		KeyRoot:    m.Root,
		KeyRootOf:  "",
		KeyParent:  m.Parent,
		KeyClient:  "",
		KeyLast:    "",
		// With these swiftnbd 0.11 would take it for a disk of its own.
		KeyObjects:    "",
		KeyObjectSize: "",
		KeyBlank:      "",
		KeyMap:        "",
	}
	if _, err := ParseMeta(items); err != nil {
		return err
	}
	_, err := s.CreateContainer(ctx, items)
	return err
}

// RootItems are what is set when a volume of version 2 has a new root. A request that
// arrives late, when the volume was deleted and another one made under its name, must
// not name a root that this one never had: it could not be found, and such a volume is
// not opened.
func RootItems(uuid [16]byte, root string, size int64) map[string]string {
	return map[string]string{
		KeyRoot: root, KeyRootOf: hex.EncodeToString(uuid[:]), KeySize: strconv.FormatInt(size, 10),
	}
}

// FormatParent returns a parent's container and its snapshot as Meta.Parent has
// them: each with what a header cannot have escaped as in a URL, and an @ between.
func FormatParent(container, snapshot string) string {
	return strings.ReplaceAll(url.PathEscape(container), "@", "%40") + "@" + url.PathEscape(snapshot)
}

// ParseParent is the inverse of FormatParent, for messages.
func ParseParent(s string) (container, snapshot string) {
	container, snapshot, _ = strings.Cut(s, "@")
	if c, err := url.PathUnescape(container); err == nil {
		container = c
	}
	if n, err := url.PathUnescape(snapshot); err == nil {
		snapshot = n
	}
	return container, snapshot
}

// NewUUID returns the identity of a new volume of version 2.
func NewUUID() (id [16]byte) {
	_, _ = rand.Read(id[:]) // crypto/rand's never fails
	return id
}
