// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The lines about readers have one client write 4 KiB and flush, again and again,
// with eight readers of the disk beside it and without. Eight readers of another
// disk are measured, too: they take as much of the machine, and nothing of the
// disk.

const (
	readersCount = 8
	readersSize  = 64 << 20
	// readersPause is between two reads of a reader: all of them together shall not
	// take the machine from the writer.
	readersPause = 50 * time.Millisecond
)

// besideFigure is one figure of a run, and the line that reports it.
type besideFigure struct {
	name, unit, what string
	target           float64
	least            bool
	of               func(besideRun) float64
}

var besideFigures = []besideFigure{
	{"rate", "IOPS", "4 KiB random writes with a flush a second, queue depth 1", 0.95, true, func(b besideRun) float64 { return float64(len(b.took)) / b.seconds }},
	{"p99", "ms", "p99 of 4 KiB random write and flush, queue depth 1", 1.1, false, func(b besideRun) float64 { return 1e3 * quantile(b.took, 0.99) }},
	{"requests", "requests/flush", "requests for objects by the writer's nbdkit for each 4 KiB write and flush", 1.02, false, func(b besideRun) float64 { return float64(b.made.total()) / float64(len(b.took)) }},
}

// besideRun is what came of a writer.
type besideRun struct {
	took    []float64 // seconds of each write with its flush, in order of size
	seconds float64
	made    counts // requests of the writer's nbdkit for objects
	reads   int64  // of all readers
	theirs  counts // requests of their nbdkits for objects
}

// besideRuns are those that are compared.
type besideRuns struct{ alone, other, same besideRun }

// check says what a run lacks to be a measurement, with so many readers.
func (b besideRun) check(readers int) error {
	switch flushes := int64(len(b.took)); {
	case flushes == 0 || b.seconds <= 0:
		return errors.New("nothing was written")
	case b.made["PUT"] < flushes:
		return fmt.Errorf("the flush lied: %d PUTs for %d flushes", b.made["PUT"], flushes)
	case readers > 0 && (b.reads < int64(readers) || b.theirs["GET"] < int64(readers)):
		return fmt.Errorf("%d readers have read %d times, with %d GETs", readers, b.reads, b.theirs["GET"])
	case readers > 0 && b.theirs.total() != b.theirs["GET"]+b.theirs["HEAD"]:
		return fmt.Errorf("readers have changed something: %v", b.theirs)
	}
	return nil
}

// beside is the line of one of the figures. All lines share the runs.
func (s *suite) beside(of besideFigure) line {
	l := line{
		name: "v2/readers/" + of.name, target: of.target, least: of.least,
		what: fmt.Sprintf("version 2: %s, beside %d readers, half of them with follow=1, that read 4 KiB at random each %v, gc=0, %s, against without readers",
			of.what, readersCount, readersPause, s.cloudName("dev")),
	}
	l.run = func(r *result) error {
		r.Peer = "alone"
		for len(s.besides) < s.options.pairs {
			runs, err := s.besideJob()
			if err != nil {
				return err
			}
			s.besides = append(s.besides, runs)
		}
		var next int
		var other []float64
		err := s.pairs(r, of.unit, func() (float64, error) { return of.of(s.besides[next].alone), nil }, func() (float64, error) {
			runs := s.besides[next]
			next++
			other = append(other, of.of(runs.same)/of.of(runs.other))
			return of.of(runs.same), nil
		})
		if err != nil {
			return err
		}
		last := s.besides[next-1]
		r.note("against readers of another disk: %.2f; the readers read %d times, %v; the writer's requests in %d flushes: %v, alone %v in %d",
			median(other), last.same.reads, last.same.theirs, len(last.same.took), last.same.made, last.alone.made, len(last.alone.took))
		return nil
	}
	return l
}

