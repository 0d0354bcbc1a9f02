// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// s3backer, Debian's package of that name, keeps a disk in S3 objects and is
// the nearest to us that there is. It gets the same real Swift through its
// s3api, as many connections, as large a cache and as large objects, and the
// same jobs. Debian 12 has version 1.5.4, whose disk is a file in a FUSE; so
// that the same fio does the same job over NBD on either side, nbdkit's file
// plugin serves that file. Its fsync does not wait for the objects to be
// stored, so jobs that end with a flush end with unmounting here, which does;
// and for the line of a flush after each write it is told to write
// synchronously.

// peerSize is the disk of these lines, and peerCache both sides' cache.
const (
	peerSize  = 256 << 20
	peerCache = 64 << 20
)

// peerDisk is a disk of s3backer's.
type peerDisk struct {
	cloud  *swiftServer
	bucket string
	object int64
}

func (s *suite) newPeerDisk(object int64) (*peerDisk, error) {
	if _, err := exec.LookPath("s3backer"); err != nil {
		return nil, errors.New("s3backer is not installed: scripts/bench needs Debian's package s3backer for this line")
	}
	c, err := s.cloud("real")
	if err != nil {
		return nil, err
	}
	s.serial++
	b := &peerDisk{cloud: c, bucket: fmt.Sprintf("bench%d-s3-%d", os.Getpid(), s.serial), object: object}
	_, err = c.call("PUT", b.bucket, nil)
	return b, err
}

// mount starts s3backer on the disk. It returns the file and what unmounts it,
// with all written.
func (s *suite) mount(b *peerDisk, more ...string) (file string, unmount func() error, err error) {
	dir := s.path("s3")
	if err := os.Mkdir(dir, 0o777); err != nil {
		return "", nil, err
	}
	args := []string{
		"-f", "--accessId=" + userName, "--accessKey=" + userKey, "--authVersion=aws4",
		"--baseURL=" + strings.TrimSuffix(b.cloud.authURL, "auth/v1.0"),
		fmt.Sprintf("--blockSize=%d", b.object), fmt.Sprintf("--size=%d", int64(peerSize)),
		fmt.Sprintf("--blockCacheSize=%d", peerCache/b.object), fmt.Sprintf("--blockCacheThreads=%d", s.conns),
		// As far as we read ahead by default; its own default is 4 blocks.
		fmt.Sprintf("--readAhead=%d", s.conns),
		// The right counts for a Swift that is not eventually consistent.
		"--minWriteDelay=0", "--md5CacheTime=0", "--md5CacheSize=0",
	}
	args = append(append(args, more...), b.bucket, dir)
	file = filepath.Join(dir, "file")
	unmount, err = s.fuse(dir, file, "s3backer", args...)
	return file, unmount, err
}

// servePeer mounts the disk and serves it with nbdkit. stop ends both.
func (s *suite) servePeer(b *peerDisk, more ...string) (n *server, stop func() error, err error) {
	file, unmount, err := s.mount(b, more...)
	if err != nil {
		return nil, nil, err
	}
	if n, err = s.nbdkit("file", file); err != nil {
		return nil, nil, errors.Join(err, unmount())
	}
	return n, func() error {
		err := n.stop()
		if e := unmount(); err == nil {
			err = e
		}
		return err
	}, nil
}

// peerJob is a job that both sides do.
type peerJob struct {
	fioJob
	what    string
	unit    string
	figure  func(f fioResult, all time.Duration) float64
	options []string // more for s3backer
}

// withEnd counts the time until all is written and the disk is closed.
func withEnd(f fioResult, all time.Duration) float64 { return mbps(f.bytes, all) }

