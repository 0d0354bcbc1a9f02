// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

// TestRawInputShorter: an image that becomes shorter while it is read is an error, and
// what is missing of it is no hole, wherever the new end is.
func TestRawInputShorter(t *testing.T) {
	const unit, size = 1 << 20, 10 << 20
	for _, end := range []int64{size, 9<<20 + 5, 8 << 20, 6 << 20, 3 << 20, 2<<20 + 1, 2 << 20, 1 << 20, 0} {
		path, content := sparse(t, size, map[int][]byte{0: noise(2 << 20), 8 << 20: noise(1 << 20)})
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		in, err := newRawInput(f, f)
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		for p := make([]byte, unit); err == nil; {
			var n int64
			var hole bool
			if n, hole, err = in.next(p, size); hole {
				got = append(got, make([]byte, n)...)
			} else {
				got = append(got, p[:n]...)
			}
			if len(got) == 2<<20 {
				if err := f.Truncate(end); err != nil {
					t.Fatal(err)
				}
			}
		}
		switch {
		case end == size:
			if !errors.Is(err, io.EOF) || !bytes.Equal(got, content) {
				t.Errorf("an image that stays: %d bytes, %v", len(got), err)
			}
		case err == nil || !strings.Contains(err.Error(), "the image has become shorter"):
			t.Errorf("cut to %d bytes: %d bytes were read, %v", end, len(got), err)
		}
		_ = in.close()
	}
}
