// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	rootForm = 1
	root     = "root"
)

// features are the names that a root may require of us.
var features = []string{FeaturePins, FeatureClone, FeatureChunks, FeatureZstd, FeatureInline}

// FeaturePins is required by a root with pins: who does not know them would
// delete what they need.
const FeaturePins = "pins"

// FeatureClone is required by a root with a Below.Clone: to who does not look
// below, the disk would have zeroes where the clone has not written yet.
const FeatureClone = "clone"

// FeatureChunks is required by a root of a disk that was one of version 1, as
// long as it, or a snapshot of it, may need objects of that: who does not know
// them would read zeroes. A root without a Below.Disk that requires it says that
// they may be there still.
const FeatureChunks = "chunks"

// FeatureZstd is required by a root of a disk that has, or may get, records of
// kind Zstd: to who does not know them they would be zeroes.
const FeatureZstd = "zstd"

// FeatureInline is required by a root with a Table or with KeptMore: who does not
// know them would take old counts of live blocks for those of now, and delete what
// pins need.
const FeatureInline = "inline"

// SameAccount is Base.URL of a container in the account of the container that
// names it.
const SameAccount = "."

// Root says what the disk is at one position.
type Root struct {
	Requires []string // names of features without which the volume is not to be read
	Name     Position // as RootName takes it
	UUID     UUID
	Size     int64      // bytes of the disk
	At       Position   // up to here the log is in the map
	Ended    []Position // of each ended epoch: its last object that counts; N is 0 if none does. In order
	Runs     Runs
	Table    []byte   // a run of objects, of the root's own name, that is newer than Runs.Objects; nil: none. See TableEntries
	Pins     []Pin    // in the order of their roots
	Kept     Position // the name of the list of what pins need and the map does not, as KeptName takes it; zero: nothing
	KeptMore []byte   // a list, of the root's own name, of what Kept lacks; nil: nothing. See MoreKept
	Bases    []Base
	Below    *Below // where blocks come from that the map does not have; nil: they are zeroes
	Children []Child
}

// Runs are the names of runs, as RunName takes them, the oldest first.
type Runs struct {
	Blocks, Objects []Position
}

// Pin is a snapshot.
type Pin struct {
	Name string    // at most 255 bytes, none of them a control character
	Root Position  // the name of the root that is pinned, as RootName takes it
	At   Position  // of that root
	Made time.Time // for people only

	Size  int64 // bytes of the disk, and how many of them have data: for people only
	Bytes int64
	// Collected and Run are the numbers of the newest object of the collector
	// and of the newest run of the root's epoch when it was made; 0: none.
	Collected, Run uint64

	// Of says of which snapshot of which disk it is a copy; zero: of none.
	Of Copied
}

// Copied is a snapshot of any disk.
type Copied struct {
	UUID UUID     // the disk's
	Root Position // the name of the snapshot's root, as RootName takes it
}

// IsZero reports whether c is the zero value, which is no snapshot.
func (c Copied) IsZero() bool { return c == Copied{} }

// Base is a container that entries of the map refer to.
type Base struct {
	Number    uint32 // from 1 on; the volume's own container is 0 in entries
	URL       string // of the storage; SameAccount
	Container string
	UUID      UUID
}

// Below is what lies below the map. One of the two is set.
type Below struct {
	Disk  *Disk
	Clone *Clone
}

// Disk is a version 1 disk in the same container.
type Disk struct {
	Objects    int64
	ObjectSize int64 // bytes

	// Size is how many bytes of the disk are seen: those behind it are zeroes. It
	// never grows.
	Size int64 `json:",omitempty"`
	// Map names the session that has left a map of the objects; empty: nothing is
	// known of them.
	Map string `json:",omitempty"`
}

// Clone is a root of a base.
type Clone struct {
	Base uint32   // the number of the base
	Root Position // the name of its root, as RootName takes it

	Snapshot string // the name of the root's pin, for people
	// Size is how many bytes of that root's disk are seen: those behind it are
	// zeroes. A clone that becomes smaller makes it smaller, and it never grows.
	Size int64
	// Depth is how many disks lie below, one below the other: 1 for a clone of a
	// disk that is none.
	Depth int
}

// Child is a clone that has a pin here.
type Child struct {
	Pin       string // the pin's name
	URL       string // of the storage
	Container string
	UUID      UUID
}

// shortName is the name of a run or a root without its prefix.
type shortName Position

func (n shortName) MarshalText() ([]byte, error) { return Position(n).appendText(nil, runDigits), nil }

