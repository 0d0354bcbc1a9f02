// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"swiftnbd/internal/nbd"
)

// partial is the file of a download that is not complete, FILE.partial, and the
// record beside it.
type partial struct {
	pace   *pace
	record string         // the record's path
	was    downloadRecord // of an earlier download; unit is 0 where there is none
	there  bool           // the file was there before
	begun  bool           // it is ours: what was in it before is gone, or goes on
	now    downloadRecord // what holds of this run, except at and sum
	digest digest         // of what is complete
	chunks int64          // that this run has written
	whole  bool           // it is complete, and lacks only its name

	last  time.Time // of the last note
	notes sync.WaitGroup
	busy  chan struct{} // holds a value while a note is made; guards the two below

	noted   int64 // how far the download is by the record that is there
	syncErr error // of the first Sync that failed
}

// partialName returns the path of FILE.partial. A name that would become too long
// for a file system is cut.
func partialName(path string) string {
	const most = 230
	dir, base := filepath.Split(path)
	if len(base) > most {
		base = base[:most]
	}
	return filepath.Join(dir, base+".partial")
}

// openPartial opens FILE.partial, which is left as it is until begin or goOn. A
// new one has the mode of the file that it will replace, old, or a new file's.
func openPartial(path string, old fs.FileInfo, p *pace) (*image, error) {
	temp := partialName(path)
	im := &image{kind: imageFile, path: path, temp: temp, partial: partial{pace: p, record: temp + ".record", digest: newDigest(), busy: make(chan struct{}, 1)}}
	for range 100 {
		f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		im.there = errors.Is(err, fs.ErrExist)
		if im.there {
			f, err = os.OpenFile(temp, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
			if errors.Is(err, fs.ErrNotExist) {
				continue // it has just got its name
			}
		}
		if err != nil {
			return nil, err
		}
		im.file = f
		again, err := im.own(old)
		if err == nil && !again {
			return im, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: somebody makes this file again and again", temp)
}

// own locks FILE.partial for this process, and reads the record beside it. again
// says that the file has gone meanwhile.
func (im *image) own(old fs.FileInfo) (again bool, err error) {
	err = unix.Flock(int(im.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, fmt.Errorf("%s: another download writes to it", im.temp)
	}
	// Not every file system has such locks. It is there to catch a mistake.
	info, err := im.file.Stat()
	if err != nil {
		return false, err
	}
	if now, err := os.Lstat(im.temp); err != nil || !os.SameFile(info, now) {
		return true, nil
	}
	if !info.Mode().IsRegular() {
		return false, fmt.Errorf("%s: is no file", im.temp)
	}
	if !im.there {
		if old == nil {
			return false, nil
		}
		if err := im.file.Chmod(old.Mode().Perm()); err != nil {
			im.remove()
			return false, err
		}
		return false, nil
	}
	switch im.was, err = readDownloadRecord(im.record); {
	case err == nil:
		return false, nil
	case errors.Is(err, fs.ErrNotExist) && info.Size() == 0:
		return false, nil // of a download that was killed at once
	case errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("%s is in the way: it has no record (%s) of a download of ours", im.temp, filepath.Base(im.record))
	}
	return false, err
}

// canHold says whether there can be an image of size bytes, before the disk is
// locked. It leaves what an earlier download has left as it is, and a new file empty:
// one that is not, and has no record, is somebody else's.
func (im *image) canHold(size int64) error {
	if im.there {
		return nil
	}
	if err := im.prepare(size); err != nil || im.kind != imageFile {
		return err
	}
	return im.file.Truncate(0)
}

// begin makes FILE.partial an image of nothing yet, of size bytes, and drops what
// an earlier download has left in it.
func (im *image) begin(size int64) error {
	if im.kind == imageFile {
		im.begun, im.was, im.last = true, downloadRecord{}, time.Now()
		// From now on it is known as ours.
		r := im.now
		r.sum = im.digest.sum()
		if err := r.write(im.record); err != nil {
			return err
		}
		if err := im.file.Truncate(0); err != nil {
			return err
		}
	}
	return im.prepare(size)
}

// due makes a note of how far the download is, if it is time. Its error is that of
// an earlier note that could not make the data durable.
func (im *image) due() error {
	if im.kind != imageFile || time.Since(im.last) < im.pace.downloadNote {
		return nil
	}
	select {
	case im.busy <- struct{}{}:
	default:
		return nil // the last one is not done yet
	}
	if err := im.syncErr; err != nil {
		<-im.busy
		return err
	}
	im.last = time.Now()
	r := im.now
	r.at, r.sum = im.at, im.digest.sum()
	note := func() {
		defer func() { <-im.busy }()
		if im.durable() == nil {
			_ = im.note(r) // the next one may succeed
		}
	}
	if im.format != "" {
		note() // qemu-nbd takes one request after the other
		return nil
	}
	im.notes.Go(note)
	return nil
}

// note writes the record of what is durable.
func (im *image) note(r downloadRecord) error {
	err := r.write(im.record)
	if err == nil {
		im.noted = r.at
	}
	return err
}

// durable makes what was written durable. If it has failed once, it fails for good:
// the kernel tells an error once, and drops what it could not write.
func (im *image) durable() error {
	if im.syncErr == nil && im.server != nil {
		im.syncErr = im.server.do(nbd.Request{Command: nbd.Flush}, nil, nil)
	} else if im.syncErr == nil {
		im.syncErr = im.pace.sync(im.file)
	}
	return im.syncErr
}

// settled makes what was written durable, and lets qemu's server go, so that the
// image can be read.
func (im *image) settled() error {
	if im.server != nil {
		err := im.server.finish()
		im.server = nil
		im.syncErr = cmp.Or(im.syncErr, err)
	}
	return im.durable()
}

// worth says whether what there is, is worth being gone on with. No note is being
// made.
func (im *image) worth() bool {
	return im.kind == imageFile && im.begun && (im.whole || im.was.at > 0 && im.noted > 0 || im.at > 0 && (im.fetched >= im.pace.keptBytes || im.chunks >= im.pace.keptChunks))
}

// keep leaves FILE.partial to be gone on with, and closes it. It returns how much
// is complete: what the last note says if there can be no other. Without any, the
// file goes.
func (im *image) keep() (at int64, err error) {
	im.notes.Wait()
	err = im.settled()
	if err == nil && im.at >= im.noted {
		r := im.now
		r.at, r.sum = im.at, im.digest.sum()
		err = im.note(r)
	}
	if im.noted == 0 {
		im.remove()
	} else {
		err = nil
	}
	_ = im.file.Close() // what is noted is durable
	return im.noted, err
}

// remove removes FILE.partial and its record.
func (im *image) remove() {
	_ = os.Remove(im.temp)
	_ = os.Remove(im.record)
}

// end ends an image that is not complete, because of err, and returns err with how
// to go on. Otherwise a regular file is left as it was before.
func (im *image) end(err error) error {
	im.notes.Wait()
	if !im.worth() {
		im.abort()
		if im.there && !im.begun && im.was.at > 0 {
			return goOnHint(err, im.was.at)
		}
		return err
	}
	at, kerr := im.keep()
	if kerr != nil {
		if errors.Is(err, kerr) {
			return fmt.Errorf("%w; nothing of it can be kept to go on with", err)
		}
		return fmt.Errorf("%w; and %s cannot be kept to go on with: %w", err, im.temp, kerr)
	}
	return goOnHint(err, at)
}

// goOnHint says how to go on with a download of which at bytes are complete.
func goOnHint(err error, at int64) error {
	var other *otherMomentError
	if errors.As(err, &other) {
		return err
	}
	return fmt.Errorf("%w; %s is downloaded: to go on from there, run the same command with --resume", err, humanSize(at))
}

// checkResume returns why there cannot be a --resume.
func (im *image) checkResume() error {
	switch im.kind {
	case imageStream:
		return fmt.Errorf("--resume: %s is a pipe, which has got what it has got: only a download to a file can be gone on with", im.path)
	case imageDevice:
		return fmt.Errorf("--resume: %s is a device: only a download to a file can be gone on with", im.path)
	}
	if im.was.unit > 0 && im.was.format != cmp.Or(im.format, formatRaw) {
		return fmt.Errorf("--resume: %s is a %s image: give --image-format %[2]s, or begin anew without --resume", im.temp, im.was.format)
	}
	return nil
}
