// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// The lines whose names begin with v2 are of disks of version 2 of the format,
// which are logs of packed objects (docs/FORMAT-V2.md).

// logLines returns them.
func (s *suite) logLines() []line {
	var all []line
	for _, cloud := range []string{"dev", "real"} {
		all = append(all, s.logWriteFlush(cloud, "cold"), s.logWriteFlush(cloud, "warm"), s.logFlushShare(cloud))
	}
	all = append(all, s.logRandomWrite("dev"), s.logRandomWrite("real"), s.logRandomWriteOld("dev"), s.logRandomBytes())
	for _, cloud := range []string{"dev", "real"} {
		all = append(all, s.logSequential(cloud, "write"), s.logSequential(cloud, "read"),
			s.logHop(cloud, "write"), s.logHop(cloud, "read"))
	}
	all = append(all, s.logColdRandom(inOrder), s.logColdRandom(atRandom), s.logScattered(false), s.logScattered(true),
		s.logOpen(false), s.logOpen(true), s.logCollectLatency(), s.logCollectBytes(), s.logTree("seconds"), s.logTree("bytes"),
		s.sqlite("wal"), s.sqlite("delete"), s.pgbench("dev"), s.pgbench("real"))
	for _, of := range besideFigures {
		all = append(all, s.beside(of))
	}
	for _, of := range momentFigures {
		all = append(all, s.moments(of))
	}
	all = append(all, s.collectPinned(), s.cloneRequests(), s.growTime(), s.diffTime("diff"), s.diffTime("since"))
	return all
}

// How a disk of version 2 was filled.
const (
	inOrder  = "in order"
	atRandom = "at random, in 4 KiB"
)

// newLog makes an empty disk of version 2.
func (s *suite) newLog(cloud string, bytes int64) (*disk, error) {
	c, err := s.cloud(cloud)
	if err != nil {
		return nil, err
	}
	s.serial++
	v := &disk{cloud: c, container: fmt.Sprintf("bench%d-%d", os.Getpid(), s.serial), objectSize: 1 << 20, objects: max(1, bytes>>20), log: true}
	secrets, err := s.secrets(v)
	if err != nil {
		return nil, err
	}
	return v, s.command(filepath.Join(s.build, "swiftnbd-ctl"), "--secrets", secrets,
		"setup", v.container, "--format", "2", "--size", fmt.Sprint(v.size()))
}

// filledLog returns a disk of version 2 that is full of random bytes. It is made
// at its first use and kept.
func (s *suite) filledLog(cloud string, bytes int64, fill string) (*disk, error) {
	key := diskKey{cloud, 1 << 20, max(1, bytes>>20), fill}
	if v := s.disks[key]; v != nil {
		return v, nil
	}
	v, err := s.newLog(cloud, bytes)
	if err != nil {
		return nil, err
	}
	s.logf("filling %s %s: %d MiB", v.container, fill, v.size()>>20)
	n, err := s.serve(v)
	if err != nil {
		return nil, err
	}
	defer n.kill()
	if fill == atRandom {
		_, err = n.held.writeAt(shuffled(v.size()), 4096, 64)
	} else {
		err = n.held.fill(v.size())
	}
	if err != nil {
		return nil, err
	}
	if err := n.stop(); err != nil {
		return nil, err
	}
	s.disks[key] = v
	return v, nil
}

// shuffled returns the places of all blocks of a disk of size bytes, at random.
func shuffled(size int64) []int64 {
	offs := make([]int64, size/4096)
	for i, k := range rand.Perm(len(offs)) {
		offs[i] = int64(k) * 4096
	}
	return offs
}

// putTime returns how long one PUT of size bytes takes by net/http, seconds:
// the mean of those of about d.
func (s *suite) putTime(cloud string, size int64, d time.Duration) (float64, error) {
	v, err := s.filled(cloud, 64<<10, 16<<20) // only its names are used
	if err != nil {
		return 0, err
	}
	one := v.cloud.limit.withConns(1)
	end := time.Now().Add(d)
	var n int64
	took, err := one.each(1<<40, size, func(_ int, _ int64, buf []byte) error {
		if n >= 40 && time.Now().After(end) {
			return errDone
		}
		n++
		return one.put(v.container, rand.Int64N(v.objects), buf)
	})
	if err != nil && !errors.Is(err, errDone) {
		return 0, err
	}
	return took.Seconds() / float64(n), nil
}

