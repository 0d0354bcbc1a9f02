// SPDX-License-Identifier: MIT

// Package increment is the form of what has changed on a disk from one snapshot to
// another, as a file or a stream: a backup that is carried to another place. It is
// written and read once, from its beginning to its end (docs/INCREMENT.md).
package increment

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"swiftnbd/internal/logdisk/layout"
)

const (
	magic = "swiftnbd increment "
	form  = "1"

	// MaxData is how many bytes of data a record has at most.
	MaxData = 4 << 20

	maxHeader  = 64 << 10 // bytes of the header's line
	recordHead = 1 + 8 + 8 + 4

	kindData = 'D'
	kindZero = 'Z'
	kindEnd  = 'E'
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Moment is a snapshot of the disk.
type Moment struct {
	Snapshot string
	Root     layout.Position // the name of its root, as layout.RootName takes it
	Size     int64           // bytes of the disk
}

// Header says what an increment is.
type Header struct {
	UUID layout.UUID // of the disk
	Disk string      // its name where it came from: for people
	From *Moment     // nil: nothing; the increment is the whole snapshot To then
	To   Moment
}

// headerText is a header as JSON has it.
type headerText struct {
	Uuid layout.UUID
	Disk string
	From *momentText `json:",omitempty"`
	To   momentText
}

type momentText struct {
	Snapshot string
	Root     string // without the prefix
	Size     int64
}

func textOf(m Moment) momentText {
	return momentText{m.Snapshot, layout.RootText(m.Root), m.Size}
}

func (t momentText) moment() (m Moment, err error) {
	at, ok := layout.ParseRootText(t.Root)
	switch {
	case !ok:
		return m, fmt.Errorf("%q is no name of a root", t.Root)
	case !layout.Plain(t.Snapshot):
		return m, fmt.Errorf("%q is no name of a snapshot", t.Snapshot)
	case t.Size < 1:
		return m, fmt.Errorf("a disk of %d bytes", t.Size)
	}
	return Moment{t.Snapshot, at, t.Size}, nil
}

// DamagedError says that the bytes are no increment, or not a whole one.
type DamagedError struct{ Why string }

func (e *DamagedError) Error() string { return e.Why }

func damaged(format string, a ...any) error { return &DamagedError{fmt.Sprintf(format, a...)} }

// A Writer writes an increment.
type Writer struct {
	w       io.Writer
	sum     uint32 // the CRC of the header's hash, with which each record's CRC begins
	size    int64
	records uint64
	bytes   uint64
}

// NewWriter writes the header.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	t := headerText{Uuid: h.UUID, Disk: h.Disk, To: textOf(h.To)}
	if h.From != nil {
		from := textOf(*h.From)
		t.From = &from
	}
	line, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	head := append(append([]byte(magic+form+"\n"), line...), '\n')
	hash := sha256.Sum256(head)
	if _, err := parseHeader(line); err != nil {
		return nil, err
	}
	if len(line) > maxHeader {
		return nil, fmt.Errorf("a header of %d bytes", len(line))
	}
	if _, err := w.Write(append(hex.AppendEncode(head, hash[:]), '\n')); err != nil {
		return nil, err
	}
	return &Writer{w: w, sum: crc32.Checksum(hash[:], castagnoli), size: h.To.Size}, nil
}

// Data writes what the disk has from off on, MaxData bytes at most. Ranges come in
// any order, and none twice.
func (w *Writer) Data(off int64, p []byte) error {
	if len(p) > MaxData {
		return fmt.Errorf("%d bytes in one record", len(p))
	}
	return w.record(kindData, off, int64(len(p)), p)
}

// Zero writes that a range reads as zeroes.
func (w *Writer) Zero(off, n int64) error { return w.record(kindZero, off, n, nil) }

func (w *Writer) record(kind byte, off, n int64, p []byte) error {
	if off < 0 || n < 1 || n > w.size || off > w.size-n {
		return fmt.Errorf("%d bytes at %d of %d", n, off, w.size)
	}
	w.records++
	w.bytes += uint64(len(p))
	return w.put(kind, uint64(off), uint64(n), p)
}

func (w *Writer) put(kind byte, a, b uint64, p []byte) error {
	head := le.AppendUint64(le.AppendUint64([]byte{kind}, a), b)
	sum := crc32.Update(crc32.Update(w.sum, castagnoli, head), castagnoli, p)
	if _, err := w.w.Write(le.AppendUint32(head, sum)); err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	_, err := w.w.Write(p)
	return err
}

// End writes the end, without which the increment is not whole.
func (w *Writer) End() error { return w.put(kindEnd, w.records, w.bytes, nil) }

// A Reader reads an increment, and checks it.
type Reader struct {
	Header  Header
	r       io.Reader
	sum     uint32
	records uint64
	bytes   uint64
	err     error
}

