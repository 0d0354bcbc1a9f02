// SPDX-License-Identifier: MIT

package devswift

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
)

// blob is an object's bytes, in memory or in a file.
type blob struct {
	data []byte
	file string // the bytes are its beginning; empty if they are in memory
	size int64
}

// open returns a reader of the bytes. If the object is replaced meanwhile, the
// reader still returns the old bytes. The error os.ErrNotExist means that the
// object was replaced already.
func (b *blob) open() (*blobReader, error) {
	if b.file == "" {
		return &blobReader{blob: b}, nil
	}
	f, err := os.Open(b.file)
	if err != nil {
		return nil, err
	}
	return &blobReader{blob: b, f: f}, nil
}

type blobReader struct {
	blob *blob
	f    *os.File
}

func (r *blobReader) close() {
	if r.f != nil {
		r.f.Close()
	}
}

// copyTo passes the bytes from..to to write. If they are in memory, it does not
// copy them.
func (r *blobReader) copyTo(write func([]byte) error, from, to int64) error {
	if r.f == nil {
		return write(r.blob.data[from:to])
	}
	buf := make([]byte, min(to-from, 256<<10))
	for from < to {
		n := min(int64(len(buf)), to-from)
		if _, err := r.f.ReadAt(buf[:n], from); err != nil {
			return fmt.Errorf("read %s: %w", r.blob.file, err)
		}
		if err := write(buf[:n]); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// section reads a part of the bytes in order, for copying it.
func (r *blobReader) section(part byteRange) io.Reader {
	if r.f == nil {
		return bytes.NewReader(r.blob.data[part.start:part.end])
	}
	return io.NewSectionReader(r.f, part.start, part.end-part.start)
}

// errTooLarge means that a body is longer than an object may be.
var errTooLarge = errors.New("body larger than an object may be")

// errShort means that the client sent less than it announced.
var errShort = errors.New("body shorter than announced")

// receive reads a request's body into memory and returns its MD5. length is
// what the client announced, or -1.
func receive(r io.Reader, length int64) ([]byte, string, error) {
	sum := md5.New()
	if length >= 0 {
		// No more memory than this is allocated on the client's word alone.
		data := make([]byte, 0, min(length, 64<<20))
		for int64(len(data)) < length {
			if len(data) == cap(data) {
				grown := make([]byte, len(data), min(length, int64(2*cap(data))))
				copy(grown, data)
				data = grown
			}
			step := data[len(data):min(cap(data), len(data)+256<<10)]
			n, err := io.ReadFull(r, step)
			sum.Write(step[:n])
			data = data[:len(data)+n]
			if err != nil {
				return nil, "", fmt.Errorf("%w: %w", errShort, err)
			}
		}
		return data, hexSum(sum), nil
	}
	data, err := io.ReadAll(io.LimitReader(r, maxFileSize+1))
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", errShort, err)
	}
	if len(data) > maxFileSize {
		return nil, "", errTooLarge
	}
	sum.Write(data)
	return data, hexSum(sum), nil
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
