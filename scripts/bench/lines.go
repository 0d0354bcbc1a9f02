// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"time"
)

// lines returns all lines of the table, in its order.
func lines(s *suite) []line {
	var all []line
	for _, cloud := range []string{"real", "dev"} {
		for _, size := range []int64{64 << 10, 1 << 20, 4 << 20} {
			all = append(all, s.seqRead(cloud, size))
		}
	}
	for _, cloud := range []string{"real", "dev"} {
		for _, size := range []int64{64 << 10, 1 << 20, 4 << 20} {
			all = append(all, s.seqWrite(cloud, size))
		}
	}
	all = append(all, s.coldRandom(), s.warmRandom(1), s.warmRandom(32), s.warmSequential(),
		s.freeWrite(1), s.freeWrite(32),
		s.pressedWrite("dev", 64<<10), s.pressedWrite("dev", 1<<20), s.pressedWrite("real", 1<<20))
	for _, cloud := range []string{"real", "dev"} {
		for _, size := range []int64{64 << 10, 1 << 20} {
			all = append(all, s.writeFlush(cloud, size, false))
		}
	}
	all = append(all, s.writeFlush("dev", 64<<10, true), s.writeFlush("dev", 1<<20, true), s.flushShare())
	for _, b := range []busyKey{{"dev", 64 << 10}, {"dev", 1 << 20}, {"dev", 4 << 20}, {"real", 64 << 10}, {"real", 1 << 20}} {
		all = append(all, s.flushBusy(b.cloud, b.size), s.writeBusy(b.cloud, b.size))
	}
	all = append(all, s.treeLine("dev", 64<<10), s.treeLine("dev", 1<<20))
	all = append(all, s.logLines()...)
	all = append(all, s.peerLines()...)
	return all
}

// cloudName writes what a cloud is for people.
func (s *suite) cloudName(cloud string) string {
	switch cloud {
	case "dev":
		return fmt.Sprintf("embedded Swift at %v", s.latency)
	case "fast":
		return "embedded Swift without latency"
	}
	return "real Swift"
}

// bulk returns how many bytes a sequential job moves: a second or so.
func (s *suite) bulk(cloud string, objectSize int64) int64 {
	n := int64(256 << 20)
	switch {
	case objectSize <= 64<<10 && cloud == "real":
		n = 48 << 20
	case objectSize <= 64<<10:
		n = 96 << 20
	case objectSize >= 4<<20 || cloud == "dev":
		n = 512 << 20
	}
	if s.full {
		n *= 4
	}
	return s.scaled(n, max(objectSize, 1<<20))
}

func (s *suite) seqRead(cloud string, size int64) line {
	l := line{
		name: fmt.Sprintf("seq-read/%s/%s", cloud, sizeName(size)), target: 0.95, least: true,
		what: fmt.Sprintf("sequential read, cold, 1 MiB requests, %s objects, %s", sizeName(size), s.cloudName(cloud)),
	}
	l.run = func(r *result) error {
		v, err := s.filled(cloud, size, s.bulk(cloud, size))
		if err != nil {
			return err
		}
		return s.sequential(r, v, v.cloud.limit.readAll, v.cloud.limit.readHop,
			fioJob{rw: "read", bs: 1 << 20, depth: 16, size: v.size()})
	}
	return l
}

func (s *suite) seqWrite(cloud string, size int64) line {
	l := line{
		name: fmt.Sprintf("seq-write/%s/%s", cloud, sizeName(size)), target: 0.95, least: true,
		what: fmt.Sprintf("sequential write, flushed at the end, 1 MiB requests, %s objects, %s", sizeName(size), s.cloudName(cloud)),
	}
	l.run = func(r *result) error {
		v, err := s.filled(cloud, size, s.bulk(cloud, size))
		if err != nil {
			return err
		}
		return s.sequential(r, v, v.cloud.limit.writeAll, v.cloud.limit.writeHop,
			fioJob{rw: "write", bs: 1 << 20, depth: 16, size: v.size(), extra: []string{"--end_fsync=1"}})
	}
	return l
}

// sequential measures a job over a whole disk of which nothing is cached
// against the limit, and notes what both cost and what a hop does to the limit.
func (s *suite) sequential(r *result, v *disk, limit, through func(*disk) (float64, error), j fioJob) error {
	var hops []float64
	var theirs, ours spent
	err := s.pairs(r, "MB/s", func() (float64, error) {
		hop, err := through(v)
		if err != nil {
			return 0, err
		}
		c, self := v.cloud.cpu(), selfCPU()
		rate, err := limit(v)
		theirs.plus(spent{client: selfCPU() - self, swift: v.cloud.cpu() - c, bytes: v.size()})
		hops = append(hops, hop/rate)
		return rate, err
	}, func() (float64, error) {
		rate, cpu, err := s.whole(v, j)
		ours.plus(cpu)
		return rate, err
	})
	if err == nil {
		r.note("limit with an NBD-like hop: %.2f; CPU s/GB: %s; limit: %s", median(hops), ours.perGB(), theirs.perGB())
	}
	return err
}