func (s *suite) peerLines() []line {
	depth := s.conns
	jobs := []struct {
		name string
		job  peerJob
	}{
		{"seq-read", peerJob{what: "sequential read, cold, 1 MiB requests", unit: "MB/s",
			fioJob: fioJob{rw: "read", bs: 1 << 20, depth: depth, size: peerSize},
			figure: func(f fioResult, _ time.Duration) float64 { return f.mbps() }}},
		{"seq-write", peerJob{what: "sequential write, 1 MiB requests, until the disk is closed and all is in Swift", unit: "MB/s",
			fioJob: fioJob{rw: "write", bs: 1 << 20, depth: depth, size: peerSize, extra: []string{"--end_fsync=1"}}, figure: withEnd}},
		{"rand-read", peerJob{what: "4 KiB random read over a disk 4 times the cache, queue depth 16", unit: "IOPS",
			fioJob: fioJob{rw: "randread", bs: 4096, depth: depth, size: peerSize, runtime: s.short(3 * time.Second)},
			figure: func(f fioResult, _ time.Duration) float64 { return f.iops() }}},
		{"rand-write", peerJob{what: "4 KiB random write over a disk 4 times the cache, queue depth 16, until the disk is closed and all is in Swift", unit: "IOPS",
			fioJob: fioJob{rw: "randwrite", bs: 4096, depth: depth, size: peerSize, runtime: s.short(2 * time.Second)},
			figure: func(f fioResult, all time.Duration) float64 { return float64(f.ios) / all.Seconds() }}},
		{"write-flush", peerJob{what: "4 KiB random write and flush over 16 MiB, queue depth 1", unit: "IOPS",
			fioJob:  fioJob{rw: "randwrite", bs: 4096, depth: 1, size: 16 << 20, runtime: s.short(2 * time.Second), extra: []string{"--fsync=1"}},
			figure:  func(f fioResult, _ time.Duration) float64 { return f.iops() },
			options: []string{"--blockCacheSync", "--blockCacheWriteDelay=0"}}},
	}
	var all []line
	for _, j := range jobs {
		all = append(all, s.peerLine(j.name, s.object, j.job))
	}
	return append(all, s.peerTree(s.object))
}

func (s *suite) peerLine(name string, object int64, j peerJob) line {
	l := line{
		name: "s3backer/" + name, target: 1, least: true,
		what: fmt.Sprintf("%s, %s objects, real Swift, against s3backer", j.what, sizeName(object)),
	}
	l.run = func(r *result) error {
		r.Peer = "s3backer"
		v, err := s.filled("real", object, peerSize)
		if err != nil {
			return err
		}
		b, err := s.filledPeer(object)
		if err != nil {
			return err
		}
		do := func(n *server, stop func() error) (float64, error) {
			f := j.fioJob
			f.uri = n.uri
			start := time.Now()
			got, err := s.fio(f)
			if e := stop(); err == nil {
				err = e
			}
			return j.figure(got, time.Since(start)), err
		}
		return s.pairs(r, j.unit, func() (float64, error) {
			n, stop, err := s.servePeer(b, j.options...)
			if err != nil {
				return 0, err
			}
			return do(n, stop)
		}, func() (float64, error) {
			n, err := s.serve(v, fmt.Sprintf("cache=%d", peerCache))
			if err != nil {
				return 0, err
			}
			return do(n, n.stop)
		})
	}
	return l
}

// filledPeer returns a disk of s3backer's that is full of random bytes.
func (s *suite) filledPeer(object int64) (*peerDisk, error) {
	if b := s.peers[object]; b != nil {
		return b, nil
	}
	b, err := s.newPeerDisk(object)
	if err != nil {
		return nil, err
	}
	s.logf("filling %s with s3backer", b.bucket)
	file, unmount, err := s.mount(b)
	if err != nil {
		return nil, err
	}
	err = fillFile(file, peerSize)
	if e := unmount(); err == nil {
		err = e
	}
	if err == nil {
		s.peers[object] = b
	}
	return b, err
}

func fillFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size && err == nil; off += int64(len(buf)) {
		for i := range buf {
			buf[i] = byte(rand.Uint32())
		}
		_, err = f.WriteAt(buf, off)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// peerTree is the tree job on new disks of both.
func (s *suite) peerTree(object int64) line {
	l := line{
		name: "s3backer/untar", target: 1,
		what: fmt.Sprintf("mkfs.ext4, mount, untar a source tree, sync, umount, close: seconds, %s objects, real Swift, against s3backer", sizeName(object)),
	}
	l.run = func(r *result) error {
		r.Peer = "s3backer"
		var theirs counts
		var last tree
		err := s.pairs(r, "s", func() (float64, error) {
			b, err := s.newPeerDisk(object)
			if err != nil {
				return 0, err
			}
			file, unmount, err := s.mount(b)
			if err != nil {
				return 0, err
			}
			took, err := s.onFile(file)
			begin := time.Now()
			if e := unmount(); err == nil {
				err = e
			}
			took += time.Since(begin)
			if err != nil {
				return 0, err
			}
			theirs, err = b.cloud.logged("/" + b.bucket + "/0")
			return took.Seconds(), err
		}, func() (float64, error) {
			var err error
			last, err = s.tree("real", object, fmt.Sprintf("cache=%d", peerCache))
			return last.took.Seconds(), err
		})
		r.note("requests: %v; s3backer's: %v", last.requests, theirs)
		return err
	}
	return l
}
