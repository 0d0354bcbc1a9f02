// SPDX-License-Identifier: MIT

package devswift

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// disk keeps a Server's state in a directory:
//
//	lock                                  held while a Server is open
//	tmp/                                  half-written files; emptied at open
//	ACCOUNT/account.json
//	ACCOUNT/CONTAINER/container.json
//	ACCOUNT/CONTAINER/xx/OBJECT-TS.data   an object: its bytes, then a trailer
//	ACCOUNT/CONTAINER/xx/OBJECT-TS.meta   what a POST made of its metadata
//
// ACCOUNT, CONTAINER and OBJECT are hashes of the names. xx is the first two
// digits of OBJECT, and TS the timestamp of the data. Every file appears by a
// rename, so it is whole or absent even if the process dies. If an object has
// two data files, the newer one counts. Tombstones are not kept.
//
// A nil *disk means memory: its methods do their work without files.
type disk struct {
	dir  string
	lock *os.File
	log  *slog.Logger
}

// trailer is the end of a data file. Behind its JSON are its length in 8 bytes,
// big endian, and trailerMagic.
type trailer struct {
	Name   string   `json:"name"`
	TS     int64    `json:"ts"`
	Size   int64    `json:"size"`
	ETag   string   `json:"etag"`
	Posted metaFile `json:"meta"`
}

// metaFile is the metadata that a POST changes. Values are bytes, since a
// header need not be valid UTF-8.
type metaFile struct {
	TS       int64             `json:"ts"`
	DeleteAt int64             `json:"delete_at,omitempty"`
	Headers  map[string][]byte `json:"headers"`
}

const trailerMagic = "devswift"

func metaFileOf(o *object) metaFile {
	m := metaFile{TS: int64(o.metaTS), DeleteAt: o.deleteAt, Headers: map[string][]byte{"Content-Type": []byte(o.contentType)}}
	for key, value := range o.headers {
		m.Headers[key] = []byte(value)
	}
	return m
}

func (m metaFile) apply(o *object) {
	o.metaTS, o.deleteAt, o.headers = timestamp(m.TS), m.DeleteAt, map[string]string{}
	for key, value := range m.Headers {
		if key == "Content-Type" {
			o.contentType = string(value)
		} else {
			o.headers[key] = string(value)
		}
	}
}

func hashName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:20])
}

// openDisk locks a directory. If the directory does not exist, openDisk creates
// it.
func openDisk(dir string, log *slog.Logger) (*disk, error) {
	tmp := filepath.Join(dir, "tmp")
	if err := os.RemoveAll(tmp); err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("open %s: in use by another process: %w", dir, err)
	}
	return &disk{dir: dir, lock: lock, log: log}, nil
}

func (d *disk) close() error { return d.lock.Close() }

func (d *disk) accountDir(a *account) string { return filepath.Join(d.dir, hashName(a.name)) }

func (d *disk) containerDir(a *account, t *container) string {
	return filepath.Join(d.accountDir(a), hashName(t.name))
}

// temp opens a new temporary file. If it is left behind, New of a later process
// removes it.
func (d *disk) temp() (*os.File, error) {
	return os.CreateTemp(filepath.Join(d.dir, "tmp"), "new-*")
}

// writeJSON replaces a file as a whole.
func (d *disk) writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := d.temp()
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// boxFile is account.json and container.json.
type boxFile struct {
	Name    string            `json:"name"`
	Created int64             `json:"created"`
	Changed int64             `json:"changed"`
	Meta    map[string][]byte `json:"meta"`
}

func bytesOf(meta map[string]string) map[string][]byte {
	out := map[string][]byte{}
	for key, value := range meta {
		out[key] = []byte(value)
	}
	return out
}

func stringsOf(meta map[string][]byte) map[string]string {
	out := map[string]string{}
	for key, value := range meta {
		out[key] = string(value)
	}
	return out
}

// saveAccount writes an account's metadata. account.mu is held.
func (d *disk) saveAccount(a *account) error {
	if d == nil {
		return nil
	}
	if err := os.MkdirAll(d.accountDir(a), 0o755); err != nil {
		return err
	}
	return d.writeJSON(filepath.Join(d.accountDir(a), "account.json"), boxFile{a.name, int64(a.created), 0, bytesOf(a.meta)})
}

