// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// An upload that is not complete
//
// While an upload runs, and after one that has not come to its end, the item
// volume.KeyUpload of the container's metadata says how far it is:
//
//	1 UNIT AT SUM MARK
//
// The first AT bytes of the image are in the disk and durable. SUM is their
// digest, which is made in units of UNIT bytes. MARK is the mark of the session
// that has written them. The item is true only if the disk's last session has
// this mark: whoever else opens the disk for writing leaves a mark of their own.
//
// An upload begins with
//
//	begun MARK
//
// on a disk without data. What such a disk has is of an upload that has noted nothing
// else, and the next one begins anew in it.

// uploadRecord is what the item says. That of an upload that has just begun has a mark
// only.
type uploadRecord struct {
	unit, at int64
	sum      string
	mark     string
}

const (
	uploadRecordVersion = "1"
	uploadRecordBegun   = "begun "
)

func (r uploadRecord) String() string {
	if r.at == 0 {
		return uploadRecordBegun + r.mark
	}
	return fmt.Sprintf("%s %d %d %s %s", uploadRecordVersion, r.unit, r.at, r.sum, r.mark)
}

// parseUploadRecord reads the item. ok is false for one that makes no sense to
// this program.
func parseUploadRecord(item string) (r uploadRecord, ok bool) {
	if mark, begun := strings.CutPrefix(item, uploadRecordBegun); begun {
		return uploadRecord{mark: mark}, mark != ""
	}
	fields := strings.SplitN(item, " ", 5)
	if len(fields) != 5 || fields[0] != uploadRecordVersion {
		return r, false
	}
	var err1, err2 error
	r.unit, err1 = strconv.ParseInt(fields[1], 10, 64)
	r.at, err2 = strconv.ParseInt(fields[2], 10, 64)
	r.sum, r.mark = fields[3], fields[4]
	return r, err1 == nil && err2 == nil && r.unit > 0 && r.at > 0 && r.mark != ""
}

// unfinishedUpload returns the record of an upload that has not come to its end,
// of a container with these items. last is the mark of the disk's last session.
func unfinishedUpload(items map[string]string, last string) (uploadRecord, bool) {
	r, ok := parseUploadRecord(items[volume.KeyUpload])
	if !ok || r.mark != last {
		return uploadRecord{}, false
	}
	return r, true
}

// there says whether there is a record.
func (r uploadRecord) there() bool { return r.mark != "" }

// write puts the record into the container's metadata. The item of no record is
// empty.
func (r uploadRecord) write(ctx context.Context, s store.Store) error {
	item := ""
	if r.there() {
		item = r.String()
	}
	return s.SetMetadata(ctx, map[string]string{volume.KeyUpload: item})
}

// digest is the digest of an image's beginning. Units that are all zeroes are
// left out, so that a hole costs nothing and counts the same as zeroes.
type digest struct{ h hash.Hash }

func newDigest() digest { return digest{sha256.New()} }

// add adds a unit that is not all zeroes.
func (d digest) add(off int64, p []byte) {
	fmt.Fprintf(d.h, "%d %d\n", off, len(p))
	d.h.Write(p)
}

// sum returns the digest of what was added so far.
func (d digest) sum() string { return hex.EncodeToString(d.h.Sum(nil)) }