// flushTarget is what a write and a flush may take of a PUT's time.
func flushTarget(cloud string) float64 {
	if cloud == "dev" {
		return 1.05
	}
	return 1.15
}

// logWriteFlush writes 4 KiB and flushes, again and again.
func (s *suite) logWriteFlush(cloud, state string) line {
	l := line{
		name: fmt.Sprintf("v2/write-flush/%s/%s", state, cloud), target: flushTarget(cloud),
		what: fmt.Sprintf("version 2: 4 KiB random write and flush, queue depth 1, %s, %s, against the time of one PUT of 8 KiB", state, s.cloudName(cloud)),
	}
	l.run = func(r *result) error {
		area := int64(16 << 20)
		if state == "cold" {
			area = s.bulk(cloud, 1<<20)
		}
		v, err := s.filledLog(cloud, area, inOrder)
		if err != nil {
			return err
		}
		r.Peer = "a PUT"
		return s.pairs(r, "ms", func() (float64, error) {
			t, err := s.putTime(cloud, 8<<10, s.short(2*time.Second))
			return t * 1e3, err
		}, func() (float64, error) {
			n, err := s.serve(v)
			if err != nil {
				return 0, err
			}
			if state == "warm" {
				if err := n.held.warm(0, v.size()); err != nil {
					return 0, err
				}
			}
			f, _, err := s.flushed(v, fioJob{uri: n.uri, rw: "randwrite", bs: 4096, depth: 1, size: v.size(), runtime: s.short(2 * time.Second)})
			if err != nil {
				return 0, err
			}
			return f.seconds * 1e3 / float64(f.ios), n.stop()
		})
	}
	return l
}

// flushed does a job with a flush after each write, and looks that every flush
// of one client's made a PUT. It also returns the requests.
func (s *suite) flushed(v *disk, j fioJob) (fioResult, counts, error) {
	j.extra = append(j.extra, "--fsync=1")
	f, made, err := s.counted(v, j)
	if err != nil {
		return f, nil, err
	}
	// fio does not flush after its last write. Several clients' flushes may
	// share a PUT.
	clients := int64(max(1, j.jobs))
	if puts := made["PUT"]; puts < f.ios/clients-1 || f.syncs < f.ios-clients {
		return f, nil, fmt.Errorf("the flush lied: %d PUTs for %d writes and %d flushes", puts, f.ios, f.syncs)
	}
	return f, made, nil
}

// logFlushShare has 16 clients write and flush, each for itself.
func (s *suite) logFlushShare(cloud string) line {
	const clients = 16
	l := line{
		name: "v2/flush-share/" + cloud, target: 1, least: true,
		what: fmt.Sprintf("version 2: writes with a flush a second, 16 clients that write 4 KiB at random and flush, %s, against 8 times what one PUT of 8 KiB after the other makes", s.cloudName(cloud)),
	}
	l.run = func(r *result) error {
		v, err := s.filledLog(cloud, s.bulk(cloud, 1<<20), inOrder)
		if err != nil {
			return err
		}
		r.Peer = "8 times a PUT's"
		var puts, flushes int64
		err = s.pairs(r, "IOPS", func() (float64, error) {
			t, err := s.putTime(cloud, 8<<10, s.short(2*time.Second))
			return 8 / t, err
		}, func() (float64, error) {
			n, err := s.serve(v)
			if err != nil {
				return 0, err
			}
			f, made, err := s.flushed(v, fioJob{uri: n.uri, rw: "randwrite", bs: 4096, depth: 1, jobs: clients, size: v.size(), runtime: s.short(2 * time.Second)})
			if err != nil {
				return 0, err
			}
			puts, flushes = puts+made["PUT"], flushes+f.ios
			return f.iops(), n.stop()
		})
		if flushes > 0 {
			r.note("%.2f PUTs a flush", float64(puts)/float64(flushes))
		}
		return err
	}
	return l
}

// The job of random writes is over a disk that is 64 times the cache.
const (
	randomCache = 8 << 20
	randomSize  = 64 * randomCache
)

