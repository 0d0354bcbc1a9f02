// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"swiftnbd/internal/device"
)

const (
	pinnedSnapshots = 1000
	pinnedSize      = 256 << 20
	pinnedGC        = 70 // percent
	// pinnedQuiet is for how long the collector has written nothing when it has
	// nothing to do: it looks once a second.
	pinnedQuiet = 4 * time.Second
	// pinnedTime bounds the collector's work.
	pinnedTime = 5 * time.Minute
)

// collectPinned has the collector bring a disk with garbage under gc=, with
// snapshots and without. The device is in this process, without nbdkit, and Swift
// answers at once: so the CPU time is the collector's.
func (s *suite) collectPinned() line {
	l := line{
		name: "v2/collect-snapshots", target: 0.9, least: true,
		what: fmt.Sprintf("version 2: bytes that the collector writes for each second of CPU until it has nothing to do, gc=%d, with the root that says so, with %d snapshots, %s, against without", pinnedGC, pinnedSnapshots, s.cloudName("fast")),
	}
	l.run = func(r *result) error {
		r.Peer = "without"
		side := func(snapshots int) func() (float64, error) {
			return func() (float64, error) {
				c, err := s.collectPinnedRun(snapshots)
				if err != nil {
					return 0, err
				}
				r.note("%d snapshots: %d MB collected, %s s of CPU, %s s; %s MB of runs and roots; the first 100 flushes or snapshots took %s s, the last 100 %s s",
					snapshots, c.bytes/1_000_000, figure(c.cpu.Seconds()), figure(c.took.Seconds()), figure(float64(c.saved)/1e6),
					figure(c.first.Seconds()), figure(c.last.Seconds()))
				return float64(c.bytes) / 1e6 / c.cpu.Seconds(), nil
			}
		}
		return s.pairs(r, "MB/s", side(0), side(pinnedSnapshots))
	}
	return l
}

// pinnedRun is what the collector did.
type pinnedRun struct {
	bytes       int64         // that it has written
	saved       int64         // bytes of runs and roots
	cpu         time.Duration // until the disk was closed
	took        time.Duration // to the collector's last write
	first, last time.Duration // how long a hundred snapshots took
}

// check says what the run lacks to be a measurement of a disk with so many live
// bytes, of which about half were scattered.
func (c pinnedRun) check(live int64) error {
	switch {
	case c.bytes == 0 || c.cpu <= 0:
		return errors.New("nothing was collected")
	case c.bytes < live/4:
		return fmt.Errorf("the collector has written %d bytes only, of %d that are live", c.bytes, live)
	}
	return nil
}

func (s *suite) collectPinnedRun(snapshots int) (c pinnedRun, err error) {
	v, err := s.newLog("fast", s.scaled(pinnedSize, 1<<20))
	if err != nil {
		return c, err
	}
	if c.first, c.last, err = s.fillPinned(v, snapshots); err != nil {
		return c, err
	}
	d, closeClient, err := s.openDevice(v, func(o *device.Options) { o.GC = pinnedGC })
	if err != nil {
		return c, err
	}
	defer closeClient()
	start, cpu := time.Now(), selfCPU()
	before := d.Stats()
	for last := before.ByCollector; ; {
		now := d.Stats().ByCollector
		if now > last {
			last, c.took = now, time.Since(start)
		}
		// Before its first write it looks through the container.
		if c.took > 0 && time.Since(start) > c.took+pinnedQuiet {
			break
		}
		if time.Since(start) > pinnedTime {
			d.Abandon()
			return c, fmt.Errorf("the collector does not come to an end in %v", pinnedTime)
		}
		select {
		case <-s.ctx.Done():
			d.Abandon()
			return c, s.ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	// The root that says what is where now, and which objects snapshots need.
	if err := d.Close(); err != nil {
		return c, err
	}
	c.cpu = selfCPU() - cpu
	end := d.Stats()
	c.bytes, c.saved = end.ByCollector-before.ByCollector, end.ByMap-before.ByMap
	return c, c.check(end.Live)
}

// fillPinned fills a disk, writes to it between moments that are kept, or only
// flushed, and overwrites half of it at last. Nothing is collected.
func (s *suite) fillPinned(v *disk, snapshots int) (first, last time.Duration, err error) {
	d, closeClient, err := s.openDevice(v, func(o *device.Options) { o.GC = -1 })
	if err != nil {
		return 0, 0, err
	}
	defer closeClient()
	defer d.Abandon() // does nothing after Close
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	write := func(n, off int64) error {
		_, err := d.WriteAt(data[:n], off)
		return err
	}
	for off := int64(0); off < v.size(); off += int64(len(data)) {
		if err := write(int64(len(data)), off); err != nil {
			return 0, 0, err
		}
	}
	blocks := v.size() / 4096
	for i := range pinnedSnapshots {
		start := time.Now()
		for range 16 {
			if err := write(4096, rand.Int64N(blocks)*4096); err != nil {
				return 0, 0, err
			}
		}
		if i < snapshots {
			err = d.Snapshot(s.ctx, fmt.Sprintf("s%04d", i))
		} else {
			err = d.Sync()
		}
		if err != nil {
			return 0, 0, err
		}
		switch took := time.Since(start); {
		case i < 100:
			first += took
		case i >= pinnedSnapshots-100:
			last += took
		}
	}
	for range blocks * 7 / 10 { // half of the blocks, about
		if err := write(4096, rand.Int64N(blocks)*4096); err != nil {
			return 0, 0, err
		}
	}
	return first, last, d.Close()
}
