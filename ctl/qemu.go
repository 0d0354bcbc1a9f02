// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	endian "encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"swiftnbd/internal/nbd"
)

// The formats of images
//
// Raw images are read and written here. For all others qemu's programs are asked:
// qemu-img says what the image is and where it has data, and qemu-nbd serves its
// content on a Unix socket, for us alone. It ends when we close the connection.

const formatRaw = "raw"

// The formats of images that are read and written.
var (
	readFormats  = []string{formatRaw, "qcow2", "vmdk", "vdi", "vhdx"}
	writeFormats = []string{formatRaw, "qcow2"}
)

// checkFormat checks the value of --image-format.
func checkFormat(format string, known []string) error {
	if format != "" && !slices.Contains(known, format) {
		return usagef("--image-format: must be one of %s, not %q", strings.Join(known, ", "), format)
	}
	return nil
}

// guessBytes is how many of the first bytes of an image are looked at.
const guessBytes = 512

// guessFormat returns the format of an image by its first bytes.
func guessFormat(begin []byte) string {
	switch {
	case bytes.HasPrefix(begin, []byte("QFI\xfb")):
		return "qcow2"
	case bytes.HasPrefix(begin, []byte("KDMV")), bytes.HasPrefix(begin, []byte("COWD")), bytes.HasPrefix(begin, []byte("# Disk DescriptorFile")):
		return "vmdk"
	case bytes.HasPrefix(begin, []byte("vhdxfile")):
		return "vhdx"
	case len(begin) >= 0x44 && bytes.Equal(begin[0x40:0x44], []byte{0x7f, 0x10, 0xda, 0xbe}):
		return "vdi"
	}
	return formatRaw
}

// qemu runs one of qemu's programs, and returns what it prints.
func qemu(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us
	out, err := cmd.Output()
	return out, qemuError(program, err, errs.String())
}

func qemuError(program string, err error, said string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%s is needed for images that are not raw, and is not installed (Debian has it in qemu-utils)", program)
	case said != "":
		return &saidError{strings.Join(strings.Fields(said), " "), err}
	}
	return fmt.Errorf("%s: %w", program, err)
}

// saidError is how a program has ended, in its own words.
type saidError struct {
	said string
	err  error
}

func (e *saidError) Error() string { return e.said }
func (e *saidError) Unwrap() error { return e.err }

// localFile returns path so that qemu takes it for a file, also with a colon in
// it.
func localFile(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return "./" + path
}

// qemuServer is a qemu-nbd that serves one image, and our connection to it.
type qemuServer struct {
	cmd    *exec.Cmd
	ended  chan error
	said   *bytes.Buffer
	dir    string // of the socket
	conn   net.Conn
	export nbd.Export
	cookie uint64
}

// qemuPatience is how long qemu-nbd may take to begin.
const qemuPatience = 30 * time.Second

// serveImage starts qemu-nbd.
func serveImage(ctx context.Context, format, path string, readOnly bool) (*qemuServer, error) {
	dir, err := os.MkdirTemp("", program)
	if err != nil {
		return nil, err
	}
	s := &qemuServer{dir: dir, ended: make(chan error, 1), said: new(bytes.Buffer)}
	socket := filepath.Join(dir, "nbd")
	args := []string{"-f", format, "-k", socket}
	if readOnly {
		args = append(args, "-r")
	}
	s.cmd = exec.Command("qemu-nbd", append(args, localFile(path))...)
	s.cmd.Stderr = s.said
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		os.RemoveAll(dir)
		return nil, qemuError("qemu-nbd", err, "")
	}
	go func() { s.ended <- s.cmd.Wait() }()
	for end := time.Now().Add(qemuPatience); ; {
		s.conn, s.export, err = nbd.Dial(ctx, nbd.Target{Network: "unix", Address: socket})
		if err == nil {
			return s, nil
		}
		select {
		case werr := <-s.ended:
			os.RemoveAll(dir)
			return nil, qemuError("qemu-nbd", cmpErr(werr, err), s.said.String())
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
		if ctx.Err() != nil || time.Now().After(end) {
			s.close()
			return nil, fmt.Errorf("qemu-nbd: %w", err)
		}
	}
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// do makes one request. data follows the request, and into takes what follows
// the reply.
func (s *qemuServer) do(r nbd.Request, data, into []byte) error {
	s.cookie++
	r.Cookie = s.cookie
	if _, err := s.conn.Write(append(r.Append(nil), data...)); err != nil {
		return fmt.Errorf("qemu-nbd: %w", err)
	}
	reply, err := nbd.ReadReply(s.conn)
	switch {
	case err != nil:
		return fmt.Errorf("qemu-nbd: %w", err)
	case reply.Cookie != r.Cookie:
		return errors.New("qemu-nbd: an answer to no request of ours")
	case reply.Error != 0:
		return fmt.Errorf("qemu-nbd: %w", syscall.Errno(reply.Error))
	}
	_, err = io.ReadFull(s.conn, into)
	return err
}

// qemuRequest is the longest request, bytes.
const qemuRequest = 8 << 20

// ReadAt implements io.ReaderAt, for one caller at a time.
func (s *qemuServer) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+qemuRequest)]
		if err := s.do(nbd.Request{Command: nbd.Read, Offset: uint64(off) + uint64(n), Length: uint32(len(part))}, nil, part); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// WriteAt implements io.WriterAt, for one caller at a time.
