// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// image is the target of a download: a file, a block device, or a stream. A
// file appears as a whole or not at all. The chunks come in order, from one
// goroutine. commit, end or abort ends the image.
type image struct {
	kind imageKind
	file *os.File
	out  io.Writer // file, if it is none of kind imageFile
	path string    // its name in messages; for a file, its final name
	temp string    // FILE.partial, the name of a file until commit
	at   int64     // bytes that have been written

	fetched int64 // bytes that this run has read from Swift
	resumed int64 // where this run has gone on from

	partial // of a file

	format string      // of a file, if it is not raw
	server *qemuServer // which writes it then; nil: nothing was written yet
}

type imageKind int

const (
	imageFile imageKind = iota
	imageDevice
	imageStream
)

// holeSize is the granularity of holes within a chunk, bytes: the block size
// of the file systems in use.
const holeSize = 4096

var zeroes [1 << 20]byte

// openImage prepares path for a download. A regular file is left as it is
// until commit: the download goes into FILE.partial. "-" is stdout.
func openImage(ctx context.Context, path string, stdout io.Writer, p *pace) (*image, error) {
	if path == "-" {
		f, err := streamOf(stdout, "a disk")
		if err != nil {
			return nil, err
		}
		return &image{kind: imageStream, file: f, out: &pipeWriter{ctx: ctx, to: f}, path: "standard output"}, nil
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if link, lerr := os.Lstat(path); lerr == nil && link.Mode()&fs.ModeSymlink != 0 {
			return nil, fmt.Errorf("%s: a symbolic link to nothing", path)
		}
		return openPartial(path, nil, p)
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, fmt.Errorf("%s: is a directory", path)
	case info.Mode().IsRegular():
		// The target of a link is replaced, not the link.
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return nil, err
		}
		return openPartial(real, info, p)
	}
	kind, flags := imageStream, os.O_WRONLY
	if isBlockDevice(info.Mode()) {
		// O_EXCL refuses a device that is mounted or in use otherwise.
		kind, flags = imageDevice, os.O_WRONLY|os.O_EXCL
	}
	f, err := openWaiting(ctx, path, flags)
	if err != nil {
		return nil, err
	}
	im := &image{kind: kind, file: f, out: f, path: path}
	if kind == imageStream {
		im.out = &pipeWriter{ctx: ctx, to: f}
	}
	return im, nil
}

// prepare makes room for size bytes.
func (im *image) prepare(size int64) error {
	switch im.kind {
	case imageFile:
		if im.format != "" {
			_, err := qemu(context.Background(), "qemu-img", "create", "-q", "-f", im.format, localFile(im.temp), strconv.FormatInt(size, 10))
			return err
		}
		return im.file.Truncate(size)
	case imageDevice:
		has, err := im.file.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		if has < size {
			return fmt.Errorf("%s has %s, the disk %s", im.path, humanSize(has), humanSize(size))
		}
		_, err = im.file.Seek(0, io.SeekStart)
		return err
	}
	return nil
}

// write appends p. In a file, blocks of zeroes become holes.
func (im *image) write(p []byte) error {
	if im.kind != imageFile {
		n, err := im.out.Write(p)
		im.at += int64(n)
		return err
	}
	// The runs of p between blocks of zeroes, with blocks counted from the
	// beginning of the file.
	begin := -1
	for off := 0; off < len(p); {
		end := min(len(p), off+holeSize-int((im.at+int64(off))%holeSize))
		block := p[off:end]
		zero := bytes.Equal(block, zeroes[:len(block)])
		if !zero && begin < 0 {
			begin = off
		}
		if zero && begin >= 0 {
			if _, err := im.writeAt(p[begin:off], im.at+int64(begin)); err != nil {
				return err
			}
			begin = -1
		}
		off = end
	}
	if begin >= 0 {
		if _, err := im.writeAt(p[begin:], im.at+int64(begin)); err != nil {
			return err
		}
	}
	im.at += int64(len(p))
	return nil
}

// writeAt writes to a file.
func (im *image) writeAt(p []byte, off int64) (int, error) {
	if im.format == "" {
		return im.file.WriteAt(p, off)
	}
	if err := im.serve(); err != nil {
		return 0, err
	}
	return im.server.WriteAt(p, off)
}

// serve starts the server that writes an image that is not raw.
func (im *image) serve() (err error) {
	if im.server == nil {
		im.server, err = serveImage(context.Background(), im.format, im.temp, false)
	}
	return err
}

// hole appends n bytes of zeroes, as a hole if the image can have one.
func (im *image) hole(n int64) error {
	switch im.kind {
	case imageFile:
		im.at += n
		return nil
	case imageDevice:
		// A block device reads as zeroes after this, or it refuses the call.
		err := unix.Fallocate(int(im.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, im.at, n)
		if err == nil {
			im.at += n
			_, err = im.file.Seek(im.at, io.SeekStart)
			return err
		}
	}
	for n > 0 {
		part := min(n, int64(len(zeroes)))
		if err := im.write(zeroes[:part]); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// commit makes the written data durable, and gives a file its name. A file that
// does not get it is kept, to be gone on with.
func (im *image) commit() error {
	im.whole = true
	im.notes.Wait()
	if im.kind != imageStream {
		if err := im.settled(); err != nil {
			return im.end(err)
		}
	}
	if im.path == "standard output" {
		return nil
	}
	if im.kind == imageFile {
		// Before the lock goes with the file: another download would begin anew in
		// what is complete.
		if err := renameDurably(im.temp, im.path); err != nil {
			return im.end(err)
		}
		_ = os.Remove(im.record)
		dropSinceRecord(im.path) // of the image that was there before
	}
	if err := im.file.Close(); err != nil {
		if im.kind != imageFile { // it is whole, and has its name
			im.abort()
		}
		return err
	}
	return nil
}

// streamOf returns standard output as what is to be written to it.
func streamOf(stdout io.Writer, what string) (*os.File, error) {
	f, ok := stdout.(*os.File)
	if !ok {
		return nil, errors.New("standard output is no file")
	}
	if _, tty := terminal(f); tty {
		return nil, fmt.Errorf("not writing %s to a terminal", what)
	}
	return f, nil
}

func isBlockDevice(mode fs.FileMode) bool {
	return mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0
}

// renameDurably gives a file its final name, and makes the name durable. Not every
// file system can do the latter, and the data is there without it.
func renameDurably(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if dir, err := os.Open(filepath.Dir(to)); err == nil {
		_ = dir.Sync()
		_ = dir.Close()
	}
	return nil
}

// abort leaves a regular file as it was before.
func (im *image) abort() {
	if im.kind == imageStream && im.path == "standard output" {
		return
	}
	im.notes.Wait()
	if im.server != nil {
		_ = im.server.close()
	}
	if im.kind == imageFile && (im.begun || !im.there) {
		im.remove()
	}
	_ = im.file.Close()
}
