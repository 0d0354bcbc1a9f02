// SPDX-License-Identifier: MIT

package layout

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// What is added to the second or third field of an entry.
const (
	entryBase   = 8  // its place is in the container with a number
	entryRemove = 16 // it removes its key from older runs
	entryBlind  = 32 // what older runs have of its blocks is counted still
	objectDied  = 1
	// objectDense is 0 with a density.
	objectDense = 3

	// maxLive bounds the live bytes of an object with compressed records.
	maxLive = MaxRecords * MaxCompressed * FrameSize
)

// MaxDensity is the largest ObjectEntry.Density.
const MaxDensity = 127

// Entry maps a range of blocks.
type Entry struct {
	First, Count uint64 // blocks
	Kind         Kind
	Remove       bool // older runs have nothing of these blocks; nothing else is set
	// Blind says that the writer did not look what older runs have for these
	// blocks: the newest of it is counted as live still.
	Blind bool

	// For kinds that have bytes.
	Base  uint32   // the number of the container, or 0: the volume's own
	At    Position // the data object
	Place uint32   // where the first frame is; of Zstd: where the record's bytes begin
	Bytes uint32   // of Zstd: the length of the record's bytes
	Skip  uint32   // of Zstd: how many of the record's blocks precede this entry
}

// End returns the block after the entry's last.
func (e Entry) End() uint64 { return e.First + e.Count }

// check says what is wrong with an entry by itself.
func (e Entry) check() error {
	switch {
	case e.Count < 1:
		return errors.New("no blocks")
	case e.First >= MaxBlocks || e.Count > MaxBlocks-e.First:
		return fmt.Errorf("%d blocks from %d on, and there can be %d", e.Count, e.First, uint64(MaxBlocks))
	case e.Kind > Zstd:
		return &UnsupportedError{What: run, Why: e.Kind.String()}
	case e.Remove || !e.Kind.Stored():
		if (e != Entry{First: e.First, Count: e.Count, Kind: e.Kind, Remove: e.Remove, Blind: e.Blind}) || e.Remove && (e.Kind != Data || e.Blind) {
			return errors.New("a place for blocks that have none")
		}
		return nil
	case !e.At.named():
		return fmt.Errorf("position %v", e.At)
	case e.Kind == Data:
		switch {
		case e.Bytes != 0 || e.Skip != 0:
			return errors.New("fields of compressed data for frames")
		case e.Count > MaxObjectSize/FrameSize || uint64(e.Place)+e.Count*FrameSize > MaxObjectSize-FooterSize:
			return fmt.Errorf("%d frames at %d are not in one object", e.Count, e.Place)
		}
		return nil
	}
	// Zstd.
	switch {
	case e.Count > MaxCompressed || uint64(e.Skip)+e.Count > MaxCompressed || uint64(e.Skip) > e.First:
		return fmt.Errorf("blocks %d to %d of a compressed record that begins %d before block %d", e.Skip, uint64(e.Skip)+e.Count, e.Skip, e.First)
	case !fitsCompressed(uint64(e.Bytes), MaxCompressed) || uint64(e.Place)+uint64(e.Bytes) > MaxObjectSize-FooterSize:
		return fmt.Errorf("a compressed record of %d bytes at %d", e.Bytes, e.Place)
	}
	return nil
}

// appendFields appends the entry's fields after the first.
func (e Entry) appendFields(b []byte) []byte {
	kind := uint64(e.Kind)
	if e.Base != 0 {
		kind += entryBase
	}
	if e.Remove {
		kind += entryRemove
	}
	if e.Blind {
		kind += entryBlind
	}
	b = binary.AppendUvarint(b, e.Count)
	b = binary.AppendUvarint(b, kind)
	if e.Remove || !e.Kind.Stored() {
		return b
	}
	if e.Base != 0 {
		b = binary.AppendUvarint(b, uint64(e.Base))
	}
	b = binary.AppendUvarint(b, uint64(e.At.Epoch))
	b = binary.AppendUvarint(b, e.At.N)
	b = binary.AppendUvarint(b, uint64(e.Place))
	if e.Kind == Zstd {
		b = binary.AppendUvarint(b, uint64(e.Bytes))
		b = binary.AppendUvarint(b, uint64(e.Skip))
	}
	return b
}

