// SPDX-License-Identifier: MIT

package layout

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
)

const (
	keptMagic      = "swnbdkpt"
	keptForm       = 1
	keptHeaderSize = 48

	kept = "list of what snapshots need"
)

// Kept lists what the current map does not need, and a pin does.
type Kept struct {
	Objects []KeptObject // data objects, in the order of positions
	Runs    []KeptObject // runs, in the order of their names; their sizes are 0
}

// KeptObject is a data object or a run that the newest root does not need.
type KeptObject struct {
	At   Position // its name
	Size int64    // bytes in Swift; 0: not known
	// Last is the name of the last root that may need it. A pin needs it if the
	// pin's root is not after Last, and knew it (Pin.HasObject, Pin.HasRun).
	Last Position
}

// Marshal returns the bytes of the list of volume u with a name, as KeptName takes
// it.
func (k Kept) Marshal(u UUID, name Position) ([]byte, error) {
	if !name.named() {
		return nil, fmt.Errorf("%s: %v is no name", kept, name)
	}
	b := make([]byte, 0, keptHeaderSize+crcSize+8*(len(k.Objects)+len(k.Runs)))
	b = append(b, keptMagic...)
	b = le.AppendUint16(b, keptForm)
	b = append(b, 0, 0)
	b = le.AppendUint32(b, uint32(len(k.Objects)))
	b = le.AppendUint32(b, uint32(len(k.Runs)))
	b = append(b, 0, 0, 0, 0)
	b = append(b, u[:]...)
	b = le.AppendUint32(b, name.Epoch)
	b = le.AppendUint32(b, uint32(name.N))
	for _, list := range [][]KeptObject{k.Objects, k.Runs} {
		key := uint64(0)
		for i, o := range list {
			next := ObjectKey(o.At)
			switch {
			case !o.At.named() || !o.Last.named() || o.Size < 0 || o.Size > MaxObjectSize:
				return nil, fmt.Errorf("%s: object %v of %d bytes, until %v", kept, o.At, o.Size, o.Last)
			case i > 0 && next <= key:
				return nil, fmt.Errorf("%s: object %v is not after the one before", kept, o.At)
			}
			b = binary.AppendUvarint(b, next-key)
			b = binary.AppendUvarint(b, uint64(o.Size))
			b = binary.AppendUvarint(b, uint64(o.Last.Epoch))
			b = binary.AppendUvarint(b, o.Last.N)
			key = next
		}
	}
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli)), nil
}

// ParseKept is the inverse of Marshal.
func ParseKept(b []byte, u UUID, name Position) (Kept, error) {
	fail := func(format string, args ...any) (Kept, error) { return Kept{}, damaged(kept, format, args...) }
	if len(b) < keptHeaderSize+crcSize {
		return fail("%d bytes", len(b))
	}
	body := b[:len(b)-crcSize]
	switch {
	case string(b[:8]) != keptMagic:
		return fail("wrong magic")
	case crc32.Checksum(body, castagnoli) != le.Uint32(b[len(body):]):
		return fail("wrong checksum")
	case le.Uint16(b[8:]) != keptForm:
		return Kept{}, unsupported(kept, "form %d", le.Uint16(b[8:]))
	case le.Uint16(b[10:]) != 0 || le.Uint32(b[20:]) != 0:
		return Kept{}, unsupported(kept, "a field that is not zero")
	case UUID(b[24:40]) != u:
		return fail("it belongs to volume %s, not %s", UUID(b[24:40]), u)
	case le.Uint32(b[40:]) != name.Epoch || uint64(le.Uint32(b[44:])) != name.N:
		return fail("it is not the one with this name")
	}
	var k Kept
	f := fields{b: body[keptHeaderSize:]}
	for i, list := range []*[]KeptObject{&k.Objects, &k.Runs} {
		n := le.Uint32(b[12+4*i:])
		if uint64(n)*4 > uint64(len(f.b)) { // an entry has at least four bytes
			return fail("%d entries in %d bytes", n, len(f.b))
		}
		key := uint64(0)
		for j := range n {
			step := f.next(math.MaxUint64 - key)
			o := KeptObject{At: keyPosition(key + step), Size: int64(f.next(MaxObjectSize))}
			o.Last = f.position()
			if f.err == nil && (j > 0 && step == 0 || !o.At.named() || !o.Last.named()) {
				f.err = errors.New("not in order, or no name")
			}
			if f.err != nil {
				return fail("entry %d: %v", j, f.err)
			}
			*list = append(*list, o)
			key += step
		}
	}
	if len(f.b) > 0 {
		return fail("%d bytes after the last entry", len(f.b))
	}
	return k, nil
}

// HasObject says whether the data object was there when the pin's root was made.
// The collector may have been writing it then: it says yes for those too.
func (p Pin) HasObject(at Position) bool {
	switch {
	case at.Epoch != p.Root.Epoch:
		return at.Epoch < p.Root.Epoch
	case at.N >= FirstCollected:
		return at.N <= p.Collected
	}
	return p.At.Epoch == at.Epoch && at.N <= p.At.N
}

// HasRun says whether the run was there when the pin's root was made, or was
// being written.
func (p Pin) HasRun(at Position) bool {
	return at.Epoch < p.Root.Epoch || at.Epoch == p.Root.Epoch && at.N <= p.Run
}