func (s *qemuServer) WriteAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+qemuRequest)]
		if err := s.do(nbd.Request{Command: nbd.Write, Offset: uint64(off) + uint64(n), Length: uint32(len(part))}, part, nil); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// finish makes the image durable, and ends the server.
func (s *qemuServer) finish() error {
	if err := s.do(nbd.Request{Command: nbd.Flush}, nil, nil); err != nil {
		return err
	}
	return s.close()
}

// close ends the server.
func (s *qemuServer) close() error {
	if s.conn == nil {
		_ = s.cmd.Process.Kill()
	} else {
		_, _ = s.conn.Write(nbd.Request{Command: nbd.Disconnect}.Append(nil))
		s.conn.Close()
	}
	defer os.RemoveAll(s.dir)
	select {
	case err := <-s.ended:
		return qemuError("qemu-nbd", err, s.said.String())
	case <-time.After(qemuPatience):
		_ = s.cmd.Process.Kill()
		<-s.ended
		return errors.New("qemu-nbd does not end")
	}
}

// qemuExtent is a run of an image, as `qemu-img map` has it.
type qemuExtent struct {
	Start  int64  `json:"start"`
	Length int64  `json:"length"`
	Zero   bool   `json:"zero"`
	Offset *int64 `json:"offset"` // its place in the file; nil: not known
}

// checkWhole returns an error for an image that is damaged, or of which the end is
// missing, as after a download that was cut off: qemu would read zeroes there, without
// a word.
func checkWhole(ctx context.Context, format, path string) error {
	out, err := qemu(ctx, "qemu-img", "check", "--output=json", "-f", format, localFile(path))
	var found struct {
		Corruptions int64 `json:"corruptions"`
		Errors      int64 `json:"check-errors"`
	}
	var ended *exec.ExitError
	switch {
	case err == nil, errors.As(err, &ended) && ended.ExitCode() == qemuNoCheck:
		return nil
	case json.Unmarshal(out, &found) == nil:
		if n := found.Corruptions + found.Errors; n > 0 {
			return fmt.Errorf("%s is damaged, or not whole: qemu-img check finds %d errors in it", path, n)
		}
		return nil // it may have what nobody needs, and is whole
	}
	return fmt.Errorf("%s is damaged, or not whole: %w", path, err)
}

// qemuNoCheck is the exit status of `qemu-img check` for a format without checks.
const qemuNoCheck = 63

// checkLength is checkWhole for formats of which qemu-img does not check it: vdi and
// vhdx.
func checkLength(path string, extents []qemuExtent) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	for _, e := range extents {
		if e.Offset != nil && !e.Zero && *e.Offset+e.Length > info.Size() {
			return fmt.Errorf("%s is not whole: it has %d bytes, and its content goes to %d at least", path, info.Size(), *e.Offset+e.Length)
		}
	}
	return nil
}

