// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"cmp"
	"hash/crc32"
	"slices"
	"time"
)

const (
	logMagic = "swnbdlog"
	logForm  = 1

	flagCollected = 1
	flagLastOfCut = 2

	recordSize    = 32
	collectedSize = 48 // a record with its source

	object = "data object"
)

// Record describes a range of blocks in a data object.
type Record struct {
	First uint64 // block
	Count uint32 // blocks, at least 1
	Kind  Kind
	Place uint32 // where its bytes begin in the object; 0 if it has none
	Bytes uint32 // how many it has there

	// In the collector's objects only: what the bytes were copied from. Zero: from
	// what lies below the map.
	Source      Position
	SourcePlace uint32
	// Unpacked says of a record of kind Data that its blocks were taken out of the
	// record of kind Zstd whose bytes begin at SourcePlace.
	Unpacked bool
}

// End returns the block after the record's last.
func (r Record) End() uint64 { return r.First + uint64(r.Count) }

// Footer is the end of a data object.
type Footer struct {
	Collected  bool // written by the collector, and part of no cut
	LastOfCut  bool
	UUID       UUID
	At         Position  // the object's own
	FirstOfCut uint64    // N of the first object of its cut; 0 in the collector's objects
	Durable    uint64    // every N up to this one was in Swift when the object was sealed; 0: none
	Size       int64     // bytes of the disk after this object
	Sealed     time.Time // in milliseconds; for people only. The zero time: not known
	Records    uint32    // how many records the object has
}

func (f Footer) recordSize() int64 {
	if f.Collected {
		return collectedSize
	}
	return recordSize
}

// AppendTail appends the records and the footer of a data object to dst, and
// returns the result. dst is the object's data, or its end, or nothing if the
// data has gone out already. Records of f is set to the number of records. The
// sources of records are written only if f is of a collector's object.
//
// AppendTail writes what it is given. [CheckTail] says whether a parser will
// take it.
func AppendTail(dst []byte, records []Record, f Footer) []byte {
	size := int(f.recordSize())
	dst = slices.Grow(dst, len(records)*size+FooterSize)
	start := len(dst)
	dst = dst[:start+len(records)*size]
	table := dst[start:]
	for i := range records {
		r, b := &records[i], table[i*size:(i+1)*size]
		le.PutUint64(b, r.First)
		le.PutUint32(b[8:], r.Count)
		form := uint32(r.Kind)
		if f.Collected && r.Unpacked {
			form |= uint32(Zstd) << 8
		}
		le.PutUint32(b[12:], form)
		le.PutUint32(b[16:], r.Place)
		le.PutUint32(b[20:], r.Bytes)
		le.PutUint64(b[24:], 0)
		if f.Collected {
			le.PutUint32(b[32:], r.Source.Epoch)
			le.PutUint32(b[36:], r.SourcePlace)
			le.PutUint64(b[40:], r.Source.N)
		}
	}

	var flags uint16
	if f.Collected {
		flags |= flagCollected
	}
	if f.LastOfCut {
		flags |= flagLastOfCut
	}
	dst = dst[:len(dst)+FooterSize]
	b := dst[len(dst)-FooterSize:]
	clear(b)
	copy(b, logMagic)
	le.PutUint16(b[8:], logForm)
	le.PutUint16(b[10:], flags)
	le.PutUint32(b[12:], uint32(size))
	copy(b[16:], f.UUID[:])
	le.PutUint32(b[32:], f.At.Epoch)
	le.PutUint32(b[36:], uint32(len(records)))
	le.PutUint64(b[40:], f.At.N)
	le.PutUint64(b[48:], f.FirstOfCut)
	le.PutUint64(b[56:], f.Durable)
	le.PutUint64(b[64:], uint64(f.Size))
	le.PutUint64(b[72:], millis(f.Sealed))
	le.PutUint32(b[80:], crc32.Checksum(table, castagnoli))
	le.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
	return dst
}

// maxMillis is the end of the year 9999. Times after it have no usual form.
const maxMillis = 253402300799999

