// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// logColdRandom is coldRandom for a disk of version 2, against what net/http
// alone does.
func (s *suite) logColdRandom(fill string) line {
	const depth, span = 16, 64 << 10
	l := line{
		name: "v2/cold-rand-read/" + fillName(fill), target: 0.95, least: true,
		what: fmt.Sprintf("version 2: 4 KiB random read, nothing cached, queue depth %d, a disk that was written %s, %s, against as many GETs of 64 KiB by net/http", depth, fill, s.cloudName("dev")),
	}
	l.run = func(r *result) error {
		size := s.bulk("dev", 1<<20)
		v, err := s.filledLog("dev", size, fill)
		if err != nil {
			return err
		}
		plain, err := s.filled("dev", 1<<20, size)
		if err != nil {
			return err
		}
		places := rand.Perm(int(v.size() / span))
		count := min(len(places), int(s.short(3*time.Second).Seconds()*depth/s.latency.Seconds()))
		offs := make([]int64, count)
		for i := range offs {
			offs[i] = int64(places[i])*span + rand.Int64N(span/4096)*4096
		}
		var gets int64
		err = s.pairs(r, "IOPS", func() (float64, error) {
			took, err := plain.cloud.limit.withConns(depth).each(int64(count), span, func(_ int, i int64, buf []byte) error {
				off := offs[i] / span * span
				return plain.cloud.limit.get(plain.container, off/plain.objectSize, off%plain.objectSize, plain.objectSize, buf)
			})
			return float64(count) / took.Seconds(), err
		}, func() (float64, error) {
			n, err := s.serve(v)
			if err != nil {
				return 0, err
			}
			var took time.Duration
			made, err := v.counting(func() (err error) {
				took, err = n.held.readAt(offs, 4096, depth)
				return err
			})
			if err != nil {
				return 0, err
			}
			gets += made["GET"]
			return float64(count) / took.Seconds(), n.stop()
		})
		r.note("%.2f GETs a read", float64(gets)/float64(len(r.Ratios)*count))
		return err
	}
	return l
}

// fillName is the part of a line's name that says how its disk was filled.
func fillName(fill string) string {
	if fill == inOrder {
		return "in-order"
	}
	return "at-random"
}

// logScattered reads a disk in order that was written at random.
func (s *suite) logScattered(collected bool) line {
	const size = 256 << 20
	l := line{
		name: "v2/scattered-seq-read/before", least: true,
		what: fmt.Sprintf("version 2: sequential read of a disk that was written at random in 4 KiB, %s, against version 1", s.cloudName("dev")),
	}
	if collected {
		l.name, l.target = "v2/scattered-seq-read/after", 0.5
		l.what = "version 2: the same after it was read so once, and left alone until the collector had nothing to do"
	}
	l.run = func(r *result) error {
		var (
			v   *disk
			err error
			// A part of it takes long enough.
			part = s.scaled(24<<20, 1<<20)
		)
		if collected {
			// Its own disk, which the other line shall not find collected. All of it is
			// read: what is read ahead is in order then, too.
			part = s.scaled(64<<20, 1<<20)
			if v, err = s.filledLog("dev", part, atRandom); err == nil {
				err = s.leaveAlone(r, v, part)
			}
		} else {
			v, err = s.filledLog("dev", size, atRandom)
		}
		if err != nil {
			return err
		}
		old, err := s.filled("dev", 1<<20, size)
		if err != nil {
			return err
		}
		var gets int64
		r.Peer = "version 1"
		err = s.pairs(r, "MB/s", func() (float64, error) { return s.readCold(old) }, func() (float64, error) {
			n, err := s.serve(v)
			if err != nil {
				return 0, err
			}
			f, made, err := s.counted(v, fioJob{uri: n.uri, rw: "read", bs: 1 << 20, depth: 16, size: part})
			if err != nil {
				return 0, err
			}
			gets += made["GET"]
			return f.mbps(), n.stop()
		})
		r.note("%.0f GETs a MiB", float64(gets)/float64(int64(len(r.Ratios))*part>>20))
		return err
	}
	return l
}

// leaveAlone serves a disk, has so many bytes of it read in order, and waits until
// nothing was sent for a while.
func (s *suite) leaveAlone(r *result, v *disk, bytes int64) error {
	n, err := s.serve(v)
	if err != nil {
		return err
	}
	defer n.kill()
	if _, err := s.fio(fioJob{uri: n.uri, rw: "read", bs: 1 << 20, depth: 16, size: bytes}); err != nil {
		return err
	}
	start, quiet := time.Now(), time.Now()
	first, err := v.cloud.traffic(v.container)
	if err != nil {
		return err
	}
	// The disk counts as idle after ten seconds.
	for last := first.Sent; time.Since(quiet) < 14*time.Second && time.Since(start) < 2*time.Minute; {
		select {
		case <-time.After(time.Second / 2):
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
		now, err := v.cloud.traffic(v.container)
		if err != nil {
			return err
		}
		if now.Sent != last {
			last, quiet = now.Sent, time.Now()
		}
	}
	last, err := v.cloud.traffic(v.container)
	if err != nil {
		return err
	}
	r.note("the collector sent %d MB", (last.Sent-first.Sent)/1_000_000)
	return n.stop()
}

// logOpen measures the time from nbdkit's start to its first answer to a read.
func (s *suite) logOpen(killed bool) line {
	const size, objects = 1 << 30, 980 // a checkpoint comes at 1000
	l := line{
		name: "v2/open/clean", target: 1,
		what: fmt.Sprintf("version 2: seconds from nbdkit's start to its first read's end, %d MiB written at random, ended in order, %s, against 1 s", size>>20, s.cloudName("dev")),
	}
	limit := 1.0
	if killed {
		limit = 3
		l.name = "v2/open/killed"
		l.what = fmt.Sprintf("version 2: the same after kill -9 with %d objects of log, against 3 s", objects)
	}
	l.run = func(r *result) error {
		v, err := s.filledLog("dev", size, atRandom)
		if err != nil {
			return err
		}
		r.Peer = "the target"
		return s.pairs(r, "s", func() (float64, error) { return limit, nil }, func() (float64, error) {
			if killed {
				n, err := s.serve(v)
				if err != nil {
					return 0, err
				}
				err = n.held.flushes(objects, v.size())
				if e := n.kill(); err == nil {
					err = e
				}
				if err != nil {
					return 0, err
				}
			}
			start := time.Now()
			n, err := s.serve(v)
			if err != nil {
				return 0, err
			}
			if _, err := n.held.readAt([]int64{rand.Int64N(v.size()/4096) * 4096}, 4096, 1); err != nil {
				return 0, err
			}
			took := time.Since(start).Seconds()
			return took, n.stop()
		})
	}
	return l
}

// flushes writes 4 KiB at a random place and flushes, n times, with the answers
// of 16 flushes outstanding.
func (c *nbdConn) flushes(n int, size int64) error {
	data := make([]byte, 4096)
	for i := 0; i < n; {
		batch := min(16, n-i)
		for range batch {
			i++
			// The write first: a flush is of what was answered before it.
			if err := c.request(nbdWrite, 0, rand.Int64N(size/4096)*4096, len(data), data); err != nil {
				return err
			}
			if _, err := c.reply(); err != nil {
				return err
			}
			if err := c.request(nbdFlush, 0, 0, 0, nil); err != nil {
				return err
			}
			// So that the flush has begun, and is one of its own.
			time.Sleep(time.Millisecond)
		}
		for range batch {
			if _, err := c.reply(); err != nil {
				return err
			}
		}
	}
	return nil
}