// saveContainer writes a container's metadata. container.mu is held.
func (d *disk) saveContainer(a *account, t *container) error {
	if d == nil {
		return nil
	}
	dir := d.containerDir(a, t)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return d.writeJSON(filepath.Join(dir, "container.json"), boxFile{t.name, int64(t.created), int64(t.changed), bytesOf(t.meta)})
}

// removeContainer removes a container at once. container.mu is held.
func (d *disk) removeContainer(a *account, t *container) error {
	if d == nil {
		return nil
	}
	grave, err := os.MkdirTemp(filepath.Join(d.dir, "tmp"), "gone-*")
	if err != nil {
		return err
	}
	if err := os.Rename(d.containerDir(a, t), filepath.Join(grave, "container")); err != nil {
		return err
	}
	return os.RemoveAll(grave)
}

// saveMeta writes what a POST changed.
func (d *disk) saveMeta(o *object) error {
	if d == nil {
		return nil
	}
	return d.writeJSON(metaPath(o.blob.file), metaFileOf(o))
}

func metaPath(data string) string { return strings.TrimSuffix(data, ".data") + ".meta" }

// remove removes an object's files. o may be nil.
func (d *disk) remove(o *object) error {
	if d == nil || o == nil || o.blob.file == "" {
		return nil
	}
	if err := os.Remove(o.blob.file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Remove(metaPath(o.blob.file)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// upload is an object's bytes that have arrived and are not visible yet.
type upload struct {
	temp string // empty in memory, and once published
	path string
}

// receive reads a body to its end, and sets the object's blob and etag.
func (d *disk) receive(a *account, t *container, o *object, body io.Reader, length int64) (*upload, error) {
	if d == nil {
		data, etag, err := receive(body, length)
		o.blob, o.etag = blob{data: data, size: int64(len(data))}, etag
		return &upload{}, err
	}
	f, err := d.temp()
	if err != nil {
		return nil, err
	}
	up := &upload{temp: f.Name()}
	sum := md5.New()
	limit := length
	if length < 0 {
		limit = maxFileSize + 1
	}
	buf := make([]byte, min(max(limit, 1), 256<<10))
	n, err := io.CopyBuffer(io.MultiWriter(onlyWriter{f}, sum), io.LimitReader(body, limit), buf)
	switch {
	case err != nil:
		err = fmt.Errorf("%w: %w", errShort, err)
	case length >= 0 && n < length:
		err = errShort
	case n > maxFileSize:
		err = errTooLarge
	}
	o.etag = hexSum(sum)
	hash := hashName(o.name)
	up.path = filepath.Join(d.containerDir(a, t), hash[:2], hash+"-"+strconv.FormatInt(int64(o.ts), 10)+".data")
	o.blob = blob{file: up.path, size: n}
	if err == nil {
		err = writeTrailer(f, o)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		up.discard()
		return nil, err
	}
	return up, nil
}

// onlyWriter hides *os.File's ReadFrom, so that io.CopyBuffer uses the buffer.
type onlyWriter struct{ io.Writer }

func writeTrailer(f *os.File, o *object) error {
	data, err := json.Marshal(trailer{o.name, int64(o.ts), o.blob.size, o.etag, metaFileOf(o)})
	if err != nil {
		return err
	}
	length := len(data)
	data = binary.BigEndian.AppendUint64(data, uint64(length))
	data = append(data, trailerMagic...)
	_, err = f.Write(data)
	return err
}

// publish makes the bytes part of the container's directory.
func (u *upload) publish() error {
	if u.temp == "" {
		return nil
	}
	err := os.Rename(u.temp, u.path)
	if errors.Is(err, os.ErrNotExist) {
		// Only the innermost directory is made here: a missing container stays missing.
		if err := os.Mkdir(filepath.Dir(u.path), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			if errors.Is(err, os.ErrNotExist) {
				return errContainerGone
			}
			return err
		}
		err = os.Rename(u.temp, u.path)
	}
	if err == nil {
		u.temp = ""
	}
	return err
}

// discard forgets bytes that were not published.
func (u *upload) discard() {
	if u.temp != "" {
		os.Remove(u.temp)
		u.temp = ""
	}
}
