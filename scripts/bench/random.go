// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// coldRandom reads 4 KiB at places that were never read before and share no
// request with each other. A client of queue depth 16 can have 16 answers a
// latency at most, so that is the limit.
func (s *suite) coldRandom() line {
	const depth, span = 16, 64 << 10 // the plugin reads aligned runs of this size
	l := line{
		name: "cold-rand-read/qd16", target: 0.95, least: true,
		what: fmt.Sprintf("4 KiB random read, cold, queue depth 16, %s, against 16 per %v", s.cloudName("dev"), s.latency),
	}
	l.run = func(r *result) error {
		v, err := s.filled("dev", s.object, s.bulk("dev", s.object))
		if err != nil {
			return err
		}
		count := int(s.short(3*time.Second).Seconds() * depth / s.latency.Seconds())
		places := rand.Perm(int(v.size() / span))
		if count > len(places) {
			return fmt.Errorf("%d reads do not fit a disk of %d bytes", count, v.size())
		}
		offs := make([]int64, count)
		for i := range offs {
			offs[i] = int64(places[i])*span + rand.Int64N(span/4096)*4096
		}
		r.Peer = fmt.Sprintf("16/%v", s.latency)
		var raw []float64
		err = s.pairs(r, "IOPS", func() (float64, error) {
			took, err := v.cloud.limit.withConns(depth).each(int64(count), span, func(_ int, i int64, buf []byte) error {
				off := offs[i] / span * span
				return v.cloud.limit.get(v.container, off/v.objectSize, off%v.objectSize, v.objectSize, buf)
			})
			raw = append(raw, float64(count)/took.Seconds())
			return depth / s.latency.Seconds(), err
		}, func() (float64, error) {
			n, err := s.serve(v)
			if err != nil {
				return 0, err
			}
			took, err := n.held.readAt(offs, 4096, depth)
			if err != nil {
				return 0, err
			}
			return float64(count) / took.Seconds(), n.stop()
		})
		if len(raw) > 0 {
			r.note("net/http does %s such GETs a second, of which ours is %.2f", figure(median(raw)), r.Ours/median(raw))
		}
		return err
	}
	return l
}

// freeWrite writes 4 KiB blocks at random into a cache that has room for them.
func (s *suite) freeWrite(depth int) line {
	// A quarter of the cache is less than what makes it write back by
	// pressure; the time is less than what makes it do so by age; and it is
	// too short for many objects to become new as a whole, which the cache
	// writes back at once.
	const area, cache = 128 << 20, 512 << 20
	l := line{
		name: fmt.Sprintf("free-rand-write/qd%d", depth), target: 0.8, least: true,
		what: fmt.Sprintf("4 KiB random write into free cache, no flush, queue depth %d", depth),
	}
	l.run = func(r *result) error {
		r.Peer = "memory plugin"
		v, err := s.filled("dev", s.object, area)
		if err != nil {
			return err
		}
		ours, err := s.serve(v, fmt.Sprintf("cache=%d", cache))
		if err != nil {
			return err
		}
		defer ours.kill()
		peer, err := s.memory(area)
		if err != nil {
			return err
		}
		defer peer.kill()
		j := fioJob{rw: "randwrite", bs: 4096, depth: depth, size: area, runtime: 2 * time.Second}
		var costs [2]perIO
		var puts int64
		err = s.pairs(r, "IOPS", func() (float64, error) {
			j.uri = peer.uri
			cpu := processCPU(peer.cmd.Process.Pid)
			f, err := s.fio(j)
			costs[0].add(processCPU(peer.cmd.Process.Pid)-cpu, f.ios)
			return f.iops(), err
		}, func() (float64, error) {
			j.uri = ours.uri
			cpu := processCPU(ours.cmd.Process.Pid)
			f, made, err := s.counted(v, j)
			if err != nil {
				return 0, err
			}
			costs[1].add(processCPU(ours.cmd.Process.Pid)-cpu, f.ios)
			puts += made["PUT"]
			return f.iops(), ours.held.flush()
		})
		r.note("nbdkit's CPU a request: %v, memory plugin %v; %d PUTs while it was measured", costs[1], costs[0], puts)
		return err
	}
	return l
}