func millis(t time.Time) uint64 {
	ms := t.UnixMilli()
	if ms < 0 || ms > maxMillis {
		return 0
	}
	return uint64(ms)
}

func fromMillis(ms uint64) time.Time {
	if ms == 0 || ms > maxMillis {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms)).UTC()
}

// ParseTail reads the footer and the records of a data object of size bytes.
// tail is the end of that object. If need is not 0, then tail is too short: the
// object's last need bytes are needed, and the other results are empty.
//
// It does not know which object was asked for: see [Footer.Check].
func ParseTail(tail []byte, size int64) (f Footer, records []Record, need int64, err error) {
	fail := func(err error) (Footer, []Record, int64, error) { return Footer{}, nil, 0, err }
	if int64(len(tail)) > size {
		return fail(damaged(object, "%d bytes of an object of %d", len(tail), size))
	}
	if size < FooterSize || size > MaxObjectSize {
		return fail(damaged(object, "it has %d bytes, and can have %d to %d", size, FooterSize, int64(MaxObjectSize)))
	}
	if len(tail) < FooterSize {
		return Footer{}, nil, min(size, TailSize), nil
	}
	b := tail[len(tail)-FooterSize:]
	f, table, err := parseFooter(b)
	if err != nil {
		return fail(err)
	}
	length := int64(f.Records) * f.recordSize()
	if length > size-FooterSize {
		return fail(damaged(object, "%d records in an object of %d bytes", f.Records, size))
	}
	if length > int64(len(tail)-FooterSize) {
		return Footer{}, nil, length + FooterSize, nil
	}
	t := tail[int64(len(tail)-FooterSize)-length : len(tail)-FooterSize]
	if crc32.Checksum(t, castagnoli) != table {
		return fail(damaged(object, "records: wrong checksum"))
	}
	records, err = parseRecords(t, f)
	if err != nil {
		return fail(err)
	}
	if err := checkRecords(records, f, size-FooterSize-length); err != nil {
		return fail(err)
	}
	return f, records, 0, nil
}

// parseFooter reads a footer, and the CRC of the records from it.
func parseFooter(b []byte) (f Footer, table uint32, err error) {
	if !bytes.HasPrefix(b, []byte(logMagic)) {
		return Footer{}, 0, damaged(object, "footer: begins with %q, expected %q", b[:8], logMagic)
	}
	if crc32.Checksum(b[:124], castagnoli) != le.Uint32(b[124:]) {
		return Footer{}, 0, damaged(object, "footer: wrong checksum")
	}
	flags := le.Uint16(b[10:])
	switch form := le.Uint16(b[8:]); {
	case form != logForm:
		return Footer{}, 0, unsupported(object, "form %d", form)
	case flags&^(flagCollected|flagLastOfCut) != 0:
		return Footer{}, 0, unsupported(object, "flags %#x", flags)
	case !zero(b[84:124]):
		return Footer{}, 0, unsupported(object, "footer: bytes 84 to 123 are not zero")
	}
	f = Footer{
		Collected:  flags&flagCollected != 0,
		LastOfCut:  flags&flagLastOfCut != 0,
		UUID:       UUID(b[16:32]),
		At:         Position{Epoch: le.Uint32(b[32:]), N: le.Uint64(b[40:])},
		FirstOfCut: le.Uint64(b[48:]),
		Durable:    le.Uint64(b[56:]),
		Size:       int64(le.Uint64(b[64:])),
		Sealed:     fromMillis(le.Uint64(b[72:])),
		Records:    le.Uint32(b[36:]),
	}
	if size := le.Uint32(b[12:]); int64(size) != f.recordSize() {
		return Footer{}, 0, damaged(object, "footer: %d bytes of a record, expected %d", size, f.recordSize())
	}
	return f, le.Uint32(b[80:]), checkFooter(f)
}