func (n *shortName) UnmarshalText(b []byte) error {
	p, ok := parsePosition(string(b), runDigits)
	if !ok || !p.named() {
		return fmt.Errorf("%q is no name of a run or a root", b)
	}
	*n = shortName(p)
	return nil
}

func shortNames(ps []Position) []shortName {
	out := make([]shortName, len(ps))
	for i, p := range ps {
		out[i] = shortName(p)
	}
	return out
}

func positions(names []shortName) []Position {
	var out []Position
	for _, n := range names {
		out = append(out, Position(n))
	}
	return out
}

// rootText is a root as JSON has it.
type rootText struct {
	Form     int
	Requires []string
	Name     shortName
	Uuid     UUID
	Size     int64
	At       Position
	Ended    []Position
	Runs     struct{ Blocks, Objects []shortName }
	Table    inlineText `json:",omitempty"`
	Pins     []pinText
	Kept     *shortName `json:",omitempty"`
	KeptMore inlineText `json:",omitempty"`
	Bases    []baseText
	Below    *belowText `json:",omitempty"`
	Children []childText
}

type pinText struct {
	Name string
	Root shortName
	At   Position
	Made time.Time

	Size, Bytes    int64  `json:",omitempty"`
	Collected, Run uint64 `json:",omitempty"`

	Of *copiedText `json:",omitempty"`
}

type copiedText struct {
	Uuid UUID
	Root shortName
}

type baseText struct {
	Number         uint32
	Url, Container string
	Uuid           UUID
}

type belowText struct {
	Disk  *Disk      `json:",omitempty"`
	Clone *cloneText `json:",omitempty"`
}

type cloneText struct {
	Base uint32
	Root shortName

	Snapshot string `json:",omitempty"`
	Size     int64  `json:",omitempty"`
	Depth    int    `json:",omitempty"`
}

type childText struct {
	Pin, Url, Container string
	Uuid                UUID
}

// Marshal returns the bytes of a root. A root that no parser would take is an
// error.
func (r Root) Marshal() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if err := r.checkInline(); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	t := rootText{Form: rootForm, Requires: orEmpty(r.Requires), Name: shortName(r.Name), Uuid: r.UUID, Size: r.Size, At: r.At, Ended: orEmpty(r.Ended),
		Table: r.Table, KeptMore: r.KeptMore, Pins: []pinText{}, Bases: []baseText{}, Children: []childText{}}
	t.Runs.Blocks, t.Runs.Objects = shortNames(r.Runs.Blocks), shortNames(r.Runs.Objects)
	for _, p := range r.Pins {
		pin := pinText{Name: p.Name, Root: shortName(p.Root), At: p.At, Made: p.Made.UTC().Truncate(time.Millisecond),
			Size: p.Size, Bytes: p.Bytes, Collected: p.Collected, Run: p.Run}
		if !p.Of.IsZero() {
			pin.Of = &copiedText{Uuid: p.Of.UUID, Root: shortName(p.Of.Root)}
		}
		t.Pins = append(t.Pins, pin)
	}
	if !r.Kept.IsZero() {
		t.Kept = (*shortName)(&r.Kept)
	}
	for _, b := range r.Bases {
		t.Bases = append(t.Bases, baseText{Number: b.Number, Url: b.URL, Container: b.Container, Uuid: b.UUID})
	}
	for _, c := range r.Children {
		t.Children = append(t.Children, childText{Pin: c.Pin, Url: c.URL, Container: c.Container, Uuid: c.UUID})
	}
	if b := r.Below; b != nil {
		t.Below = &belowText{Disk: b.Disk}
		if b.Clone != nil {
			t.Below.Clone = &cloneText{Base: b.Clone.Base, Root: shortName(b.Clone.Root), Snapshot: b.Clone.Snapshot, Size: b.Clone.Size, Depth: b.Clone.Depth}
		}
	}
	line, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	return seal(line), nil
}

// orEmpty makes sure that JSON has [] and not null.
func orEmpty[E any](s []E) []E {
	if s == nil {
		return []E{}
	}
	return s
}

// seal appends the end of a root to its line.
func seal(line []byte) []byte {
	sum := sha256.Sum256(line)
	out := append(slices.Clip(line), '\n')
	return append(hex.AppendEncode(out, sum[:]), '\n')
}

