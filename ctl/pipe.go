// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Pipes
//
// A pipe may have nothing to read, and no room, for as long as whoever has its other
// end likes. An interrupt ends what is done with it all the same: the lock of the disk
// is given back then, and not when the other end moves.

// await runs f, and returns early when ctx ends. f may go on then, and must touch
// nothing that its caller goes on with.
func await[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// openWaiting opens a file. A named pipe waits for its other end here.
func openWaiting(ctx context.Context, path string, flags int) (*os.File, error) {
	return await(ctx, func() (*os.File, error) { return os.OpenFile(path, flags, 0) })
}

// pipeUnit is how much is read from a pipe, or written to it, at once, bytes.
const pipeUnit = 1 << 20

// pipeReader reads from a pipe, until ctx ends.
type pipeReader struct {
	ctx  context.Context
	from io.Reader
	buf  []byte // not the caller's, which has its own back when ctx ends
}

// Read implements io.Reader.
func (r *pipeReader) Read(p []byte) (int, error) {
	if r.buf == nil {
		r.buf = make([]byte, pipeUnit)
	}
	buf := r.buf[:min(len(p), pipeUnit)]
	n, err := await(r.ctx, func() (int, error) { return r.from.Read(buf) })
	return copy(p, buf[:n]), err
}

// pipeWriter writes to a pipe, until ctx ends.
type pipeWriter struct {
	ctx context.Context
	to  io.Writer
	buf []byte // as in pipeReader
}

// Write implements io.Writer.
func (w *pipeWriter) Write(p []byte) (written int, err error) {
	if w.buf == nil {
		w.buf = make([]byte, pipeUnit)
	}
	for written < len(p) && err == nil {
		buf := w.buf[:copy(w.buf, p[written:])]
		var n int
		n, err = await(w.ctx, func() (int, error) { return w.to.Write(buf) })
		written += n
	}
	return written, err
}

// What is hardly meant as a disk
//
// The bytes of a compressed image, or of an image that is not read here, would become
// a disk that nobody can use, without a word.

// notDisks are the beginnings of files, and what to do about them.
var notDisks = []struct{ begin, what string }{
	{"swiftnbd increment ", "is an increment, and not an image: give --onto"},
	{"\x1f\x8b\x08", "is compressed by gzip: unpack it first"},
	{"\xfd7zXZ\x00", "is compressed by xz: unpack it first"},
	{"\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it first"},
	{"QED\x00", "is a qed image: make a qcow2 image of it with qemu-img convert first"},
	{"conectix", "is a vhd image: make a qcow2 image of it with qemu-img convert first"},
}

// meantAsDisk returns an error if what begins with these bytes is hardly meant as the
// content of a disk. path is its name in messages.
func meantAsDisk(path string, begin []byte) error {
	for _, not := range notDisks {
		if strings.HasPrefix(string(begin), not.begin) {
			return fmt.Errorf("%s %s, or give --image-format raw to upload it as it is", path, not.what)
		}
	}
	return nil
}

// errNamed refuses an image that is not raw and has no name that qemu could open.
func errNamed(path, format string) error {
	return fmt.Errorf("%s is a %s image, which only a named file can be: give the file's name, or give --image-format raw to upload it as it is", path, format)
}

// openPipe is the input of an image from a pipe. guessed says that nobody has named
// its format. An empty pipe is an error: whoever was to fill it has failed.
func openPipe(ctx context.Context, path string, from io.Reader, c io.Closer, guessed bool) (input, error) {
	r := bufio.NewReader(&pipeReader{ctx: ctx, from: from})
	begin, err := r.Peek(guessBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(begin) == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	if guessed {
		if format := guessFormat(begin); format != formatRaw {
			return nil, errNamed(path, format)
		}
		if err := meantAsDisk(path, begin); err != nil {
			return nil, err
		}
	}
	return &streamInput{r: r, c: c}, nil
}
