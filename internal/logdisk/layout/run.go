// SPDX-License-Identifier: MIT

package layout

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"
	"sort"
)

const (
	runMagic      = "swnbdrun"
	runForm       = 1
	runFooterSize = 64
	pageRefSize   = 20
	minPage       = 3 + crcSize // an entry has at least three fields

	// MaxPage is how many bytes a page of a run has at most, its CRC included.
	MaxPage = 64 << 10

	run = "run"
)

// RunKind says what a run maps.
type RunKind uint16

// The kinds of runs.
const (
	RunBlocks  RunKind = iota // blocks of the disk
	RunObjects                // data objects
)

func (k RunKind) String() string {
	switch k {
	case RunBlocks:
		return "a run of blocks"
	case RunObjects:
		return "a run of objects"
	}
	return fmt.Sprintf("a run of kind %d", uint16(k))
}

// A RunWriter makes a run in memory.
type RunWriter struct {
	u     UUID
	kind  RunKind
	name  Position
	out   []byte
	pages []PageRef
	start int    // where the open page begins in out
	open  bool   // it has an entry
	any   bool   // the run has an entry
	end   uint64 // of blocks: the block after the last; of objects: the last key
	buf   []byte // the fields of an entry after its key
}

// NewRunWriter begins a run of volume u with a name, as RunName takes it.
func NewRunWriter(u UUID, kind RunKind, name Position) *RunWriter {
	return &RunWriter{u: u, kind: kind, name: name}
}

// Add appends an entry to a run of blocks. It begins at or after the end of the
// entry before. An entry that no parser would take is an error, and is left out.
func (w *RunWriter) Add(e Entry) error {
	if w.kind != RunBlocks {
		return fmt.Errorf("an entry of blocks does not belong to %v", w.kind)
	}
	if err := e.check(); err != nil {
		return fmt.Errorf("entry of block %d: %w", e.First, err)
	}
	if e.First < w.end {
		return fmt.Errorf("entry of block %d: the entry before ends at %d", e.First, w.end)
	}
	w.buf = e.appendFields(w.buf[:0])
	w.add(e.First, e.End())
	return nil
}

// AddObject appends an entry to a run of objects, in the order of positions. An
// entry that no parser would take is an error, and is left out.
func (w *RunWriter) AddObject(e ObjectEntry) error {
	if w.kind != RunObjects {
		return fmt.Errorf("an entry of an object does not belong to %v", w.kind)
	}
	if err := e.check(); err != nil {
		return fmt.Errorf("entry of object %v: %w", e.At, err)
	}
	key := ObjectKey(e.At)
	if w.any && key <= w.end {
		return fmt.Errorf("entry of object %v: the entry before has %v", e.At, keyPosition(w.end))
	}
	w.buf = e.appendFields(w.buf[:0])
	w.add(key, key)
	return nil
}

// add appends the entry of a key whose other fields are in buf. end is what the
// next key is counted from.
func (w *RunWriter) add(key, end uint64) {
	if w.open {
		before := len(w.out)
		w.out = append(binary.AppendUvarint(w.out, key-w.end), w.buf...)
		if len(w.out)-w.start+crcSize > MaxPage {
			w.out = w.out[:before]
			w.endPage()
		}
	}
	if !w.open {
		w.pages = append(w.pages, PageRef{First: key, Place: int64(w.start)})
		w.out = append(binary.AppendUvarint(w.out, key), w.buf...)
		w.open = true
	}
	w.end, w.any = end, true
}

func (w *RunWriter) endPage() {
	w.out = le.AppendUint32(w.out, crc32.Checksum(w.out[w.start:], castagnoli))
	w.pages[len(w.pages)-1].Bytes = uint32(len(w.out) - w.start)
	w.start, w.open = len(w.out), false
}

// Len returns about how many bytes the run has so far.
func (w *RunWriter) Len() int { return len(w.out) + len(w.pages)*pageRefSize + runFooterSize }

// Bytes ends the run and returns it. The writer is of no use any more.
func (w *RunWriter) Bytes() []byte {
	if w.open {
		w.endPage()
	}
	out := w.out
	w.out = nil
	pages := len(out)
	for _, p := range w.pages {
		out = le.AppendUint64(out, p.First)
		out = le.AppendUint64(out, uint64(p.Place))
		out = le.AppendUint32(out, p.Bytes)
	}
	index := crc32.Checksum(out[pages:], castagnoli)
	footer := len(out)
	out = append(out, runMagic...)
	out = le.AppendUint16(out, runForm)
	out = le.AppendUint16(out, uint16(w.kind))
	out = le.AppendUint32(out, uint32(len(w.pages)))
	out = le.AppendUint64(out, uint64(pages))
	out = append(out, w.u[:]...)
	out = le.AppendUint32(out, index)
	out = le.AppendUint64(le.AppendUint32(out, w.name.Epoch), w.name.N)
	out = le.AppendUint32(out, 0)
	return le.AppendUint32(out, crc32.Checksum(out[footer:], castagnoli))
}

