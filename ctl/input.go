// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// input is an image that is uploaded. It is read once, from its beginning to its
// end, by one goroutine.
type input interface {
	// size returns the image's size, bytes; -1: only its end tells.
	size() int64
	// next reads on. It returns either the number of bytes that it has put into
	// p, which is len(p) except at the end of the image; or the length of a hole,
	// which is a whole number of len(p) and no more than limit, or reaches to the
	// end of the image. At the end of the image it returns io.EOF.
	next(p []byte, limit int64) (n int64, hole bool, err error)
	// data returns how many bytes from off on are not in holes, as far as is
	// known without reading them.
	data(off int64) int64
	close() error
}

// openInput opens the image path, which is "-" for standard input. format is
// empty to find it out.
func openInput(ctx context.Context, path, format string, stdin io.Reader) (input, error) {
	guessed := format == ""
	if path == "-" {
		return openStdin(ctx, format, stdin)
	}
	f, err := openWaiting(ctx, path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	mode := info.Mode()
	switch {
	case mode.IsDir():
		f.Close()
		return nil, fmt.Errorf("%s: is a directory", path)
	case mode.IsRegular() && format != formatRaw:
		if guessed {
			if format, err = guessFile(path, f, true); err != nil {
				f.Close()
				return nil, err
			}
		}
		if format != formatRaw {
			f.Close()
			return newQemuInput(ctx, format, path, guessed, true)
		}
	case format != "" && format != formatRaw:
		f.Close()
		return nil, fmt.Errorf("%s: only a file can be a %s image", path, format)
	}
	var in input
	if mode.IsRegular() || isBlockDevice(mode) {
		in, err = newRawInput(f, f)
	} else {
		in, err = openPipe(ctx, path, f, f, guessed)
	}
	if err == nil && in.size() == 0 {
		err = fmt.Errorf("%s is empty", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return in, nil
}

// openStdin opens the image that standard input is.
func openStdin(ctx context.Context, format string, stdin io.Reader) (input, error) {
	const path = "standard input"
	if format != "" && format != formatRaw {
		return nil, fmt.Errorf("standard input can be a raw image only, not %s", format)
	}
	guessed := format == ""
	if f, ok := stdin.(*os.File); ok {
		if _, tty := terminal(f); tty {
			return nil, errors.New("not reading a disk from a terminal")
		}
		info, err := f.Stat()
		if err == nil && isBlockDevice(info.Mode()) {
			guessed = false // its guest may have written any bytes there
		}
		if err == nil && info.Mode().IsRegular() {
			// swiftnbd-ctl upload - disk < image
			if at, err := f.Seek(0, io.SeekCurrent); err == nil && at == 0 {
				if guessed {
					if _, err := guessFile(path, f, false); err != nil {
						return nil, err
					}
				}
				in, err := newRawInput(io.NopCloser(nil), f)
				if err == nil && in.size() == 0 {
					err = fmt.Errorf("%s is empty", path)
				}
				return in, err
			}
		}
	}
	return openPipe(ctx, path, stdin, nil, guessed)
}

// guessFile returns the format of the image in a file. other says that it may be
// another format than raw.
func guessFile(path string, f io.ReaderAt, other bool) (string, error) {
	begin := make([]byte, guessBytes)
	n, err := f.ReadAt(begin, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	begin = begin[:n]
	format := guessFormat(begin)
	switch {
	case format == formatRaw:
		return format, meantAsDisk(path, begin)
	case !other:
		return "", errNamed(path, format)
	case format == "vmdk" && vmdkElsewhere(begin):
		return "", errElsewhere(path, format, "other files")
	case format == "qcow2" && qcow2Elsewhere(begin):
		return "", errElsewhere(path, format, "another file")
	}
	return format, nil
}

// streamInput is a pipe.
type streamInput struct {
	r io.Reader
	c io.Closer // nil: not ours to close
}

func (*streamInput) size() int64      { return -1 }
func (*streamInput) data(int64) int64 { return -1 }

func (s *streamInput) next(p []byte, _ int64) (int64, bool, error) {
	n, err := io.ReadFull(s.r, p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return int64(n), false, err
}

func (s *streamInput) close() error {
	if s.c == nil {
		return nil
	}
	return s.c.Close()
}

// rawInput is the content of an image that can be read at any place.
type rawInput struct {
	io.Closer
	from  io.ReaderAt
	bytes int64
	find  func(off int64) (begin, end int64) // finds the data at or after off
	weigh func(off int64) int64              // data

	at int64
	// The data that was found last: all before begin, back to where the search
	// began, is a hole.
	begin, end int64
}

// newRawInput is the input of a raw image in a file or on a block device.
func newRawInput(c io.Closer, f *os.File) (*rawInput, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	whole := false // holes cannot be found
	r := &rawInput{Closer: c, from: f, bytes: size}
	r.find = func(off int64) (begin, end int64) {
		if whole {
			return off, size
		}
		begin, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			// Only a hole follows, or the end. In an image that has become shorter
			// there is data that is missing: to read it is an error.
			if end, err := f.Seek(0, io.SeekEnd); err != nil || end < size {
				return off, size
			}
			return size, size
		}
		if err == nil {
			end, err = unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
		}
		if err != nil { // a file system or a device without holes
			whole = true
			return off, size
		}
		return min(begin, size), min(end, size)
	}
	r.weigh = func(off int64) (n int64) {
		for off < size {
			begin, end := r.find(off)
			n += end - begin
			off = end
		}
		return n
	}
	return r, nil
}

func (r *rawInput) size() int64          { return r.bytes }
func (r *rawInput) close() error         { return r.Close() }
func (r *rawInput) data(off int64) int64 { return r.weigh(off) }

func (r *rawInput) next(p []byte, limit int64) (int64, bool, error) {
	if r.at >= r.bytes {
		return 0, false, io.EOF
	}
	if r.at >= r.end {
		r.begin, r.end = r.find(r.at)
	}
	unit := int64(len(p))
	if n := min(r.begin, r.at+limit) - r.at; n > 0 {
		if r.at+n < r.bytes {
			n -= n % unit
		}
		if n > 0 {
			r.at += n
			return n, true, nil
		}
	}
	n, err := r.from.ReadAt(p[:min(unit, r.bytes-r.at)], r.at)
	if errors.Is(err, io.EOF) && int64(n) == min(unit, r.bytes-r.at) {
		err = nil
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the image has become shorter")
		}
		return 0, false, err
	}
	r.at += int64(n)
	return int64(n), false, nil
}