// vmdkElsewhere says whether the first bytes of a vmdk image are those of a text
// that names the files with its content, or lead to such a text. qemu opens these
// files, of whatever name, when it opens the image.
func vmdkElsewhere(begin []byte) bool {
	if !bytes.HasPrefix(begin, []byte("KDMV")) {
		return bytes.HasPrefix(begin, []byte("# Disk DescriptorFile"))
	}
	// The header's capacity, in sectors: with 0, the text within the file counts.
	return len(begin) < 20 || bytes.Equal(begin[12:20], zeroes[:8])
}

// Fields of a qcow2 header (qemu's docs/interop/qcow2.txt), big-endian.
const (
	qcow2Version      = 4  // 4 bytes
	qcow2Incompatible = 72 // 8 bytes, from version 3 on

	qcow2External = 1 << 2 // of the incompatible features: the content is in another file
)

// qcow2Elsewhere says whether the first bytes of a qcow2 image are those of one that
// has its content in another file. A qemu-img of before July 2024 opens that file to
// tell of the image, whatever file of this machine it is (CVE-2024-4467). A backing
// file no qemu-img opens for that.
func qcow2Elsewhere(begin []byte) bool {
	return len(begin) >= qcow2Incompatible+8 && endian.BigEndian.Uint32(begin[qcow2Version:]) > 2 &&
		endian.BigEndian.Uint64(begin[qcow2Incompatible:])&qcow2External != 0
}

// errElsewhere refuses an image whose format was guessed and whose content is in
// another file.
func errElsewhere(path, format, other string) error {
	return fmt.Errorf("%s is a %s image that has a part of its content in %s: to read that too, give --image-format %s", path, format, other, format)
}

// imageSize returns the bytes of an image that is not raw. guessed says that nobody
// has named its format: then it may have been made so by whoever wrote to it, to read
// other files with it, and is refused.
func imageSize(ctx context.Context, format, path string, guessed bool) (int64, error) {
	var info struct {
		Size    int64  `json:"virtual-size"`
		Backing string `json:"backing-filename"`
		Format  struct {
			Data struct {
				External string `json:"data-file"`
				Extents  []struct {
					Filename string `json:"filename"`
				} `json:"extents"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	out, err := qemu(ctx, "qemu-img", "info", "--output=json", "-f", format, localFile(path))
	if err == nil {
		err = json.Unmarshal(out, &info)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	others := []string{info.Backing, info.Format.Data.External}
	for _, e := range info.Format.Data.Extents {
		if e.Filename != localFile(path) {
			others = append(others, e.Filename)
		}
	}
	for _, other := range others {
		if guessed && other != "" {
			return 0, errElsewhere(path, format, other)
		}
	}
	return info.Size, nil
}

// newQemuInput opens an image that is not raw. guessed is for imageSize. check says
// that the image has to be whole.
func newQemuInput(ctx context.Context, format, path string, guessed, check bool) (input, error) {
	size, err := imageSize(ctx, format, path, guessed)
	if err == nil && check {
		err = checkWhole(ctx, format, path)
	}
	if err != nil {
		return nil, err
	}
	var extents []qemuExtent
	out, err := qemu(ctx, "qemu-img", "map", "--output=json", "-f", format, localFile(path))
	if err == nil {
		err = json.Unmarshal(out, &extents)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if check && (format == "vdi" || format == "vhdx") {
		if err := checkLength(path, extents); err != nil {
			return nil, err
		}
	}
	s, err := serveImage(ctx, format, path, true)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if s.export.Size != size {
		_ = s.close()
		return nil, fmt.Errorf("%s: qemu-nbd serves %d bytes of %d", path, s.export.Size, size)
	}
	seek := func(off int64) (from, to int64) {
		for _, e := range extents {
			if end := e.Start + e.Length; !e.Zero && end > off {
				return max(off, e.Start), min(end, size)
			}
		}
		return size, size
	}
	return &rawInput{Closer: closerFunc(s.close), from: s, bytes: size, find: func(off int64) (from, to int64) {
		for len(extents) > 1 && extents[0].Start+extents[0].Length <= off {
			extents = extents[1:] // the image is read in order
		}
		return seek(off)
	}, weigh: func(off int64) (n int64) {
		for _, e := range extents {
			if !e.Zero {
				n += max(0, e.Start+e.Length-max(off, e.Start))
			}
		}
		return n
	}}, nil
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }
