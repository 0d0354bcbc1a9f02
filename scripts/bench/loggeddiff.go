// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"math/rand/v2"
)

// The lines about differences have a disk of 1 TiB that was written in 4 KiB all
// over it, of which 1 GiB was written anew between two snapshots, and a disk that
// has just that.

const (
	diffSize    = 1 << 40
	diffChanged = 1 << 30
	diffPiece   = 1 << 20 // of what was written anew
	// diffBefore is how many blocks of the large disk were written before, at
	// random.
	diffBefore = 1 << 16
)

// largeDisk is the two disks. The large one has the snapshots a and b, the other
// one b.
type largeDisk struct {
	large, plain *disk
	changed      int64 // bytes between the snapshots
}

// diffTime measures swiftnbd-ctl diff, or an incremental download, against
// downloading the other disk.
func (s *suite) diffTime(verb string) line {
	l := line{
		name: "v2/diff", target: 1.1,
		what: fmt.Sprintf("version 2: seconds of swiftnbd-ctl diff of two snapshots of 1 TiB between which 1 GiB was written in pieces of 1 MiB at random, %s, against downloading 1 GiB of a disk that has just that", s.cloudName("dev")),
	}
	if verb == "since" {
		l.name = "v2/download-since"
		l.what = fmt.Sprintf("version 2: seconds of download --since of the same, %s, against the same", s.cloudName("dev"))
	}
	l.run = func(r *result) error {
		d, err := s.largeDisks()
		if err != nil {
			return err
		}
		r.Peer = "the download"
		// The download goes through a pipe and is counted, on both sides.
		run := func(least int64, v *disk, args ...string) (float64, error) {
			var out byteCount
			before, err := v.cloud.traffic(v.container)
			if err != nil {
				return 0, err
			}
			took, err := s.ctl(v, &out, args...)
			if err != nil {
				return 0, err
			}
			after, err := v.cloud.traffic(v.container)
			if err != nil {
				return 0, err
			}
			r.note("%s: %d MB, %v", args[0], out/1_000_000, after.minus(before).All)
			return took.Seconds(), out.check(args[0], least)
		}
		return s.pairs(r, "s", func() (float64, error) {
			return run(d.changed, d.plain, "download", d.plain.container+"@b", "-")
		}, func() (float64, error) {
			if verb == "since" {
				return run(d.changed, d.large, "download", d.large.container+"@b", "-", "--since", "a", "--image-format", "increment")
			}
			// A line of some bytes for each piece, at most two of which touch.
			return run(d.changed/diffPiece, d.large, "diff", d.large.container+"@a", d.large.container+"@b")
		})
	}
	return l
}

// byteCount counts what is written to it.
type byteCount int64

func (n *byteCount) Write(p []byte) (int, error) {
	*n += byteCount(len(p))
	return len(p), nil
}

// check says that there is less than what a verb has to print at least.
func (n byteCount) check(verb string, least int64) error {
	if int64(n) < least {
		return fmt.Errorf("%s printed %d bytes, and not %d", verb, n, least)
	}
	return nil
}

// largeDisks makes the disks at their first use.
func (s *suite) largeDisks() (*largeDisk, error) {
	if s.largest != nil {
		return s.largest, nil
	}
	d := &largeDisk{changed: s.scaled(diffChanged, diffPiece)}
	pieces := func(size int64) []int64 {
		offs := make([]int64, 0, d.changed/diffPiece)
		seen := make(map[int64]bool)
		for len(offs) < cap(offs) {
			if k := rand.Int64N(size / diffPiece); !seen[k] {
				seen[k] = true
				offs = append(offs, k*diffPiece)
			}
		}
		return offs
	}
	var err error
	d.large, err = s.writtenLog("dev", diffSize, func(c *nbdConn) error {
		offs := make([]int64, diffBefore)
		for i := range offs {
			offs[i] = rand.Int64N(diffSize/4096) * 4096
		}
		_, err := c.writeAt(offs, 4096, 64)
		return err
	})
	if err != nil {
		return nil, err
	}
	if _, err := s.ctl(d.large, nil, "snapshot", d.large.container, "a"); err != nil {
		return nil, err
	}
	if d.plain, err = s.newLog("dev", d.changed); err != nil {
		return nil, err
	}
	for _, v := range []*disk{d.large, d.plain} {
		n, err := s.serve(v)
		if err != nil {
			return nil, err
		}
		defer n.kill()
		if _, err := n.held.writeAt(pieces(v.size()), diffPiece, 8); err != nil {
			return nil, err
		}
		if err := n.stop(); err != nil {
			return nil, err
		}
		if _, err := s.ctl(v, nil, "snapshot", v.container, "b"); err != nil {
			return nil, err
		}
	}
	s.largest = d
	return d, nil
}