// ParseRoot is the inverse of Marshal. Fields that it does not know are ignored:
// a program that adds a field which others may not ignore or lose adds a name to
// Requires. A root whose Form or Requires it does not know is an
// [UnsupportedError] that names it.
func ParseRoot(b []byte) (Root, error) {
	fail := func(err error) (Root, error) { return Root{}, err }
	line, _, ok := bytes.Cut(b, []byte("\n"))
	if !ok {
		return fail(damaged(root, "%d bytes without a whole line", len(b)))
	}
	if !bytes.Equal(b, seal(line)) {
		return fail(damaged(root, "wrong checksum of a line of %d bytes", len(line)))
	}
	// The fields are known only once the form is.
	var form struct {
		Form     int
		Requires []string
	}
	if err := decode(line, &form); err != nil {
		return fail(damaged(root, "%v", err))
	}
	if form.Form != rootForm {
		return fail(unsupported(root, "form %d", form.Form))
	}
	for _, name := range form.Requires {
		if !slices.Contains(features, name) {
			return fail(unsupported(root, "it requires %q", name))
		}
	}
	// A field of the form that is missing is not the same as an empty one.
	var have map[string]json.RawMessage
	if err := decode(line, &have); err != nil {
		return fail(damaged(root, "%v", err))
	}
	for _, name := range []string{"Requires", "Name", "Uuid", "Size", "At", "Ended", "Runs", "Pins", "Bases", "Children"} {
		if _, ok := have[name]; !ok {
			return fail(damaged(root, "there is no %s", name))
		}
	}
	var t rootText
	if err := decode(line, &t); err != nil {
		return fail(damaged(root, "%v", err))
	}
	r := Root{Requires: t.Requires, Name: Position(t.Name), UUID: t.Uuid, Size: t.Size, At: t.At, Ended: t.Ended,
		Runs: Runs{Blocks: positions(t.Runs.Blocks), Objects: positions(t.Runs.Objects)}, Table: t.Table, KeptMore: t.KeptMore}
	for _, p := range t.Pins {
		pin := Pin{Name: p.Name, Root: Position(p.Root), At: p.At, Made: p.Made,
			Size: p.Size, Bytes: p.Bytes, Collected: p.Collected, Run: p.Run}
		if p.Of != nil {
			pin.Of = Copied{UUID: p.Of.Uuid, Root: Position(p.Of.Root)}
		}
		r.Pins = append(r.Pins, pin)
	}
	if t.Kept != nil {
		r.Kept = Position(*t.Kept)
	}
	for _, b := range t.Bases {
		r.Bases = append(r.Bases, Base{Number: b.Number, URL: b.Url, Container: b.Container, UUID: b.Uuid})
	}
	for _, c := range t.Children {
		r.Children = append(r.Children, Child{Pin: c.Pin, URL: c.Url, Container: c.Container, UUID: c.Uuid})
	}
	if b := t.Below; b != nil {
		r.Below = &Below{Disk: b.Disk}
		if b.Clone != nil {
			r.Below.Clone = &Clone{Base: b.Clone.Base, Root: Position(b.Clone.Root), Snapshot: b.Clone.Snapshot, Size: b.Clone.Size, Depth: b.Clone.Depth}
		}
	}
	if err := r.check(); err != nil {
		return fail(damaged(root, "%v", err))
	}
	if err := r.checkInline(); err != nil {
		var later *UnsupportedError
		if errors.As(err, &later) {
			return fail(unsupported(root, "%v: %s", later.What, later.Why))
		}
		return fail(damaged(root, "%v", err))
	}
	return r, nil
}

// decode reads one JSON document that is all of line.
func decode(line []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one document")
	}
	return nil
}

// Check returns a [DamagedError] if the root is not the one with a name, of
// volume u.
func (r Root) Check(u UUID, name Position) error {
	if r.UUID != u {
		return damaged(root, "it belongs to volume %v, not %v", r.UUID, u)
	}
	if r.Name != name {
		return damaged(root, "it is %s, and lies under another name", RootName(r.Name))
	}
	return nil
}

// check says what is wrong with a root.
func (r Root) check() error {
	for _, name := range r.Requires {
		if !slices.Contains(features, name) {
			return fmt.Errorf("it requires %q, which is not known", name)
		}
	}
	switch {
	case !r.Name.named():
		return fmt.Errorf("%v is no name of a root", r.Name)
	case r.UUID.IsZero():
		return errors.New("no uuid")
	case r.Size < 1:
		return fmt.Errorf("a disk of %d bytes", r.Size)
	case r.At.N > MaxN:
		return fmt.Errorf("position %v", r.At)
	case !r.Kept.IsZero() && !r.Kept.named():
		return fmt.Errorf("%v is no name of a list", r.Kept)
	}
	for i, e := range r.Ended {
		if e.N > MaxN {
			return fmt.Errorf("epoch ended at %v", e)
		}
		if i > 0 && e.Epoch <= r.Ended[i-1].Epoch {
			return fmt.Errorf("epoch %d ended after epoch %d", e.Epoch, r.Ended[i-1].Epoch)
		}
	}
	return errors.Join(r.checkRuns(), r.checkContainers(), r.checkPins())
}