// pressedWrite writes 4 KiB blocks at random all over a disk that is four times
// the cache, and looks how fast chunks are written back, each of which has to
// be read first unless all of it was written. The limit gets and puts chunks.
func (s *suite) pressedWrite(cloud string, size int64) line {
	const cache = 64 << 20
	l := line{
		name: fmt.Sprintf("pressed-rand-write/%s/%s", cloud, sizeName(size)), target: 0.9, least: true,
		what: fmt.Sprintf("chunks written back a second under 4 KiB random writes, disk 4 times the cache, %s objects, %s, against a GET and a PUT of each",
			sizeName(size), s.cloudName(cloud)),
	}
	l.run = func(r *result) error {
		v, err := s.filled(cloud, size, 4*cache)
		if err != nil {
			return err
		}
		full := s.short(8 * time.Second)
		if s.full {
			full = 60 * time.Second
		}
		// Until the cache is full the writes cost nothing.
		start := full / 4
		var iops []float64
		var rss int64
		err = s.pairs(r, "chunks/s", func() (float64, error) {
			return v.cloud.limit.rewrite(v, 2500*time.Millisecond)
		}, func() (float64, error) {
			n, err := s.serve(v, fmt.Sprintf("cache=%d", cache))
			if err != nil {
				return 0, err
			}
			defer n.kill() // what is dirty is nothing that anybody wants
			done := make(chan error, 1)
			var f fioResult
			go func() {
				var err error
				f, err = s.fio(fioJob{uri: n.uri, rw: "randwrite", bs: 4096, depth: 16, size: v.size(), runtime: full + 2*time.Second})
				done <- err
			}()
			rate, err := putRate(s.ctx, v, start, full)
			if e := <-done; err == nil {
				err = e
			}
			iops = append(iops, f.iops())
			if b, e := n.rss(); e == nil {
				rss = max(rss, b)
			}
			return rate, err
		})
		if len(iops) > 0 {
			r.note("%s IOPS, peak RSS %d MiB", figure(median(iops)), rss>>20)
		}
		return err
	}
	return l
}

// putRate returns the PUTs a second between two moments from now on.
func putRate(ctx context.Context, v *disk, from, to time.Duration) (float64, error) {
	begin := time.Now()
	look := func(at time.Duration) (counts, time.Time, error) {
		select {
		case <-time.After(time.Until(begin.Add(at))):
		case <-ctx.Done():
			return nil, time.Time{}, ctx.Err()
		}
		when := time.Now()
		n, err := v.cloud.counts(v.container)
		return n, when, err
	}
	first, t1, err := look(from)
	if err != nil {
		return 0, err
	}
	last, t2, err := look(to)
	if err != nil {
		return 0, err
	}
	return float64(last.minus(first)["PUT"]) / t2.Sub(t1).Seconds(), nil
}

// rewrite gets and puts chunks of the disk at random, for about d, and returns
// how many a second.
func (l *limit) rewrite(v *disk, d time.Duration) (float64, error) {
	end := time.Now().Add(d)
	order := rand.Perm(int(v.objects))
	done := make([]int64, l.conns)
	took, err := l.each(1<<40, v.objectSize, func(k int, i int64, buf []byte) error {
		if time.Now().After(end) {
			return errDone
		}
		// No two connections have the same chunk in hand: they are fewer
		// than there are chunks, and go through them in one order.
		chunk := int64(order[i%int64(len(order))])
		if err := l.get(v.container, chunk, 0, v.objectSize, buf); err != nil {
			return err
		}
		if err := l.put(v.container, chunk, buf); err != nil {
			return err
		}
		done[k]++
		return nil
	})
	if errors.Is(err, errDone) {
		err = nil
	}
	var n int64
	for _, k := range done {
		n += k
	}
	return float64(n) / took.Seconds(), err
}

