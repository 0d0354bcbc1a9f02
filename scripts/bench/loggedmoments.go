// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The lines about snapshots take them with swiftnbd-ctl, of a disk that a running
// nbdkit has.

const (
	momentsSize = 64<<20 + 2<<20 // its own disk, as the snapshots stay
	// momentsLease is the plugin's lease=. The answer to swiftnbd-ctl takes a third
	// of it.
	momentsLease = "lease=5"
)

// momentFigure is one figure of a run, and the line that reports it.
type momentFigure struct {
	name, unit, peer, what string
	target                 float64
	of                     func(momentsRun) (ours, against float64)
}

var momentFigures = []momentFigure{
	{"quiet", "PUTs", "a flush and two", "PUTs of a snapshot of a disk that has one dirty block and no other clients", 1,
		func(m momentsRun) (float64, float64) { return float64(m.quiet.total()), 3 }},
	{"puts", "PUTs", "two", "PUTs besides those of clients' data for each snapshot of a disk whose clients write", 1,
		func(m momentsRun) (float64, float64) { return float64(m.besidesLog()) / float64(m.snapshots), 2 }},
	{"wait", "ms", "the longest flush", "the longest write without a flush while snapshots are made, beside 4 KiB random writes of 10 MB/s and another client that flushes, against the longest flush of as long a time without snapshots", 1,
		func(m momentsRun) (float64, float64) {
			return 1e3 * quantile(m.during.writes, 1), 1e3 * quantile(m.before.flushes, 1)
		}},
}

// waits is how long requests took, seconds, in order of size.
type waits struct{ writes, flushes []float64 }

// momentsRun is what came of snapshots.
type momentsRun struct {
	quiet     counts // PUTs by kind for the first one
	busy      counts // PUTs by kind while the others were made
	snapshots int    // the others
	before    waits  // of clients, without snapshots
	during    waits
}

// besidesLog returns the PUTs that were not of clients' or the collector's data.
func (m momentsRun) besidesLog() int64 { return m.busy.total() - m.busy["log"] }

// check says what the run lacks to be a measurement.
func (m momentsRun) check() error {
	for _, w := range []waits{m.before, m.during} {
		if len(w.writes) == 0 || len(w.flushes) == 0 {
			return errors.New("the clients wrote nothing")
		}
	}
	switch {
	case m.snapshots == 0:
		return errors.New("no snapshot was made")
	case m.quiet["root"] == 0 || m.busy["root"] < int64(m.snapshots):
		return fmt.Errorf("%d snapshots without their roots: PUTs by kind are %s, and %s of the first one", m.snapshots, m.busy.kinds(), m.quiet.kinds())
	case m.quiet["log"] == 0 || m.busy["log"] == 0:
		return errors.New("a snapshot has not flushed what was written before")
	}
	return nil
}