// randomRun is what came of random writes.
type randomRun struct {
	iops  float64
	bytes int64 // that the client wrote
	up    int64 // that went to the embedded Swift for it
	gets  int64
	cpu   perIO // nbdkit's
}

// logRandom writes 4 KiB at random for a while, and has all in Swift at the end.
func (s *suite) logRandom(v *disk, d time.Duration, params ...string) (randomRun, error) {
	n, err := s.serve(v, append(params, fmt.Sprintf("cache=%d", randomCache))...)
	if err != nil {
		return randomRun{}, err
	}
	defer n.kill()
	before, err := v.cloud.traffic(v.container)
	if err != nil {
		return randomRun{}, err
	}
	cpu := processCPU(n.cmd.Process.Pid)
	f, err := s.fio(fioJob{uri: n.uri, rw: "randwrite", bs: 4096, depth: 16, size: v.size(), runtime: d})
	if err != nil {
		return randomRun{}, err
	}
	took := f.seconds
	if v.log { // version 1 would take longer for it than for the job
		start := time.Now()
		if err := n.held.flush(); err != nil {
			return randomRun{}, err
		}
		took += time.Since(start).Seconds()
	}
	after, err := v.cloud.traffic(v.container)
	if err != nil {
		return randomRun{}, err
	}
	run := randomRun{
		iops: float64(f.ios) / took, bytes: f.bytes, up: after.Sent - before.Sent, gets: after.Requests.minus(before.Requests)["GET"],
		cpu: perIO{processCPU(n.cmd.Process.Pid) - cpu, f.ios},
	}
	if v.log {
		err = n.stop()
	}
	return run, err
}

// logRandomWrite compares random writes with the PUTs that their bytes make.
func (s *suite) logRandomWrite(cloud string) line {
	l := line{
		name: "v2/rand-write/" + cloud, target: 0.8, least: true,
		what: fmt.Sprintf("version 2: 4 KiB random writes, queue depth 16, disk 64 times the cache, flushed at the end, %s, against PUTs of 4 MiB", s.cloudName(cloud)),
	}
	l.run = func(r *result) error {
		v, err := s.filledLog(cloud, randomSize, inOrder)
		if err != nil {
			return err
		}
		plain, err := s.empty(cloud, 4<<20, s.bulk(cloud, 4<<20))
		if err != nil {
			return err
		}
		// What NBD itself lets through in requests of 4 KiB.
		peer, err := s.memory(randomSize)
		if err != nil {
			return err
		}
		defer peer.kill()
		var (
			gets   int64
			cpu    perIO
			hop    perIO // the memory plugin's: what NBD costs without a disk behind it
			memory []float64
		)
		err = s.pairs(r, "IOPS", func() (float64, error) {
			before := processCPU(peer.cmd.Process.Pid)
			f, err := s.fio(fioJob{uri: peer.uri, rw: "randwrite", bs: 4096, depth: 16, size: randomSize, runtime: s.short(time.Second)})
			if err != nil {
				return 0, err
			}
			hop.add(processCPU(peer.cmd.Process.Pid)-before, f.ios)
			memory = append(memory, f.iops())
			rate, err := plain.cloud.limit.writeAll(plain)
			return rate * 1e6 / 4096, err
		}, func() (float64, error) {
			run, err := s.logRandom(v, s.short(4*time.Second))
			gets += run.gets
			cpu.add(run.cpu.cpu, run.cpu.ios)
			return run.iops, err
		})
		if err != nil {
			return err
		}
		r.note("nbdkit's CPU a request: %v, with its memory plugin %v; that does %s IOPS, of which ours is %.2f", cpu, hop, figure(median(memory)), r.Ours/median(memory))
		// Both take all of a small machine's processors, so a disk has to share them.
		both := 1 / (1/median(memory) + 1/r.Against)
		r.note("it and the PUTs one after the other make %s, of which ours is %.2f", figure(both), r.Ours/both)
		if cloud == "dev" {
			r.note("%d GETs", gets)
		}
		return nil
	}
	return l
}