// Record is a range of the disk.
type Record struct {
	Off, Len int64
	Data     []byte // nil: it reads as zeroes
}

// NewReader reads the header. Errors are a *DamagedError, or r's.
func NewReader(r io.Reader) (*Reader, error) {
	begin, err := readLine(r, len(magic)+8)
	if err != nil {
		return nil, err
	}
	version, ok := strings.CutPrefix(string(begin), magic)
	switch {
	case !ok:
		return nil, damaged("it is no increment: it does not begin with %q", magic)
	case version != form:
		return nil, damaged("it is an increment of version %q, which a later program has written; this one knows version %s", version, form)
	}
	line, err := readLine(r, maxHeader)
	if err != nil {
		return nil, err
	}
	sum, err := readLine(r, 2*sha256.Size)
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(append(append([]byte(magic+form+"\n"), line...), '\n'))
	if hex.EncodeToString(hash[:]) != string(sum) {
		return nil, damaged("its header is damaged: wrong checksum")
	}
	h, err := parseHeader(line)
	if err != nil {
		return nil, damaged("its header is damaged: %v", err)
	}
	return &Reader{Header: h, r: r, sum: crc32.Checksum(hash[:], castagnoli)}, nil
}

func parseHeader(line []byte) (h Header, err error) {
	var t headerText
	d := json.NewDecoder(bytes.NewReader(line))
	if err := d.Decode(&t); err != nil {
		return h, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return h, errors.New("more than one document")
	}
	if t.Uuid.IsZero() {
		return h, errors.New("no uuid")
	}
	h.UUID, h.Disk = t.Uuid, t.Disk
	if t.From != nil {
		from, err := t.From.moment()
		if err != nil {
			return h, fmt.Errorf("from: %w", err)
		}
		h.From = &from
	}
	if h.To, err = t.To.moment(); err != nil {
		return h, fmt.Errorf("to: %w", err)
	}
	return h, nil
}

// readLine reads a line of at most so many bytes, without its end. It reads no
// byte more.
func readLine(r io.Reader, most int) ([]byte, error) {
	var line []byte
	for b := make([]byte, 1); ; line = append(line, b[0]) {
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, cut(err)
		}
		if b[0] == '\n' {
			return line, nil
		}
		if len(line) >= most {
			return nil, damaged("it is no increment: a line of its header has more than %d bytes", most)
		}
	}
}

// cut says of an error of reading that the increment ends too early, if it does.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("it is cut off: its end is missing")
	}
	return err
}

// Next reads a record. Its data is in p if p has the room, and new otherwise. At
// the end, when all that was read is known to be whole, it returns io.EOF. Other
// errors are a *DamagedError, or the reader's.
func (r *Reader) Next(p []byte) (Record, error) {
	if r.err != nil {
		return Record{}, r.err
	}
	rec, err := r.next(p)
	r.err = err
	return rec, err
}

func (r *Reader) next(p []byte) (rec Record, err error) {
	var head [recordHead]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return rec, cut(err)
	}
	kind, a, b := head[0], le.Uint64(head[1:]), le.Uint64(head[9:])
	n := 0
	if kind == kindData {
		if b > MaxData {
			return rec, damaged("it is damaged: a record of %d bytes after %d others", b, r.records)
		}
		n = int(b)
	}
	if cap(p) < n {
		p = make([]byte, n)
	}
	p = p[:n]
	if _, err := io.ReadFull(r.r, p); err != nil {
		return rec, cut(err)
	}
	if crc32.Update(crc32.Update(r.sum, castagnoli, head[:17]), castagnoli, p) != le.Uint32(head[17:]) {
		return rec, damaged("it is damaged: wrong checksum of a record after %d others", r.records)
	}
	switch kind {
	case kindEnd:
		if a != r.records || b != r.bytes {
			return rec, damaged("it is damaged: it had %d records with %d bytes, and %d with %d bytes are there", a, b, r.records, r.bytes)
		}
		if n, err := r.r.Read(head[:1]); n > 0 {
			return rec, damaged("it is damaged: there is more after its end")
		} else if err != nil && !errors.Is(err, io.EOF) {
			return rec, err
		}
		return rec, io.EOF
	case kindData, kindZero:
	default:
		return rec, damaged("it is damaged: a record of kind %q after %d others", kind, r.records)
	}
	size := uint64(r.Header.To.Size)
	if b < 1 || b > size || a > size-b {
		return rec, damaged("it is damaged: a record of %d bytes at %d of a disk of %d bytes", b, a, size)
	}
	rec.Off, rec.Len = int64(a), int64(b)
	if kind == kindData {
		rec.Data = p
	}
	r.records++
	r.bytes += uint64(n)
	return rec, nil
}