// ObjectEntry is what the map knows of a data object.
type ObjectEntry struct {
	At     Position
	Remove bool  // older runs have nothing of this object; nothing else is set
	Size   int64 // bytes of the object
	Live   int64 // bytes of its data that the current map needs; FrameSize for each block, also of compressed records
	// Density says of an object with compressed records how much smaller its blocks
	// are there, for the collector: one has about FrameSize / 2^((Density-1)/10) bytes.
	// 0: they are frames.
	Density uint8
	Died    Position // once Live is 0: the position since when. Otherwise the zero value
}

// ObjectKey is the key of the object at a position in a run of objects. Keys are
// in the order of positions.
func ObjectKey(p Position) uint64 { return uint64(p.Epoch)<<32 | p.N }

func keyPosition(key uint64) Position {
	return Position{Epoch: uint32(key >> 32), N: key & MaxN}
}

// check says what is wrong with an entry by itself.
func (e ObjectEntry) check() error {
	switch {
	case !e.At.named():
		return fmt.Errorf("position %v", e.At)
	case e.Remove:
		if e.Size != 0 || e.Live != 0 || e.Density != 0 || !e.Died.IsZero() {
			return errors.New("a size or an end for an object that is removed")
		}
		return nil
	case e.Size < FooterSize || e.Size > MaxObjectSize:
		return fmt.Errorf("an object of %d bytes", e.Size)
	case e.Density > MaxDensity || e.Density != 0 && e.Live == 0:
		return fmt.Errorf("density %d, and %d live bytes", e.Density, e.Live)
	case e.Live < 0 || e.Density == 0 && e.Live > e.Size-FooterSize || e.Live > maxLive:
		return fmt.Errorf("%d live bytes of %d", e.Live, e.Size)
	case e.Live > 0 && !e.Died.IsZero():
		return fmt.Errorf("%d live bytes, and dead since %v", e.Live, e.Died)
	case e.Live == 0 && (!e.Died.named() || e.Died.Less(e.At) && !e.beside()):
		return fmt.Errorf("no live bytes, and dead since %v", e.Died)
	}
	return nil
}

// beside reports whether the object is the collector's, and died by a client's
// object of the same epoch. The collector counts from FirstCollected on beside
// the clients, so that the order of such positions does not say which was first.
func (e ObjectEntry) beside() bool {
	return e.At.Epoch == e.Died.Epoch && e.At.N >= FirstCollected && e.Died.N < FirstCollected
}

// appendFields appends the entry's fields after the first.
func (e ObjectEntry) appendFields(b []byte) []byte {
	if e.Remove {
		return binary.AppendUvarint(b, entryRemove)
	}
	if e.Live > 0 && e.Density != 0 {
		b = binary.AppendUvarint(b, objectDense)
		b = binary.AppendUvarint(b, uint64(e.Size))
		b = binary.AppendUvarint(b, uint64(e.Density))
		return binary.AppendUvarint(b, uint64(e.Live))
	}
	if e.Live > 0 {
		b = binary.AppendUvarint(b, 0)
		b = binary.AppendUvarint(b, uint64(e.Size))
		return binary.AppendUvarint(b, uint64(e.Live))
	}
	b = binary.AppendUvarint(b, objectDied)
	b = binary.AppendUvarint(b, uint64(e.Size))
	b = binary.AppendUvarint(b, uint64(e.Died.Epoch))
	return binary.AppendUvarint(b, e.Died.N)
}

// fields reads the entries of a page. After the first error it reads nothing.
type fields struct {
	b   []byte // what is left
	err error
}

