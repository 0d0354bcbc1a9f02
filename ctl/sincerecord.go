// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
)

// An image that is changed in place
//
// While a run changes an image from one snapshot to another, FILE.since.record says so
// beside it, in one line:
//
//	1 UUID FROM TO SNAPSHOT SNAPSHOT
//
// with the disk, the roots of the two snapshots and their names, which are escaped
// as segments of a URL's path. When the image is whole, the record goes. After an
// interrupted run, only the same change makes it whole: what another one leaves out
// because it is the same before and after may have the bytes of the snapshot between.
// A block device has no record, nor has an image in a directory that cannot be written.

type sinceRecord struct {
	of               layout.UUID
	from, to         layout.Position
	fromName, toName string
}

// sinceRecordName returns the path of the record of an image, whose own is no link's.
func sinceRecordName(path string) string { return path + ".since.record" }

// dropSinceRecord removes the record of an image in whose place there is another one.
// A file of that name that is none of ours stays.
func dropSinceRecord(path string) {
	name := sinceRecordName(path)
	if text, err := os.ReadFile(name); err == nil {
		if _, ok := parseSinceRecord(string(text)); ok {
			_ = os.Remove(name)
		}
	}
}

func sinceRecordOf(x *logdisk.Diff) sinceRecord {
	return sinceRecord{x.UUID, x.From.Root, x.To.Root, x.From.Snapshot, x.To.Snapshot}
}

func (r sinceRecord) String() string {
	return fmt.Sprintf("1 %v %s %s %s %s\n", r.of, layout.RootText(r.from), layout.RootText(r.to), url.PathEscape(r.fromName), url.PathEscape(r.toName))
}

func parseSinceRecord(text string) (r sinceRecord, ok bool) {
	fields := strings.Split(strings.TrimSuffix(text, "\n"), " ")
	if len(fields) != 6 || fields[0] != "1" {
		return r, false
	}
	var errs [3]error
	var ok1, ok2 bool
	r.of, errs[0] = layout.ParseUUID(fields[1])
	r.from, ok1 = layout.ParseRootText(fields[2])
	r.to, ok2 = layout.ParseRootText(fields[3])
	r.fromName, errs[1] = url.PathUnescape(fields[4])
	r.toName, errs[2] = url.PathUnescape(fields[5])
	return r, ok1 && ok2 && errors.Join(errs[:]...) == nil
}

// checkRecord refuses an image that another run has changed in part.
func (p *patched) checkRecord() error {
	if p.device {
		return nil
	}
	if real, err := filepath.EvalSymlinks(p.path); err == nil {
		p.record = sinceRecordName(real)
	}
	text, err := os.ReadFile(p.record)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	was, ok := parseSinceRecord(string(text))
	if !ok {
		return fmt.Errorf("%s is no record of ours: %s may be partly changed", p.record, p.path)
	}
	if was != p.now {
		return fmt.Errorf("%s is partly changed from the snapshot %s to %s by a run that was interrupted: run that once more first, or download the image anew (if it is another image by now, remove %s)", p.path, was.fromName, was.toName, p.record)
	}
	return nil
}

// begin notes that the image is about to be changed.
func (p *patched) begin() error {
	if p.begun || p.record == "" {
		return nil
	}
	next := p.record + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o666)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		p.begun = true
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(p.now.String())
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = renameDurably(next, p.record)
	}
	if err != nil {
		_ = os.Remove(next)
		return err
	}
	p.begun = true
	return nil
}

// whole notes that the image is what it was to become.
func (p *patched) whole() error {
	if p.record == "" {
		return nil
	}
	if err := os.Remove(p.record); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
