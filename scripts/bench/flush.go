// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// flushTime is what the plugin's flush-time is in the lines here, seconds: its
// default.
const flushTime = 2.0

// busyKey is one measurement that two lines report.
type busyKey struct {
	cloud string
	size  int64
}

// busyRun is what came of one run: seconds.
type busyRun struct {
	flushes, writes []float64
	seconds         float64
}

// flushBusy writes 4 KiB blocks at random all over a disk, 16 at once and
// without end, and flushes on a connection of its own every now and then. It
// reports the longest flush.
func (s *suite) flushBusy(cloud string, size int64) line {
	l := line{
		name: fmt.Sprintf("flush-busy/%s/%s", cloud, sizeName(size)), target: 1.25,
		what: fmt.Sprintf("the longest flush under 4 KiB random writes, queue depth 16, %s objects, %s, against flush-time=%g",
			sizeName(size), s.cloudName(cloud), flushTime),
	}
	l.run = func(r *result) error {
		return s.busy(r, cloud, size, func(b busyRun) []float64 { return b.flushes })
	}
	return l
}

// writeBusy is the same job as flushBusy. It reports the longest write.
func (s *suite) writeBusy(cloud string, size int64) line {
	l := line{
		name: fmt.Sprintf("write-busy/%s/%s", cloud, sizeName(size)), target: 1,
		what: fmt.Sprintf("the longest write of the same job, %s objects, %s, against flush-time=%g",
			sizeName(size), s.cloudName(cloud), flushTime),
	}
	l.run = func(r *result) error {
		return s.busy(r, cloud, size, func(b busyRun) []float64 { return b.writes })
	}
	return l
}

// busy reports the longest of what of returns.
func (s *suite) busy(r *result, cloud string, size int64, of func(busyRun) []float64) error {
	key := busyKey{cloud, size}
	runs := s.busyRuns[key]
	for len(runs) < s.options.pairs {
		b, err := s.busyJob(cloud, size)
		if err != nil {
			return err
		}
		runs = append(runs, b)
	}
	if s.busyRuns == nil {
		s.busyRuns = make(map[busyKey][]busyRun)
	}
	s.busyRuns[key] = runs
	r.Peer = "flush-time"
	var all []float64
	var writes, seconds float64
	for _, b := range runs {
		all = append(all, of(b)...)
		writes += float64(len(b.writes))
		seconds += b.seconds
	}
	next := 0
	err := s.pairs(r, "s", func() (float64, error) { return flushTime, nil }, func() (float64, error) {
		b := runs[next]
		next++
		return slices.Max(of(b)), nil
	})
	slices.Sort(all)
	r.note("of %d: p50 %s s, p99 %s s, longest %s s; %s IOPS", len(all),
		figure(quantile(all, 0.5)), figure(quantile(all, 0.99)), figure(quantile(all, 1)), figure(writes/seconds))
	return err
}

// quantile returns the value below which the part q of the sorted v lies.
func quantile(v []float64, q float64) float64 {
	return v[min(len(v)-1, int(q*float64(len(v))))]
}

// busyJob does the job once.
func (s *suite) busyJob(cloud string, size int64) (b busyRun, err error) {
	// Many more chunks than go up in the time that a flush may take.
	area := int64(1 << 30)
	switch {
	case size <= 64<<10:
		area = 256 << 20
	case size > 1<<20 && cloud == "dev":
		area = 2 << 30
	}
	v, err := s.filled(cloud, size, area)
	if err != nil {
		return b, err
	}
	n, err := s.serve(v)
	if err != nil {
		return b, err
	}
	defer n.kill() // what is dirty is nothing that anybody wants
	flusher, err := dialNBD(n.socket)
	if err != nil {
		return b, err
	}
	defer flusher.Close()
	var (
		full = s.short(16 * time.Second)
		stop = make(chan struct{})
		wg   sync.WaitGroup
		werr error
	)
	begin := time.Now()
	wg.Go(func() { b.writes, werr = n.held.scatter(stop, v.size(), 4096, 16) })
	for err == nil && time.Since(begin) < full {
		// Not in step with anything.
		time.Sleep(time.Second/2 + time.Duration(rand.Int64N(int64(2*time.Second))))
		start := time.Now()
		err = flusher.flush()
		b.flushes = append(b.flushes, time.Since(start).Seconds())
		s.logf("%s %s: a flush took %.2f s", cloud, sizeName(size), time.Since(start).Seconds())
	}
	close(stop)
	wg.Wait()
	b.seconds = time.Since(begin).Seconds()
	if err = errors.Join(err, werr); err == nil && len(b.writes) == 0 {
		err = errors.New("nothing was written")
	}
	if said := n.said.String(); err == nil && strings.Contains(said, "write back") {
		err = fmt.Errorf("uploads failed: %s", said)
	}
	return b, err
}

// scatter writes n random bytes at random places of a disk of size bytes,
// depth of them at once, until stop is closed. It returns how long each took,
// seconds.
func (c *nbdConn) scatter(stop <-chan struct{}, size int64, n, depth int) (took []float64, err error) {
	var (
		mu    sync.Mutex // guards begun
		begun = make(map[uint64]time.Time)
		// A place for each request that is not answered yet, beside the one
		// whose answer is waited for.
		slots = make(chan struct{}, depth-1)
		serr  error // valid once slots is closed
		r     = rand.New(rand.NewPCG(rand.Uint64(), 1))
		data  = make([]byte, n)
	)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	go func() {
		defer close(slots)
		for i := uint64(0); ; i++ {
			select {
			case <-stop:
				return
			case slots <- struct{}{}:
			}
			data[0], data[1], data[2] = byte(i)|1, byte(i>>8), byte(i>>16)
			mu.Lock()
			begun[i] = time.Now()
			mu.Unlock()
			if serr = c.request(nbdWrite, i, r.Int64N(size/int64(n))*int64(n), n, data); serr != nil {
				c.Close() // ends the replies
				return
			}
		}
	}()
	for range slots {
		if err != nil {
			continue // the sender comes to its end
		}
		var cookie uint64
		if cookie, err = c.reply(); err != nil {
			c.Close()
			continue
		}
		mu.Lock()
		took = append(took, time.Since(begun[cookie]).Seconds())
		delete(begun, cookie)
		mu.Unlock()
	}
	return took, errors.Join(err, serr)
}