func (r Root) checkRuns() error {
	seen := map[Position]bool{}
	for _, p := range slices.Concat(r.Runs.Blocks, r.Runs.Objects) {
		if !p.named() {
			return fmt.Errorf("%v is no name of a run", p)
		}
		if seen[p] {
			return fmt.Errorf("run %v is there twice", p)
		}
		seen[p] = true
	}
	return nil
}

// checkContainers checks the bases and what lies below.
func (r Root) checkContainers() error {
	numbers := map[uint32]bool{}
	for _, b := range r.Bases {
		if b.Number == 0 || numbers[b.Number] {
			return fmt.Errorf("base %d is there twice, or has no number", b.Number)
		}
		numbers[b.Number] = true
		if err := checkContainer(b.URL, b.Container, b.UUID); err != nil {
			return fmt.Errorf("base %d: %w", b.Number, err)
		}
	}
	if r.Below == nil {
		return nil
	}
	disk, clone := r.Below.Disk, r.Below.Clone
	switch {
	case (disk == nil) == (clone == nil):
		return errors.New("below: expected a disk or a clone's base")
	case disk != nil:
		if disk.Objects < 1 || disk.ObjectSize < 1 || disk.Objects > math.MaxInt64/disk.ObjectSize {
			return fmt.Errorf("below: a disk of %d objects with %d bytes each", disk.Objects, disk.ObjectSize)
		}
		if disk.Size < 0 || disk.Size > disk.Objects*disk.ObjectSize {
			return fmt.Errorf("below: %d bytes of a disk of %d", disk.Size, disk.Objects*disk.ObjectSize)
		}
	case !numbers[clone.Base]:
		return fmt.Errorf("below: there is no base %d", clone.Base)
	case !clone.Root.named():
		return fmt.Errorf("below: %v is no name of a root", clone.Root)
	case clone.Size < 0 || clone.Depth < 0:
		return fmt.Errorf("below: %d bytes at depth %d", clone.Size, clone.Depth)
	case !utf8.ValidString(clone.Snapshot):
		return fmt.Errorf("below: snapshot %q", clone.Snapshot)
	}
	return nil
}

// checkPins checks the snapshots and the clones made of them.
func (r Root) checkPins() error {
	names := map[string]bool{}
	for i, p := range r.Pins {
		switch {
		case !Plain(p.Name):
			return fmt.Errorf("pin %q: not a name", p.Name)
		case names[p.Name]:
			return fmt.Errorf("pin %q is there twice", p.Name)
		case !p.Root.named():
			return fmt.Errorf("pin %q: %v is no name of a root", p.Name, p.Root)
		case i > 0 && !r.Pins[i-1].Root.Less(p.Root):
			return fmt.Errorf("pin %q: its root %v is not after that of the pin before", p.Name, p.Root)
		case p.Size < 0 || p.Bytes < 0 || p.Collected > MaxN || p.Run > MaxN:
			return fmt.Errorf("pin %q: a number is out of range", p.Name)
		case !p.Of.IsZero() && (p.Of.UUID.IsZero() || !p.Of.Root.named()):
			return fmt.Errorf("pin %q: it is a copy of %v of volume %v", p.Name, p.Of.Root, p.Of.UUID)
		case p.At.N > MaxN || r.At.Less(p.At):
			return fmt.Errorf("pin %q: position %v in a root at %v", p.Name, p.At, r.At)
		}
		names[p.Name] = true
	}
	for _, c := range r.Children {
		if !names[c.Pin] {
			return fmt.Errorf("child %q: there is no pin %q", c.Container, c.Pin)
		}
		if err := checkContainer(c.URL, c.Container, c.UUID); err != nil {
			return fmt.Errorf("child %q: %w", c.Container, err)
		}
	}
	return nil
}

func checkContainer(url, container string, u UUID) error {
	switch {
	case !utf8.ValidString(url) || url == "":
		return fmt.Errorf("storage URL %q", url)
	case !utf8.ValidString(container) || container == "" || strings.Contains(container, "/"):
		return fmt.Errorf("container %q", container)
	case u.IsZero():
		return errors.New("no uuid")
	}
	return nil
}

// Plain reports whether s can be the name of a snapshot.
func Plain(s string) bool {
	return s != "" && len(s) <= 255 && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}