// logRandomWriteOld compares random writes with those on version 1.
func (s *suite) logRandomWriteOld(cloud string) line {
	l := line{
		name: "v2/rand-write-v1/" + cloud, target: 20, least: true,
		what: fmt.Sprintf("version 2: the same job, %s, against version 1 with %s objects", s.cloudName(cloud), sizeName(s.object)),
	}
	l.run = func(r *result) error {
		v, err := s.filledLog(cloud, randomSize, inOrder)
		if err != nil {
			return err
		}
		old, err := s.filled(cloud, s.object, randomSize)
		if err != nil {
			return err
		}
		r.Peer = "version 1"
		return s.pairs(r, "IOPS", func() (float64, error) {
			run, err := s.logRandom(old, s.short(6*time.Second))
			return run.iops, err
		}, func() (float64, error) {
			run, err := s.logRandom(v, s.short(4*time.Second))
			return run.iops, err
		})
	}
	return l
}

// logRandomBytes compares the bytes that random writes send with what the client
// writes, before anything is collected.
func (s *suite) logRandomBytes() line {
	l := line{
		name: "v2/rand-write-bytes", target: 1.1,
		what: "version 2: bytes sent for the same job on an empty disk, flushed at the end, against the client's",
	}
	l.run = func(r *result) error {
		r.Peer = "the client's"
		var run randomRun
		return s.pairs(r, "MB", func() (float64, error) {
			v, err := s.newLog("dev", 4*randomSize) // so large that hardly a block is written twice
			if err != nil {
				return 0, err
			}
			run, err = s.logRandom(v, s.short(3*time.Second))
			return float64(run.bytes) / 1e6, err
		}, func() (float64, error) { return float64(run.up) / 1e6, nil })
	}
	return l
}

// logSequential compares a sequential job over a whole disk with version 1's.
func (s *suite) logSequential(cloud, rw string) line {
	l := line{
		name: fmt.Sprintf("v2/seq-%s/%s", rw, cloud), target: 1, least: true,
		what: fmt.Sprintf("version 2: sequential %s, nothing cached, flushed at the end, 1 MiB requests, %s, against version 1 with 1 MiB objects", rw, s.cloudName(cloud)),
	}
	l.run = func(r *result) error {
		bytes := s.bulk(cloud, 1<<20)
		v, err := s.filledLog(cloud, bytes, inOrder)
		if err != nil {
			return err
		}
		old, err := s.filled(cloud, 1<<20, bytes)
		if err != nil {
			return err
		}
		var theirs, ours spent
		side := func(v *disk, sum *spent) func() (float64, error) {
			return func() (float64, error) {
				rate, cpu, err := s.whole(v, sequentialJob(v, rw))
				sum.plus(cpu)
				return rate, err
			}
		}
		r.Peer = "version 1"
		err = s.pairs(r, "MB/s", side(old, &theirs), side(v, &ours))
		r.note("CPU s/GB: %s; version 1: %s", ours.perGB(), theirs.perGB())
		return err
	}
	return l
}

// sequentialJob reads or writes a whole disk.
func sequentialJob(v *disk, rw string) fioJob {
	j := fioJob{rw: rw, bs: 1 << 20, depth: 16, size: v.size()}
	if rw == "write" {
		j.extra = []string{"--end_fsync=1"}
	}
	return j
}

// logHop compares a sequential job with the limit whose bytes pass one more
// socket. Written objects have 4 MiB, and a reader fetches 1 MiB at once, so that
// is what the limit does.
func (s *suite) logHop(cloud, rw string) line {
	size := int64(1 << 20)
	if rw == "write" {
		size = 4 << 20
	}
	l := line{
		name: fmt.Sprintf("v2/seq-%s-hop/%s", rw, cloud), target: 0.95, least: true,
		what: fmt.Sprintf("version 2: sequential %s, %s, against the limit with an NBD-like hop, objects of %s", rw, s.cloudName(cloud), sizeName(size)),
	}
	l.run = func(r *result) error {
		bytes := s.bulk(cloud, 1<<20)
		v, err := s.filledLog(cloud, bytes, inOrder)
		if err != nil {
			return err
		}
		plain, err := s.filled(cloud, size, bytes)
		if err != nil {
			return err
		}
		through := plain.cloud.limit.readHop
		if rw == "write" {
			through = plain.cloud.limit.writeHop
		}
		r.Peer = "with a hop"
		return s.pairs(r, "MB/s", func() (float64, error) { return through(plain) }, func() (float64, error) {
			rate, _, err := s.whole(v, sequentialJob(v, rw))
			return rate, err
		})
	}
	return l
}