// kinds writes the counts by their names.
func (n counts) kinds() string {
	var parts []string
	for k, v := range n {
		parts = append(parts, fmt.Sprintf("%d %s", v, k))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// moments is the line of one of the figures. All lines share the runs.
func (s *suite) moments(of momentFigure) line {
	l := line{
		name: "v2/snapshot/" + of.name, target: of.target,
		what: fmt.Sprintf("version 2: %s, %s", of.what, s.cloudName("dev")),
	}
	l.run = func(r *result) error {
		r.Peer = of.peer
		for len(s.momentRuns) < s.options.pairs {
			m, err := s.momentsJob()
			if err != nil {
				return err
			}
			s.momentRuns = append(s.momentRuns, m)
		}
		var m momentsRun
		next := 0
		err := s.pairs(r, of.unit, func() (float64, error) {
			m = s.momentRuns[next]
			next++
			_, against := of.of(m)
			return against, nil
		}, func() (float64, error) {
			ours, _ := of.of(m)
			return ours, nil
		})
		if err != nil {
			return err
		}
		r.note("PUTs of the first: %s; of the %d others: %s; flushes without and with snapshots: p50 %s and %s ms, longest %s and %s ms; longest write %s and %s ms",
			m.quiet.kinds(), m.snapshots, m.busy.kinds(),
			figure(1e3*quantile(m.before.flushes, 0.5)), figure(1e3*quantile(m.during.flushes, 0.5)),
			figure(1e3*quantile(m.before.flushes, 1)), figure(1e3*quantile(m.during.flushes, 1)),
			figure(1e3*quantile(m.before.writes, 1)), figure(1e3*quantile(m.during.writes, 1)))
		return nil
	}
	return l
}

// momentsJob does a run.
func (s *suite) momentsJob() (m momentsRun, err error) {
	v, err := s.filledLog("dev", momentsSize, inOrder)
	if err != nil {
		return m, err
	}
	n, err := s.serve(v, momentsLease)
	if err != nil {
		return m, err
	}
	defer n.kill()
	snapshot := func() error {
		s.serial++
		_, err := s.ctl(v, nil, "snapshot", v.container, fmt.Sprintf("s%d", s.serial))
		return err
	}
	begin, err := v.cloud.traffic(v.container)
	if err != nil {
		return m, err
	}
	if err := n.held.write(make([]byte, 4096), 0); err != nil {
		return m, err
	}
	if err := snapshot(); err != nil {
		return m, err
	}
	quiet, err := v.cloud.traffic(v.container)
	if err != nil {
		return m, err
	}
	m.quiet = quiet.minus(begin).Kinds

	other, err := dialNBD(n.socket)
	if err != nil {
		return m, err
	}
	defer other.Close()
	var (
		stop   = make(chan struct{})
		wg     sync.WaitGroup
		errs   [2]error
		made   atomic.Bool // snapshots are being made
		all    [2]waits    // without and with
		during = func() int {
			if made.Load() {
				return 1
			}
			return 0
		}
	)
	wg.Go(func() { // one field of all is this one's
		errs[0] = other.paced(stop, v.size(), 10e6, func(d time.Duration) {
			w := &all[during()]
			w.writes = append(w.writes, d.Seconds())
		})
	})
	wg.Go(func() {
		for errs[1] == nil {
			select {
			case <-stop:
				return
			default:
			}
			var took float64
			took, errs[1] = n.held.writeFlushOnce(v.size())
			w := &all[during()]
			w.flushes = append(w.flushes, took)
		}
	})
	end := func(err error) error {
		close(stop)
		wg.Wait()
		return errors.Join(err, errs[0], errs[1])
	}
	long := s.short(8 * time.Second)
	time.Sleep(long)
	busy, err := v.cloud.traffic(v.container)
	if err != nil {
		return m, end(err)
	}
	made.Store(true)
	for start := time.Now(); m.snapshots == 0 || time.Since(start) < long; m.snapshots++ {
		if err := snapshot(); err != nil {
			return m, end(err)
		}
	}
	if err := end(nil); err != nil {
		return m, err
	}
	last, err := v.cloud.traffic(v.container)
	if err != nil {
		return m, err
	}
	m.busy = last.minus(busy).Kinds
	m.before, m.during = all[0], all[1]
	for _, w := range []waits{m.before, m.during} {
		slices.Sort(w.writes)
		slices.Sort(w.flushes)
	}
	_ = other.Close() // nbdkit ends after its last client has left
	return m, errors.Join(m.check(), n.stop())
}

// paced writes 4 KiB at random places, so many bytes a second, and says how long
// each took.
func (c *nbdConn) paced(stop <-chan struct{}, size int64, rate float64, took func(time.Duration)) error {
	data := make([]byte, 4096)
	start := time.Now()
	for done := 0.0; ; done += float64(len(data)) {
		select {
		case <-stop:
			return nil
		case <-time.After(time.Until(start.Add(time.Duration(done / rate * 1e9)))):
		}
		began := time.Now()
		if err := c.write(data, rand.Int64N(size/4096)*4096); err != nil {
			return err
		}
		took(time.Since(began))
	}
}

// ctl runs swiftnbd-ctl with the disk's credentials, and returns how long it took.
// What it prints goes to out, if that is not nil.
func (s *suite) ctl(v *disk, out io.Writer, args ...string) (time.Duration, error) {
	var others []string
	if args[0] == "clone" {
		others = args[2:]
	}
	secrets, err := s.secrets(v, others...)
	if err != nil {
		return 0, err
	}
	var said strings.Builder
	cmd := exec.CommandContext(s.ctx, filepath.Join(s.build, "swiftnbd-ctl"), append([]string{"--secrets", secrets}, args...)...)
	cmd.Stdout, cmd.Stderr = out, &said
	if out == nil {
		cmd.Stdout = &said
	}
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("swiftnbd-ctl %s: %w\n%s", strings.Join(args, " "), err, said.String())
	}
	return time.Since(start), nil
}

// largeSize is the larger of the sizes that must not make a difference.
const largeSize = 10 << 40

// cloneRequests makes clones of a small disk and of a large one.
func (s *suite) cloneRequests() line {
	l := line{
		name: "v2/clone", target: 0.9,
		what: fmt.Sprintf("version 2: requests to make a clone of a snapshot, the larger number of those for 1 GiB and for 10 TiB, for both containers, %s, against ten", s.cloudName("dev")),
	}
	l.run = func(r *result) error {
		r.Peer = "ten"
		return s.pairs(r, "requests", func() (float64, error) { return 10, nil }, func() (float64, error) {
			var most int64
			for _, size := range []int64{1 << 30, largeSize} {
				took, made, err := s.cloneOf(size)
				if err != nil {
					return 0, err
				}
				r.note("%d GiB: %s s, %v", size>>30, figure(took.Seconds()), made)
				most = max(most, made.total())
			}
			return float64(most), nil
		})
	}
	return l
}

// cloneOf makes a disk with data and a clone of it, and returns what the clone took.
func (s *suite) cloneOf(size int64) (took time.Duration, made counts, err error) {
	v, err := s.writtenLog("dev", size, func(c *nbdConn) error { return c.fill(8 << 20) })
	if err != nil {
		return 0, nil, err
	}
	if _, err := s.ctl(v, nil, "snapshot", v.container, "a"); err != nil {
		return 0, nil, err
	}
	before, err := v.cloud.traffic(v.container)
	if err != nil {
		return 0, nil, err
	}
	w := *v
	s.serial++
	w.container = fmt.Sprintf("%s-clone%d", v.container, s.serial)
	if took, err = s.ctl(v, nil, "clone", v.container+"@a", w.container); err != nil {
		return 0, nil, err
	}
	after, err := v.cloud.traffic(v.container)
	if err != nil {
		return 0, nil, err
	}
	clone, err := v.cloud.traffic(w.container)
	if err != nil {
		return 0, nil, err
	}
	made = after.minus(before).All
	for method, n := range clone.All {
		made[method] += n
	}
	if clone.All["PUT"] == 0 {
		return 0, nil, fmt.Errorf("nothing was written to the clone's container: %v", made)
	}
	return took, made, nil
}

// writtenLog makes a disk of version 2 and has do write to it.
func (s *suite) writtenLog(cloud string, size int64, do func(*nbdConn) error) (*disk, error) {
	v, err := s.newLog(cloud, size)
	if err != nil {
		return nil, err
	}
	n, err := s.serve(v)
	if err != nil {
		return nil, err
	}
	defer n.kill()
	if err := do(n.held); err != nil {
		return nil, err
	}
	return v, n.stop()
}

// growTime grows a disk to a size that is a little larger and to one that is much.
func (s *suite) growTime() line {
	l := line{
		name: "v2/grow", target: 1.1,
		what: fmt.Sprintf("version 2: seconds of swiftnbd-ctl resize from 1 GiB to 10 TiB, %s, against to 2 GiB", s.cloudName("dev")),
	}
	l.run = func(r *result) error {
		r.Peer = "to 2 GiB"
		side := func(size int64) func() (float64, error) {
			return func() (float64, error) {
				took, made, err := s.growOf(size)
				r.note("to %d GiB: %v", size>>30, made)
				return took.Seconds(), err
			}
		}
		return s.pairs(r, "s", side(2<<30), side(largeSize))
	}
	return l
}

// growOf makes a disk of 1 GiB with data larger, and returns what that took.
func (s *suite) growOf(size int64) (took time.Duration, made counts, err error) {
	v, err := s.writtenLog("dev", 1<<30, func(c *nbdConn) error { return c.fill(8 << 20) })
	if err != nil {
		return 0, nil, err
	}
	before, err := v.cloud.traffic(v.container)
	if err != nil {
		return 0, nil, err
	}
	if took, err = s.ctl(v, nil, "resize", v.container, fmt.Sprint(size)); err != nil {
		return 0, nil, err
	}
	after, err := v.cloud.traffic(v.container)
	if err != nil {
		return 0, nil, err
	}
	n, err := s.serve(v)
	if err != nil {
		return 0, nil, err
	}
	defer n.kill()
	if n.held.size != size {
		return 0, nil, fmt.Errorf("the disk has %d bytes after it was to have %d", n.held.size, size)
	}
	return took, after.minus(before).All, n.stop()
}