func checkFooter(f Footer) error {
	switch {
	case f.UUID.IsZero():
		return damaged(object, "footer: no uuid")
	case !f.At.named():
		return damaged(object, "footer: position %v", f.At)
	case f.Durable >= f.At.N:
		return damaged(object, "footer: %d is durable at %d already", f.Durable, f.At.N)
	case f.Size < 1:
		return damaged(object, "footer: a disk of %d bytes", f.Size)
	case f.Records > MaxRecords:
		return damaged(object, "footer: %d records, more than %d", f.Records, MaxRecords)
	case f.Collected && (f.FirstOfCut != 0 || f.LastOfCut):
		return damaged(object, "footer: the collector's object is in a cut, whose first is %d", f.FirstOfCut)
	case !f.Collected && (f.FirstOfCut < 1 || f.FirstOfCut > f.At.N):
		return damaged(object, "footer: %d is in the cut that begins at %d", f.At.N, f.FirstOfCut)
	case f.Collected && f.At.N < FirstCollected:
		return damaged(object, "footer: the collector's object has a client's number, %v", f.At)
	case !f.Collected && f.At.N >= FirstCollected:
		return damaged(object, "footer: a client's object has a number of the collector's, %v", f.At)
	}
	return nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// parseRecords reads the table of records, whose length fits f.
func parseRecords(t []byte, f Footer) ([]Record, error) {
	size := int(f.recordSize())
	records := make([]Record, f.Records)
	for i := range records {
		b := t[i*size : (i+1)*size]
		unpacked := f.Collected && Kind(b[12]) == Data && Kind(b[13]) == Zstd
		if !unpacked && b[13] != 0 || b[14]|b[15] != 0 || le.Uint64(b[24:]) != 0 {
			return nil, unsupported(object, "record %d: bytes 13 to 15 or 24 to 31 are not zero", i)
		}
		r := &records[i]
		r.First = le.Uint64(b)
		r.Count = le.Uint32(b[8:])
		r.Kind = Kind(b[12])
		r.Place = le.Uint32(b[16:])
		r.Bytes = le.Uint32(b[20:])
		r.Unpacked = unpacked
		if f.Collected {
			r.Source = Position{Epoch: le.Uint32(b[32:]), N: le.Uint64(b[40:])}
			r.SourcePlace = le.Uint32(b[36:])
		}
	}
	return records, nil
}

// CheckTail returns the error with which a parser will refuse an object that has
// so many bytes of data and then these records and this footer, or nil. A
// writer calls it before it sends the object: once it is in Swift, there is no
// way back.
func CheckTail(records []Record, f Footer, data int64) error {
	f.Records = uint32(min(len(records), MaxRecords+1))
	if err := checkFooter(f); err != nil {
		return err
	}
	if size := data + int64(len(records))*f.recordSize() + FooterSize; data < 0 || size > MaxObjectSize {
		return damaged(object, "it has %d bytes, and can have %d to %d", size, FooterSize, int64(MaxObjectSize))
	}
	return checkRecords(records, f, data)
}

// checkRecords says what is wrong with the records of an object that has so many
// bytes of data.
func checkRecords(records []Record, f Footer, data int64) error {
	limit := uint64(MaxBlocks)
	if !f.Collected {
		limit = blocks(f.Size)
	}
	placed, sorted := true, true // by place, by block
	var place, block uint64      // the ends of the records so far
	for i := range records {
		r := &records[i]
		if err := r.check(i, limit, uint64(data)); err != nil {
			return err
		}
		if f.Collected {
			if err := r.checkSource(i, f.At); err != nil {
				return err
			}
		}
		if r.First < block {
			sorted = false
		}
		block = max(block, r.End())
		if r.Bytes > 0 {
			if uint64(r.Place) < place {
				placed = false
			}
			place = max(place, uint64(r.Place)+uint64(r.Bytes))
		}
	}
	// The collector may copy several versions of a block, for snapshots.
	if !sorted && !f.Collected {
		i, j, ok := overlap(records, func(r *Record) (uint64, uint64) { return r.First, uint64(r.Count) })
		if ok {
			return damaged(object, "records %d and %d both have block %d", i, j, max(records[i].First, records[j].First))
		}
	}
	if !placed {
		i, j, ok := overlap(records, func(r *Record) (uint64, uint64) { return uint64(r.Place), uint64(r.Bytes) })
		if ok {
			return damaged(object, "records %d and %d both have byte %d", i, j, max(records[i].Place, records[j].Place))
		}
	}
	return nil
}

// blocks returns how many blocks a disk of size bytes has.
func blocks(size int64) uint64 { return (uint64(size) + BlockSize - 1) / BlockSize }

// check says what is wrong with record i of an object whose disk has limit blocks
// and which has so many bytes of data.
func (r *Record) check(i int, limit, data uint64) error {
	if r.Count < 1 {
		return damaged(object, "record %d: no blocks", i)
	}
	if r.First >= limit || uint64(r.Count) > limit-r.First {
		return damaged(object, "record %d: %d blocks from %d on, and there can be %d", i, r.Count, r.First, limit)
	}
	switch r.Kind {
	case Data:
		if uint64(r.Bytes) != uint64(r.Count)*FrameSize {
			return damaged(object, "record %d: %d blocks in %d bytes, expected %d", i, r.Count, r.Bytes, uint64(r.Count)*FrameSize)
		}
	case Zeroes, Trimmed:
		if r.Place != 0 || r.Bytes != 0 {
			return damaged(object, "record %d: %d bytes at %d for blocks that have none", i, r.Bytes, r.Place)
		}
	case Zstd:
		if !fitsCompressed(uint64(r.Bytes), uint64(r.Count)) {
			return damaged(object, "record %d: %d blocks compressed to %d bytes", i, r.Count, r.Bytes)
		}
	default:
		return unsupported(object, "record %d: %v", i, r.Kind)
	}
	if uint64(r.Place)+uint64(r.Bytes) > data {
		return damaged(object, "record %d: %d bytes at %d, of %d bytes of data", i, r.Bytes, r.Place, data)
	}
	return nil
}

// checkSource says what is wrong with the source of record i of the collector's
// object at a position.
func (r *Record) checkSource(i int, at Position) error {
	switch {
	case !r.Kind.Stored():
		return damaged(object, "record %d: the collector has copied %v", i, r.Kind)
	case r.Unpacked && (r.Kind != Data || r.Source.IsZero()):
		return damaged(object, "record %d: %v taken out of compressed data at %v", i, r.Kind, r.Source)
	case r.Source.IsZero() && r.SourcePlace == 0: // from below
		return nil
	case !r.Source.named() || !r.Source.Less(at):
		return damaged(object, "record %d: copied from %v to %v", i, r.Source, at)
	case !r.Unpacked && uint64(r.SourcePlace)+uint64(r.Bytes) > MaxObjectSize-FooterSize:
		return damaged(object, "record %d: copied from %d bytes at %d", i, r.Bytes, r.SourcePlace)
	}
	return nil
}

// overlap returns two records whose ranges, as of gives them, overlap.
func overlap(records []Record, of func(*Record) (start, length uint64)) (i, j int, ok bool) {
	type span struct {
		start, end uint64
		i          int
	}
	spans := make([]span, 0, len(records))
	for i := range records {
		if start, length := of(&records[i]); length > 0 {
			spans = append(spans, span{start, start + length, i})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	for k := 1; k < len(spans); k++ {
		if a, b := spans[k-1], spans[k]; b.start < a.end {
			return min(a.i, b.i), max(a.i, b.i), true
		}
	}
	return 0, 0, false
}

// Check returns a [DamagedError] if the object is not the one at a position of
// volume u.
func (f Footer) Check(u UUID, at Position) error {
	if f.UUID != u {
		return damaged(object, "%v: it belongs to volume %v, expected %v", at, f.UUID, u)
	}
	if f.At != at {
		return damaged(object, "%v: it is object %v", at, f.At)
	}
	return nil
}
