// SPDX-License-Identifier: MIT

package devswift

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// load reads an account from the directory. now is the account's creation time
// if it is new.
func (d *disk) load(a *account, now timestamp) error {
	dir := d.accountDir(a)
	var box boxFile
	err := readJSON(filepath.Join(dir, "account.json"), &box)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := d.saveAccount(a); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		a.created, a.meta = timestamp(box.Created), stringsOf(box.Meta)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		t, err := d.loadContainer(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if t != nil {
			a.containers[t.name] = t
		}
	}
	return nil
}

// loadContainer returns nil for a container whose creation was not completed.
func (d *disk) loadContainer(dir string) (*container, error) {
	var box boxFile
	if err := readJSON(filepath.Join(dir, "container.json"), &box); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	t := newContainer(box.Name, timestamp(box.Created))
	t.changed, t.meta = timestamp(box.Changed), stringsOf(box.Meta)
	fans, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, fan := range fans {
		if !fan.IsDir() {
			continue
		}
		if err := d.loadObjects(t, filepath.Join(dir, fan.Name())); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (d *disk) loadObjects(t *container, dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		if !strings.HasSuffix(path, ".data") {
			continue
		}
		o, err := readObject(path)
		if err != nil {
			return err
		}
		loser := o
		if before, won := t.set(o.name, o, o.ts); won {
			loser = before
		}
		if err := d.remove(loser); err != nil {
			return err
		}
	}
	// A metadata file of a deleted object belongs to no object.
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		data, isMeta := strings.CutSuffix(path, ".meta")
		if !isMeta {
			continue
		}
		if _, err := os.Stat(data + ".data"); errors.Is(err, os.ErrNotExist) {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// readObject reads a data file's trailer, and its metadata file if there is
// one.
func readObject(path string) (*object, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var end [16]byte
	if info.Size() < int64(len(end)) {
		return nil, fmt.Errorf("%s: too short for an object", path)
	}
	if _, err := f.ReadAt(end[:], info.Size()-int64(len(end))); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint64(end[:8])
	if string(end[8:]) != trailerMagic || length > uint64(info.Size()-int64(len(end))) {
		return nil, fmt.Errorf("%s: no trailer of an object", path)
	}
	data := make([]byte, length)
	start := info.Size() - int64(len(end)) - int64(length)
	if _, err := f.ReadAt(data, start); err != nil {
		return nil, err
	}
	var tr trailer
	if err := json.Unmarshal(data, &tr); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if tr.Size != start {
		return nil, fmt.Errorf("%s: holds %d bytes of an object of %d", path, start, tr.Size)
	}
	o := &object{name: tr.Name, ts: timestamp(tr.TS), etag: tr.ETag, blob: blob{file: path, size: tr.Size}}
	tr.Posted.apply(o)
	var posted metaFile
	if err := readJSON(metaPath(path), &posted); err == nil {
		posted.apply(o)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return o, nil
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