var (
	errCut   = errors.New("a field is cut off or too long")
	errLong  = errors.New("a field is not in its shortest form")
	errLarge = errors.New("a field is too large")
)

// next reads a field that is at most max.
func (f *fields) next(max uint64) uint64 {
	if f.err != nil {
		return 0
	}
	v, n := binary.Uvarint(f.b)
	switch {
	case n <= 0:
		f.err = errCut
	case n > 1 && f.b[n-1] == 0:
		f.err = errLong
	case v > max:
		f.err = errLarge
	default:
		f.b = f.b[n:]
		return v
	}
	return 0
}

// position reads the fields of a position.
func (f *fields) position() Position {
	epoch := uint32(f.next(math.MaxUint32))
	return Position{Epoch: epoch, N: f.next(MaxN)}
}

// entry reads an entry of blocks after one that ends at end.
func (f *fields) entry(end uint64) (e Entry) {
	e.First = f.next(MaxBlocks) + end
	e.Count = f.next(MaxBlocks)
	kind := f.next(math.MaxUint64)
	if f.err == nil && (kind >= 2*entryBlind || Kind(kind&7) > Zstd) {
		f.err = &UnsupportedError{What: run, Why: fmt.Sprintf("kind %d", kind)}
	}
	e.Kind = Kind(kind & 7)
	base := kind&entryBase != 0
	e.Remove = kind&entryRemove != 0
	e.Blind = kind&entryBlind != 0
	if base && (e.Remove || !e.Kind.Stored()) && f.err == nil {
		f.err = errors.New("a place for blocks that have none")
	}
	if !e.Remove && e.Kind.Stored() {
		if base {
			if e.Base = uint32(f.next(math.MaxUint32)); e.Base == 0 && f.err == nil {
				f.err = errors.New("a container with number 0")
			}
		}
		e.At = f.position()
		e.Place = uint32(f.next(math.MaxUint32))
		if e.Kind == Zstd {
			e.Bytes = uint32(f.next(math.MaxUint32))
			e.Skip = uint32(f.next(MaxCompressed))
		}
	}
	if f.err == nil {
		f.err = e.check()
	}
	return e
}

// object reads an entry of an object. last is the key of the entry before, unless
// it is the first.
func (f *fields) object(last uint64, first bool) (e ObjectEntry) {
	step := f.next(math.MaxUint64 - last)
	if step == 0 && !first && f.err == nil {
		f.err = errors.New("the object of the entry before once more")
	}
	e.At = keyPosition(last + step)
	switch state := f.next(math.MaxUint64); state {
	case 0:
		e.Size = int64(f.next(MaxObjectSize))
		if e.Live = int64(f.next(MaxObjectSize)); e.Live == 0 && f.err == nil {
			f.err = errors.New("no live bytes, and not dead")
		}
	case objectDense:
		e.Size = int64(f.next(MaxObjectSize))
		if e.Density = uint8(f.next(MaxDensity)); e.Density == 0 && f.err == nil {
			f.err = errors.New("a density of 0")
		}
		if e.Live = int64(f.next(maxLive)); e.Live == 0 && f.err == nil {
			f.err = errors.New("no live bytes, and not dead")
		}
	case objectDied:
		e.Size = int64(f.next(MaxObjectSize))
		e.Died = f.position()
	case entryRemove:
		e.Remove = true
	default:
		f.err = &UnsupportedError{What: run, Why: fmt.Sprintf("an object in state %d", state)}
	}
	if f.err == nil {
		f.err = e.check()
	}
	return e
}

// inEntry says that err is about entry n of page i.
func inEntry(err error, i, n int) error {
	var later *UnsupportedError
	if errors.As(err, &later) {
		return unsupported(run, "page %d: entry %d: %s", i, n, later.Why)
	}
	return damaged(run, "page %d: entry %d: %v", i, n, err)
}