// readCold reads a disk from its beginning to its end with nothing cached.
func (s *suite) readCold(v *disk, params ...string) (float64, error) {
	rate, _, err := s.whole(v, fioJob{rw: "read", bs: 1 << 20, depth: 16, size: v.size()}, params...)
	return rate, err
}

// writeAll writes a disk from its beginning to its end and flushes.
func (s *suite) writeAll(v *disk, params ...string) (float64, error) {
	rate, _, err := s.whole(v, fioJob{rw: "write", bs: 1 << 20, depth: 16, size: v.size(), extra: []string{"--end_fsync=1"}}, params...)
	return rate, err
}

// whole does a job on a disk of which nothing is cached. When it has written,
// all has to be in Swift.
func (s *suite) whole(v *disk, j fioJob, params ...string) (float64, spent, error) {
	n, err := s.serve(v, params...)
	if err != nil {
		return 0, spent{}, err
	}
	before, err := v.cloud.counts(v.container)
	if err != nil {
		return 0, spent{}, err
	}
	j.uri = n.uri
	c, own := v.cloud.cpu(), processCPU(n.cmd.Process.Pid)
	f, err := s.fio(j)
	if err != nil {
		return 0, spent{}, err
	}
	cost := spent{server: processCPU(n.cmd.Process.Pid) - own, client: f.cpu, swift: v.cloud.cpu() - c, bytes: f.bytes}
	after, err := v.cloud.counts(v.container)
	if err != nil {
		return 0, spent{}, err
	}
	least := v.objects
	if v.log {
		least = v.size() / (4 << 20)
	}
	if puts := after.minus(before)["PUT"]; j.rw == "write" && puts < least {
		return 0, spent{}, fmt.Errorf("the flush lied: %d PUTs for %d objects", puts, least)
	}
	return f.mbps(), cost, n.stop()
}

// warmSize is the disk of the warm lines: it fits the default cache.
const warmSize = 32 << 20

// against memory measures a job on a disk that is cached as a whole, and on
// nbdkit's memory plugin.
func (s *suite) againstMemory(r *result, unit string, j fioJob, figure func(fioResult) float64) error {
	r.Peer = "memory plugin"
	v, err := s.filled("dev", s.object, warmSize)
	if err != nil {
		return err
	}
	ours, err := s.serve(v)
	if err != nil {
		return err
	}
	defer ours.kill()
	if err := ours.held.warm(0, warmSize); err != nil {
		return err
	}
	peer, err := s.memory(warmSize)
	if err != nil {
		return err
	}
	defer peer.kill()
	before, err := v.cloud.counts(v.container)
	if err != nil {
		return err
	}
	j.size = warmSize
	var costs [2]perIO
	side := func(n *server, cost *perIO) func() (float64, error) {
		return func() (float64, error) {
			j.uri = n.uri
			before := processCPU(n.cmd.Process.Pid)
			f, err := s.fio(j)
			cost.add(processCPU(n.cmd.Process.Pid)-before, f.ios)
			return figure(f), err
		}
	}
	if err := s.pairs(r, unit, side(peer, &costs[0]), side(ours, &costs[1])); err != nil {
		return err
	}
	r.note("nbdkit's CPU a request: %v, memory plugin %v", costs[1], costs[0])
	after, err := v.cloud.counts(v.container)
	if err != nil {
		return err
	}
	if d := after.minus(before); d.total() > 0 {
		r.note("not warm: %v while it was measured", d)
	}
	return nil
}

// short is how long a timed job runs.
func (s *suite) short(d time.Duration) time.Duration {
	if s.full {
		d *= 4
	}
	return time.Duration(float64(d) * s.scale)
}

func (s *suite) warmRandom(depth int) line {
	l := line{
		name: fmt.Sprintf("warm-rand-read/qd%d", depth), target: 0.8, least: true,
		what: fmt.Sprintf("4 KiB random read of what is cached, queue depth %d", depth),
	}
	l.run = func(r *result) error {
		return s.againstMemory(r, "IOPS", fioJob{rw: "randread", bs: 4096, depth: depth, runtime: s.short(2 * time.Second)}, fioResult.iops)
	}
	return l
}

func (s *suite) warmSequential() line {
	l := line{
		name: "warm-seq-read", target: 0.8, least: true,
		what: "sequential read of what is cached, 1 MiB requests",
	}
	l.run = func(r *result) error {
		return s.againstMemory(r, "MB/s", fioJob{rw: "read", bs: 1 << 20, depth: 16, runtime: s.short(2 * time.Second)}, fioResult.mbps)
	}
	return l
}
