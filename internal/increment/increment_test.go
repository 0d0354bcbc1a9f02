// SPDX-License-Identifier: MIT

package increment

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"swiftnbd/internal/logdisk/layout"
)

var header = Header{
	UUID: layout.UUID{1, 2}, Disk: "mydisk",
	From: &Moment{"monday", layout.Position{Epoch: 3, N: 4}, 1 << 30},
	To:   Moment{"tuesday, late", layout.Position{Epoch: 5, N: 1}, 2<<30 + 512},
}

// writeAll writes records.
func writeAll(t testing.TB, w *Writer, records []Record) {
	t.Helper()
	for _, r := range records {
		var err error
		if r.Data == nil {
			err = w.Zero(r.Off, r.Len)
		} else {
			err = w.Data(r.Off, r.Data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// sample returns an increment with some records.
func sample(t testing.TB, h Header) ([]byte, []Record) {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, h)
	if err != nil {
		t.Fatal(err)
	}
	records := []Record{{0, 4096, bytes.Repeat([]byte{7}, 4096)}, {8192, 1 << 30, nil}, {1<<30 + 8192, 3, []byte("abc")}, {h.To.Size - 512, 512, make([]byte, 512)}}
	writeAll(t, w, records)
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), records
}

// read reads all of an increment.
func read(r io.Reader) (h Header, records []Record, err error) {
	x, err := NewReader(r)
	if err != nil {
		return h, nil, err
	}
	for {
		rec, err := x.Next(nil)
		if errors.Is(err, io.EOF) {
			return x.Header, records, nil
		}
		if err != nil {
			return x.Header, records, err
		}
		records = append(records, rec)
	}
}

// TestIncrement writes increments and reads them back.
func TestIncrement(t *testing.T) {
	full := header
	full.From = nil
	for _, h := range []Header{header, full} {
		b, want := sample(t, h)
		for _, r := range []io.Reader{bytes.NewReader(b), iotest.OneByteReader(bytes.NewReader(b)), iotest.DataErrReader(bytes.NewReader(b))} {
			got, records, err := read(r)
			if err != nil || !reflect.DeepEqual(got, h) || !reflect.DeepEqual(records, want) {
				t.Errorf("%+v, %v, %v", got, records, err)
			}
		}
	}
	broken := errors.New("broken")
	b, _ := sample(t, header)
	if _, _, err := read(io.MultiReader(bytes.NewReader(b[:len(b)-5]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: %v", err)
	}
}

// TestDamaged changes each byte, cuts an increment off at each place, leaves
// records out, and appends to it.
func TestDamaged(t *testing.T) {
	b, _ := sample(t, header)
	var d *DamagedError
	for i := range b {
		p := bytes.Clone(b)
		p[i] ^= 0x10
		if _, _, err := read(bytes.NewReader(p)); !errors.As(err, &d) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if _, _, err := read(bytes.NewReader(b[:i])); !errors.As(err, &d) || !strings.Contains(err.Error(), "its end is missing") {
			t.Fatalf("cut off at %d: %v", i, err)
		}
	}
	if _, _, err := read(bytes.NewReader(append(bytes.Clone(b), 0))); !errors.As(err, &d) {
		t.Errorf("a byte more: %v", err)
	}
	zero := bytes.IndexByte(b[bytes.LastIndexByte(b[:600], '\n'):], 'Z') + bytes.LastIndexByte(b[:600], '\n')
	if without := append(bytes.Clone(b[:zero]), b[zero+recordHead:]...); true {
		if _, _, err := read(bytes.NewReader(without)); !errors.As(err, &d) || !strings.Contains(err.Error(), "records") {
			t.Errorf("a record less: %v", err)
		}
	}
	// Records of another increment do not pass.
	other := header
	other.To.Snapshot = "another"
	o, _ := sample(t, other)
	head := bytes.LastIndexByte(b[:600], '\n') + 1
	otherHead := bytes.LastIndexByte(o[:600], '\n') + 1
	if _, records, err := read(bytes.NewReader(append(bytes.Clone(b[:head]), o[otherHead:]...))); !errors.As(err, &d) || len(records) > 0 {
		t.Errorf("records of another increment: %v", err)
	}
	for text, why := range map[string]string{
		"":                              "end is missing",
		"hello\n":                       "no increment",
		strings.Repeat("x", 1000):       "no increment",
		"swiftnbd increment 2\n{}\n":    "a later program",
		"swiftnbd increment 1\n{}\nx\n": "wrong checksum",
	} {
		if _, _, err := read(strings.NewReader(text)); !errors.As(err, &d) || !strings.Contains(err.Error(), why) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

// TestWriterRefuses: what no reader would take is not written.
func TestWriterRefuses(t *testing.T) {
	for _, change := range []func(*Header){
		func(h *Header) { h.UUID = layout.UUID{} },
		func(h *Header) { h.To.Snapshot = "" },
		func(h *Header) { h.To.Root = layout.Position{} },
		func(h *Header) { h.From = &Moment{"x", layout.Position{Epoch: 1, N: 1}, 0} },
	} {
		h := header
		change(&h)
		if _, err := NewWriter(io.Discard, h); err == nil {
			t.Errorf("%+v was taken", h)
		}
	}
	w, err := NewWriter(io.Discard, header)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Data(4096, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{w.Zero(-1, 10), w.Zero(8192, 0), w.Zero(header.To.Size, 1), w.Zero(header.To.Size-1, 2), w.Data(8192, make([]byte, MaxData+1)), w.Zero(8192, 1<<62)} {
		if err == nil {
			t.Error("a record was taken that lies wrong")
		}
	}
}

// FuzzReader reads anything, and ends with an error or with what a writer would
// have written.
func FuzzReader(f *testing.F) {
	b, _ := sample(f, header)
	f.Add(b)
	f.Add([]byte(magic + form + "\n{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, records, err := read(bytes.NewReader(b))
		if err != nil {
			if !errors.As(err, new(*DamagedError)) {
				t.Fatal(err)
			}
			return
		}
		var again bytes.Buffer
		w, err := NewWriter(&again, h)
		if err != nil {
			t.Fatal(err)
		}
		writeAll(t, w, records)
	})
}