// PageRef is what a run's index says of a page.
type PageRef struct {
	First uint64 // key of its first entry: a block, or an ObjectKey
	Place int64  // where it begins in the run
	Bytes uint32 // its length
}

// RunIndex is the index of a run. With it, a page can be read alone.
type RunIndex struct {
	UUID  UUID
	Kind  RunKind
	Name  Position  // as RunName takes it
	Pages []PageRef // in the order of their keys
}

// Check returns a [DamagedError] if the run is not the one with a name.
func (x *RunIndex) Check(name Position) error {
	if x.Name != name {
		return damaged(run, "it is %s, and lies under another name", RunName(x.Name))
	}
	return nil
}

// ParseRunIndex reads the index of a run of volume u, a run of size bytes. tail
// is the end of the run. If need is not 0, then tail is too short: the run's last
// need bytes are needed, and x is nil.
func ParseRunIndex(tail []byte, size int64, u UUID) (x *RunIndex, need int64, err error) {
	if int64(len(tail)) > size {
		return nil, 0, damaged(run, "%d bytes of a run of %d", len(tail), size)
	}
	if size < runFooterSize {
		return nil, 0, damaged(run, "it has %d bytes, and must have %d", size, runFooterSize)
	}
	if len(tail) < runFooterSize {
		return nil, min(size, TailSize), nil
	}
	end := len(tail) - runFooterSize
	b := tail[end:]
	if string(b[:8]) != runMagic {
		return nil, 0, damaged(run, "footer: begins with %q, expected %q", b[:8], runMagic)
	}
	if crc32.Checksum(b[:60], castagnoli) != le.Uint32(b[60:]) {
		return nil, 0, damaged(run, "footer: wrong checksum")
	}
	x = &RunIndex{UUID: UUID(b[24:40]), Kind: RunKind(le.Uint16(b[10:])), Name: Position{le.Uint32(b[44:]), le.Uint64(b[48:])}}
	pages, length := uint64(le.Uint32(b[12:])), le.Uint64(b[16:])
	switch form := le.Uint16(b[8:]); {
	case form != runForm:
		return nil, 0, unsupported(run, "form %d", form)
	case x.Kind > RunObjects:
		return nil, 0, unsupported(run, "it is %v", x.Kind)
	case !zero(b[56:60]):
		return nil, 0, unsupported(run, "footer: bytes 56 to 59 are not zero")
	case x.UUID != u:
		return nil, 0, damaged(run, "it belongs to volume %v, expected %v", x.UUID, u)
	case !x.Name.named():
		return nil, 0, damaged(run, "%v is no name of a run", x.Name)
	}
	index := pages * pageRefSize
	if body := uint64(size - runFooterSize); index > body || length != body-index {
		return nil, 0, damaged(run, "%d pages with %d bytes in a run of %d bytes", pages, length, size)
	}
	if index > uint64(end) {
		return nil, int64(index) + runFooterSize, nil
	}
	t := tail[end-int(index) : end]
	if crc32.Checksum(t, castagnoli) != le.Uint32(b[40:]) {
		return nil, 0, damaged(run, "index: wrong checksum")
	}
	x.Pages = make([]PageRef, pages)
	var place uint64
	for i := range x.Pages {
		e := t[i*pageRefSize:]
		p := PageRef{First: le.Uint64(e), Place: int64(le.Uint64(e[8:])), Bytes: le.Uint32(e[16:])}
		switch {
		case i > 0 && p.First <= x.Pages[i-1].First:
			return nil, 0, damaged(run, "index: page %d begins at key %#x, and the page before at %#x", i, p.First, x.Pages[i-1].First)
		case uint64(p.Place) != place:
			return nil, 0, damaged(run, "index: page %d is at %d, expected %d", i, p.Place, place)
		case p.Bytes < minPage || p.Bytes > MaxPage:
			return nil, 0, damaged(run, "index: page %d has %d bytes", i, p.Bytes)
		}
		x.Pages[i] = p
		place += uint64(p.Bytes)
	}
	if place != length {
		return nil, 0, damaged(run, "index: its pages have %d bytes, expected %d", place, length)
	}
	return x, 0, nil
}

