// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A download that is not complete
//
// A download to a file writes to FILE.partial. Beside it, FILE.partial.record says
// how far it is, in one line:
//
//	1 FORMAT UNIT AT SUM DISK MOMENT MARK LEASE
//
// The first AT bytes of the disk are in FILE.partial, which is an image in FORMAT,
// and durable. SUM is their digest, which is made in units of UNIT bytes, as an
// upload's is. It is "-" while changed chunks are fetched again, of a disk of
// version 1: each chunk is to be compared with the disk's then. DISK, MOMENT, MARK
// and LEASE say what they are a part of (type moment). The first three are escaped
// as segments of a URL's path; "-" is an empty one.

// moment is the disk, and the moment at which the download has it.
type moment struct {
	// disk says which disk it is, of which size and cut into which objects.
	disk string
	// at is, of version 2, the root and the end of the log after it: what has the
	// same is the same, byte for byte. Of version 1 it is the mark of the disk's
	// last session; empty: none is known.
	at string
	// mark is, of version 1, the mark of the download itself. If it is killed, the
	// disk's last session has this mark.
	mark string
	// lease is, of version 1, the number of the newest lease, which is the
	// download's own if it has one; 0: there is none. before is the number of the
	// one before the download, and is not in the record.
	lease, before int64
}

// since says, of version 1, that nobody has opened the disk for writing since the
// moment was: the last session is the same, and nobody has taken a lease. Each of
// the two alone would do nearly always. But the mark of swiftnbd 0.11 comes without
// a lease, and two sessions of one second may have the same mark.
func (m moment) since(was moment) bool {
	return m.at != "" && (m.at == was.at || m.at == was.mark) && was.lease > 0 && m.before == was.lease
}

// downloadRecord is what the file says.
type downloadRecord struct {
	format   string
	unit, at int64
	sum      string
	moment   moment
}

const (
	downloadRecordVersion = "1"
	noSum                 = "-" // the sum of what is being changed
)

func (r downloadRecord) String() string {
	return fmt.Sprintf("%s %s %d %d %s %s %s %s %d\n", downloadRecordVersion, r.format, r.unit, r.at, r.sum,
		escaped(r.moment.disk), escaped(r.moment.at), escaped(r.moment.mark), r.moment.lease)
}

// escaped writes any text as one field.
func escaped(s string) string {
	if s == "" {
		return "-"
	}
	if s == "-" {
		return "%2D"
	}
	return url.PathEscape(s)
}

func unescaped(s string) (string, error) {
	if s == "-" {
		return "", nil
	}
	return url.PathUnescape(s)
}

// parseDownloadRecord reads the record. ok is false for one that makes no sense to
// this program.
func parseDownloadRecord(text string) (r downloadRecord, ok bool) {
	line, ended := strings.CutSuffix(text, "\n")
	fields := strings.Split(line, " ")
	if !ended || len(fields) != 9 || fields[0] != downloadRecordVersion {
		return r, false
	}
	var errs [6]error
	r.format, r.sum = fields[1], fields[4]
	r.unit, errs[0] = strconv.ParseInt(fields[2], 10, 64)
	r.at, errs[1] = strconv.ParseInt(fields[3], 10, 64)
	r.moment.lease, errs[5] = strconv.ParseInt(fields[8], 10, 64)
	for i, to := range []*string{&r.moment.disk, &r.moment.at, &r.moment.mark} {
		*to, errs[2+i] = unescaped(fields[5+i])
	}
	return r, errors.Join(errs[:]...) == nil && r.unit > 0 && r.at >= 0
}

// readDownloadRecord reads the record in a file. It ends with fs.ErrNotExist where
// there is none.
func readDownloadRecord(path string) (downloadRecord, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return downloadRecord{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return downloadRecord{}, err
	}
	r, ok := parseDownloadRecord(string(text))
	if !ok {
		return r, fmt.Errorf("%s is no record of a download", path)
	}
	return r, nil
}

// write puts the record into a file, as a whole or not at all.
func (r downloadRecord) write(path string) error {
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o666)
	if err != nil {
		return err
	}
	_, err = f.WriteString(r.String())
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		_ = os.Remove(next)
	}
	return err
}