// writeFlush writes 4 KiB and flushes, again and again.
func (s *suite) writeFlush(cloud string, size int64, cold bool) line {
	l := line{
		name: fmt.Sprintf("write-flush/warm/%s/%s", cloud, sizeName(size)), target: 1.1,
		what: fmt.Sprintf("4 KiB random write and flush, queue depth 1, %s objects, cached, %s, against a PUT's time",
			sizeName(size), s.cloudName(cloud)),
	}
	if cold {
		l.name, l.target = fmt.Sprintf("write-flush/cold/%s/%s", cloud, sizeName(size)), 0
		l.what = fmt.Sprintf("4 KiB random write and flush, queue depth 1, %s objects, each touched for the first time, so a GET and a PUT, %s, against a PUT's time",
			sizeName(size), s.cloudName(cloud))
	}
	l.run = func(r *result) error {
		area := int64(16 << 20)
		if cold {
			area = s.bulk(cloud, size)
		}
		v, err := s.filled(cloud, size, area)
		if err != nil {
			return err
		}
		one := v.cloud.limit.withConns(1)
		j := fioJob{rw: "randwrite", bs: 4096, depth: 1, size: v.size(), runtime: s.short(2 * time.Second)}
		if cold {
			// No chunk twice, or it would be warm: one write a chunk.
			j.runtime, j.rw = 0, fmt.Sprintf("write:%d", size-4096)
			j.extra = append(j.extra, fmt.Sprintf("--number_ios=%d", min(v.objects, 80)))
			r.note("a GET and a PUT: 2 is what there is to be had")
		}
		return s.pairs(r, "ms", func() (float64, error) {
			end := time.Now().Add(j.runtime)
			var n int64
			took, err := one.each(1<<40, size, func(_ int, i int64, buf []byte) error {
				if n >= 80 && time.Now().After(end) {
					return errDone
				}
				n++
				return one.put(v.container, rand.Int64N(v.objects), buf)
			})
			if errors.Is(err, errDone) {
				err = nil
			}
			return took.Seconds() * 1e3 / float64(n), err
		}, func() (float64, error) {
			n, err := s.serve(v)
			if err != nil {
				return 0, err
			}
			if !cold {
				if err := n.held.warm(0, v.size()); err != nil {
					return 0, err
				}
			}
			j.uri = n.uri
			f, _, err := s.flushed(v, j)
			if err != nil {
				return 0, err
			}
			return f.seconds * 1e3 / float64(f.ios), n.stop()
		})
	}
	return l
}

// flushShare has 16 clients write and flush, each for itself.
func (s *suite) flushShare() line {
	const clients, area = 16, 16 << 20
	l := line{
		name: "flush-share/qd16", target: 1,
		what: fmt.Sprintf("PUTs a flush, 16 clients that write 4 KiB at random and flush, 16 MiB in %s objects, %s", sizeName(s.object), s.cloudName("dev")),
	}
	l.run = func(r *result) error {
		v, err := s.filled("dev", s.object, area)
		if err != nil {
			return err
		}
		n, err := s.serve(v)
		if err != nil {
			return err
		}
		defer n.kill()
		if err := n.held.warm(0, v.size()); err != nil {
			return err
		}
		r.Peer = "a PUT each"
		j := fioJob{uri: n.uri, rw: "randwrite", bs: 4096, depth: 1, jobs: clients, size: v.size(), runtime: s.short(2 * time.Second), extra: []string{"--fsync=1"}}
		var rate, puts []float64
		err = s.pairs(r, "PUTs/flush", func() (float64, error) {
			took, err := v.cloud.limit.withConns(clients).each(200, v.objectSize, func(_ int, i int64, buf []byte) error {
				return v.cloud.limit.put(v.container, i%v.objects, buf)
			})
			puts = append(puts, 200/took.Seconds())
			return 1, err
		}, func() (float64, error) {
			f, made, err := s.counted(v, j)
			if err != nil {
				return 0, err
			}
			rate = append(rate, f.iops())
			return float64(made["PUT"]) / float64(f.ios), nil
		})
		if len(rate) > 0 {
			r.note("%s flushes/s; net/http does %s PUTs/s over as many connections", figure(median(rate)), figure(median(puts)))
		}
		return err
	}
	return l
}