// Find returns the number of the one page that can have an entry with a key, or
// -1 if there is none. Of blocks, it is also the one page whose entries can
// reach over that block.
func (x *RunIndex) Find(key uint64) int {
	return sort.Search(len(x.Pages), func(i int) bool { return x.Pages[i].First > key }) - 1
}

// body checks the bytes of page i of a run of a kind, and returns its entries.
func (x *RunIndex) body(i int, page []byte, kind RunKind) ([]byte, error) {
	if x.Kind != kind {
		return nil, damaged(run, "it is %v, expected %v", x.Kind, kind)
	}
	if want := x.Pages[i].Bytes; uint64(len(page)) != uint64(want) {
		return nil, damaged(run, "page %d: %d bytes, expected %d", i, len(page), want)
	}
	body := page[:len(page)-crcSize]
	if crc32.Checksum(body, castagnoli) != le.Uint32(page[len(body):]) {
		return nil, damaged(run, "page %d: wrong checksum", i)
	}
	return body, nil
}

// Page returns the entries of page i of a run of blocks, whose bytes are page. It
// ends with the first error.
func (x *RunIndex) Page(i int, page []byte) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		body, err := x.body(i, page, RunBlocks)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		limit := uint64(MaxBlocks)
		if i+1 < len(x.Pages) {
			limit = x.Pages[i+1].First
		}
		var end uint64
		f := fields{b: body}
		for n := 0; len(f.b) > 0; n++ {
			e := f.entry(end)
			switch {
			case f.err != nil:
			case n == 0 && e.First != x.Pages[i].First:
				f.err = fmt.Errorf("it begins at block %d, and its page at %d", e.First, x.Pages[i].First)
			case e.End() > limit:
				f.err = fmt.Errorf("it ends at block %d, beyond %d, where its page ends", e.End(), limit)
			}
			if f.err != nil {
				yield(Entry{}, inEntry(f.err, i, n))
				return
			}
			if !yield(e, nil) {
				return
			}
			end = e.End()
		}
	}
}

// ObjectPage returns the entries of page i of a run of objects, whose bytes are
// page. It ends with the first error.
func (x *RunIndex) ObjectPage(i int, page []byte) iter.Seq2[ObjectEntry, error] {
	return func(yield func(ObjectEntry, error) bool) {
		body, err := x.body(i, page, RunObjects)
		if err != nil {
			yield(ObjectEntry{}, err)
			return
		}
		var last uint64
		f := fields{b: body}
		for n := 0; len(f.b) > 0; n++ {
			e := f.object(last, n == 0)
			key := ObjectKey(e.At)
			switch {
			case f.err != nil:
			case n == 0 && key != x.Pages[i].First:
				f.err = fmt.Errorf("it has key %#x, and its page %#x", key, x.Pages[i].First)
			case i+1 < len(x.Pages) && key >= x.Pages[i+1].First:
				f.err = fmt.Errorf("it has key %#x, and the next page begins at %#x", key, x.Pages[i+1].First)
			}
			if f.err != nil {
				yield(ObjectEntry{}, inEntry(f.err, i, n))
				return
			}
			if !yield(e, nil) {
				return
			}
			last = key
		}
	}
}

// Run is a whole run in memory.
type Run struct {
	RunIndex
	b []byte
}

// ParseRun reads a run of volume u. It checks the index. The pages are checked
// one by one when their entries are read. It keeps b.
func ParseRun(b []byte, u UUID) (*Run, error) {
	// All of the run is there, so no more of it is needed.
	x, _, err := ParseRunIndex(b, int64(len(b)), u)
	if err != nil {
		return nil, err
	}
	return &Run{RunIndex: *x, b: b}, nil
}

// Entries returns the entries of a run of blocks in order. It ends with the first
// error.
func (r *Run) Entries() iter.Seq2[Entry, error] {
	return entries(r, RunBlocks, (*RunIndex).Page)
}

// Objects returns the entries of a run of objects in order. It ends with the
// first error.
func (r *Run) Objects() iter.Seq2[ObjectEntry, error] {
	return entries(r, RunObjects, (*RunIndex).ObjectPage)
}

func entries[E any](r *Run, kind RunKind, page func(*RunIndex, int, []byte) iter.Seq2[E, error]) iter.Seq2[E, error] {
	return func(yield func(E, error) bool) {
		if r.Kind != kind {
			var none E
			yield(none, damaged(run, "it is %v, expected %v", r.Kind, kind))
			return
		}
		for i, p := range r.Pages {
			for e, err := range page(&r.RunIndex, i, r.b[p.Place:p.Place+int64(p.Bytes)]) {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}