// besideJob does the three runs.
func (s *suite) besideJob() (runs besideRuns, err error) {
	v, err := s.filledLog("dev", readersSize, inOrder)
	if err != nil {
		return runs, err
	}
	other, err := s.filledLog("dev", readersSize+1<<20, inOrder)
	if err != nil {
		return runs, err
	}
	if runs.alone, err = s.besideOf(v, nil); err != nil {
		return runs, err
	}
	if runs.other, err = s.besideOf(v, other); err != nil {
		return runs, err
	}
	runs.same, err = s.besideOf(v, v)
	return runs, err
}

// besideOf writes to v, with readers of another disk, or of the same. nil is none.
func (s *suite) besideOf(v, read *disk) (run besideRun, err error) {
	n, err := s.serve(v, "gc=0")
	if err != nil {
		return run, err
	}
	defer n.kill()
	count := 0
	var readers []*server
	if read != nil {
		count = readersCount
		c := *read.cloud
		c.authURL = c.beside + authPath
		there := *read
		there.cloud = &c
		for i := range count {
			k, err := s.serveArgs(&there, false, []string{"-r"}, fmt.Sprintf("follow=%d", i%2))
			if err != nil {
				return run, err
			}
			k.unlock = nil // it holds nothing
			defer k.kill()
			readers = append(readers, k)
		}
	}
	before, err := v.cloud.traffic(v.container)
	if err != nil {
		return run, err
	}
	var theirs *traffic
	if read != nil {
		if theirs, err = read.cloud.traffic(besideMark + read.container); err != nil {
			return run, err
		}
	}
	var (
		stop  = make(chan struct{})
		wg    sync.WaitGroup
		reads atomic.Int64
		errs  = make([]error, len(readers))
	)
	for i, k := range readers {
		wg.Go(func() { errs[i] = k.held.readSlowly(stop, readersPause, &reads) })
	}
	start := time.Now()
	run.took, err = n.held.writeFlush(start.Add(s.short(8*time.Second)), v.size())
	run.seconds = time.Since(start).Seconds()
	close(stop)
	wg.Wait()
	if err := errors.Join(append(errs, err)...); err != nil {
		return run, err
	}
	after, err := v.cloud.traffic(v.container)
	if err != nil {
		return run, err
	}
	run.made, run.reads = after.Requests.minus(before.Requests), reads.Load()
	if read != nil {
		now, err := read.cloud.traffic(besideMark + read.container)
		if err != nil {
			return run, err
		}
		run.theirs = now.Requests.minus(theirs.Requests)
	}
	slices.Sort(run.took)
	for _, k := range readers {
		if err := k.stop(); err != nil {
			return run, err
		}
	}
	return run, errors.Join(run.check(count), n.stop())
}

// writeFlush writes 4 KiB at random and flushes, again and again until end, and
// returns how long each took, seconds.
func (c *nbdConn) writeFlush(end time.Time, size int64) (took []float64, err error) {
	for time.Now().Before(end) {
		t, err := c.writeFlushOnce(size)
		if err != nil {
			return nil, err
		}
		took = append(took, t)
	}
	return took, nil
}

// writeFlushOnce writes 4 KiB at random, flushes, and returns how long that took,
// seconds.
func (c *nbdConn) writeFlushOnce(size int64) (float64, error) {
	start := time.Now()
	if err := c.write(make([]byte, 4096), rand.Int64N(size/4096)*4096); err != nil {
		return 0, err
	}
	err := c.flush()
	return time.Since(start).Seconds(), err
}

// write writes p at off, and waits for the answer.
func (c *nbdConn) write(p []byte, off int64) error {
	if err := c.request(nbdWrite, 0, off, len(p), p); err != nil {
		return err
	}
	_, err := c.reply()
	return err
}

// readSlowly reads 4 KiB at random places, with a pause after each.
func (c *nbdConn) readSlowly(stop <-chan struct{}, pause time.Duration, reads *atomic.Int64) error {
	for {
		if _, err := c.readAt([]int64{rand.Int64N(c.size/4096) * 4096}, 4096, 1); err != nil {
			return err
		}
		reads.Add(1)
		select {
		case <-stop:
			return nil
		case <-time.After(pause):
		}
	}
}
