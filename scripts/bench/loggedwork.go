// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

//go:embed ideal/ideal.c
var idealSource []byte

// collectSize is the disk of the lines about the collector: it is written over
// a few times within seconds.
const collectSize = 192 << 20

// logCollectLatency has one client write and flush beside another that writes
// all over the disk, with the collector and without.
func (s *suite) logCollectLatency() line {
	l := line{
		name: "v2/collect-latency", target: 2,
		what: fmt.Sprintf("version 2: p99 of 4 KiB write and flush beside random overwrites of 10 MB/s, gc=70, %s, against gc=0", s.cloudName("dev")),
	}
	l.run = func(r *result) error {
		r.Peer = "gc=0"
		side := func(gc int) func() (float64, error) {
			return func() (float64, error) {
				took, err := s.collectLatency(gc)
				if err != nil {
					return 0, err
				}
				slices.Sort(took)
				r.note("gc=%d: p50 %s ms, longest %s ms of %d", gc, figure(1e3*quantile(took, 0.5)), figure(1e3*quantile(took, 1)), len(took))
				return 1e3 * quantile(took, 0.99), nil
			}
		}
		return s.pairs(r, "ms", side(0), side(70))
	}
	return l
}

// collectLatency returns how long each write with its flush took, seconds.
func (s *suite) collectLatency(gc int) (took []float64, err error) {
	v, err := s.filledLog("dev", collectSize, inOrder)
	if err != nil {
		return nil, err
	}
	n, err := s.serve(v, fmt.Sprintf("gc=%d", gc))
	if err != nil {
		return nil, err
	}
	defer n.kill()
	// So that there is something to collect from the beginning on.
	if _, err := n.held.writeAt(shuffled(v.size())[:v.size()/4096*2/3], 4096, 16); err != nil {
		return nil, err
	}
	other, err := dialNBD(n.socket)
	if err != nil {
		return nil, err
	}
	defer other.Close()
	var (
		stop = make(chan struct{})
		wg   sync.WaitGroup
		werr error
	)
	wg.Go(func() { werr = other.paced(stop, v.size(), 10e6, func(time.Duration) {}) })
	took, err = n.held.writeFlush(time.Now().Add(s.short(8*time.Second)), v.size())
	close(stop)
	wg.Wait()
	_ = other.Close() // nbdkit ends after its last client has left
	if err := errors.Join(err, werr); err != nil {
		return nil, err
	}
	return took, n.stop()
}

// logCollectBytes overwrites a disk at random until it is in its steady state,
// and compares what is sent with what has to be sent.
func (s *suite) logCollectBytes() line {
	// Uniform random writes, victims with the least use first: at 70 % of use
	// each byte written moves 0.9 bytes more.
	const formula = 1.9
	l := line{
		name: "v2/collect-bytes", target: 1.1,
		what: fmt.Sprintf("version 2: bytes sent for each byte of random overwrites in the steady state, gc=70, %s, against the %.1f of uniform writes at 70 %% use", s.cloudName("dev"), formula),
	}
	l.run = func(r *result) error {
		r.Peer = "the formula"
		return s.pairs(r, "bytes/byte", func() (float64, error) { return formula, nil }, func() (float64, error) {
			v, err := s.filledLog("dev", collectSize, inOrder)
			if err != nil {
				return 0, err
			}
			n, err := s.serve(v, "gc=70")
			if err != nil {
				return 0, err
			}
			defer n.kill()
			write := func(times float64) error {
				blocks := int(times * collectSize / 4096)
				offs := make([]int64, blocks)
				for i := range offs {
					offs[i] = rand.Int64N(v.size()/4096) * 4096
				}
				if _, err := n.held.writeAt(offs, 4096, 16); err != nil {
					return err
				}
				return n.held.flush()
			}
			if err := write(1.5); err != nil {
				return 0, err
			}
			before, err := v.cloud.traffic(v.container)
			if err != nil {
				return 0, err
			}
			if err := write(2); err != nil {
				return 0, err
			}
			after, err := v.cloud.traffic(v.container)
			if err != nil {
				return 0, err
			}
			return float64(after.Sent-before.Sent) / (2 * collectSize), n.stop()
		})
	}
	return l
}

// logTree compares the tree job with version 1's.
func (s *suite) logTree(of string) line {
	l := line{
		name: "v2/untar/" + of, target: 1,
		what: fmt.Sprintf("version 2: mkfs.ext4, mount, untar a source tree, sync, umount, end of nbdkit, %s, %s, against version 1 with 64K objects", of, s.cloudName("dev")),
	}
	l.run = func(r *result) error {
		r.Peer = "version 1"
		side := func(make func() (*disk, error), whose string) func() (float64, error) {
			return func() (float64, error) {
				v, err := make()
				if err != nil {
					return 0, err
				}
				t, err := s.treeOn(v, 64<<10)
				if err != nil {
					return 0, err
				}
				sent, err := v.cloud.traffic(v.container)
				if err != nil {
					return 0, err
				}
				r.note("%s: %.1f s, %d MB, %v", whose, t.took.Seconds(), sent.Sent/1_000_000, t.requests)
				if of == "bytes" {
					return float64(sent.Sent) / 1e6, nil
				}
				return t.took.Seconds(), nil
			}
		}
		unit := "s"
		if of == "bytes" {
			unit = "MB"
		}
		return s.pairs(r, unit,
			side(func() (*disk, error) { return s.empty("dev", 64<<10, treeSize) }, "version 1"),
			side(func() (*disk, error) { return s.newLog("dev", treeSize) }, "version 2"))
	}
	return l
}

// sqliteJob commits rows one by one, for a time, and says how many.
const sqliteJob = `
import sqlite3, sys, time
path, mode, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
db = sqlite3.connect(path, isolation_level=None)
db.execute("PRAGMA journal_mode=" + mode)
db.execute("PRAGMA synchronous=FULL")
db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
print("begin", flush=True)
sys.stdin.readline()
n, start = 0, time.monotonic()
while time.monotonic() - start < seconds:
    db.execute("INSERT INTO t (v) VALUES (randomblob(100))")
    n += 1
print(n, time.monotonic() - start, flush=True)
sys.stdin.readline()
`

// sqlite has a database on ext4 commit rows, against what its flushes allow when
// each takes one PUT.
func (s *suite) sqlite(mode string) line {
	l := line{
		name: "v2/sqlite/" + mode, target: 0.95, least: true,
		what: fmt.Sprintf("version 2: commits a second of sqlite on ext4, journal_mode=%s, synchronous=FULL, %s, against one PUT of 8 KiB for each of its flushes", mode, s.cloudName("dev")),
	}
	l.run = func(r *result) error {
		return s.commitRate(r, "dev", "commit", func(ideal time.Duration) (databaseRun, error) {
			return s.onExt4("dev", treeSize, ideal, func(run *databaseRun, v *disk, log, mnt string) error {
				return s.commits(run, v, log, filepath.Join(mnt, "db"), mode, s.short(4*time.Second))
			})
		})
	}
	return l
}

// commitRate compares the rate of a database's commits with what its flushes allow
// when each takes one PUT. It notes what of that the same job has on a disk in memory
// whose flushes take the time of a PUT: the rest is the database's, the file system's
// and NBD's. job gets that time, or 0 for a disk of ours.
func (s *suite) commitRate(r *result, cloud, what string, job func(ideal time.Duration) (databaseRun, error)) error {
	r.Peer = "its flushes' PUTs"
	var (
		run    databaseRun
		ideals []float64
	)
	err := s.pairs(r, what+"s/s", func() (float64, error) {
		put, err := s.putTime(cloud, 8<<10, s.short(2*time.Second))
		if err != nil {
			return 0, err
		}
		most, err := job(time.Duration(put * float64(time.Second)))
		if err != nil {
			return 0, err
		}
		ideals = append(ideals, put*float64(most.flushes)/most.seconds)
		if run, err = job(0); err != nil {
			return 0, err
		}
		each := float64(run.flushes) / float64(run.commits)
		r.note("%.2f flushes a %s", each, what)
		if run.sent > 0 {
			r.note("%.2f bytes sent a byte written", float64(run.sent)/float64(run.written))
		}
		return 1 / (put * each), nil
	}, func() (float64, error) { return float64(run.commits) / run.seconds, nil })
	if err != nil {
		return err
	}
	most := median(ideals)
	r.note("a disk in memory whose flush takes the time of a PUT has %s, of which ours is %s", figure(most), figure(r.Ours/r.Against/most))
	return nil
}

// databaseRun is what came of a run of a database.
type databaseRun struct {
	commits       int
	seconds       float64
	flushes       int64
	written, sent int64 // bytes: to the disk, and to the embedded Swift
}

// onExt4 makes a disk of version 2 with ext4 in it, or if ideal is not 0 a disk in
// memory whose flush takes that long, and has do work below its mount point. v is nil
// for the latter. log is the log filter's file.
func (s *suite) onExt4(cloud string, size int64, ideal time.Duration, do func(run *databaseRun, v *disk, log, mnt string) error) (run databaseRun, err error) {
	if os.Geteuid() != 0 {
		return run, errors.New("mounting takes root")
	}
	var (
		log = s.path("log")
		v   *disk
		n   *server
	)
	if ideal > 0 {
		n, err = s.ideal(size, ideal, "--filter=log", "logfile="+log)
	} else if v, err = s.newLog(cloud, size); err == nil {
		n, err = s.serveArgs(v, true, []string{"--filter=log"}, "logfile="+log)
	}
	if err != nil {
		return run, err
	}
	defer n.kill()
	dir, mnt := s.path("fuse"), s.path("mnt")
	if err := errors.Join(os.Mkdir(dir, 0o777), os.Mkdir(mnt, 0o777)); err != nil {
		return run, err
	}
	file := filepath.Join(dir, "disk")
	unmount, err := s.fuse(dir, file, "nbdfuse", file, n.uri)
	if err != nil {
		return run, err
	}
	if err := s.command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", file); err != nil {
		return run, err
	}
	if err := s.command("mount", "-o", "loop", file, mnt); err != nil {
		return run, err
	}
	err = do(&run, v, log, mnt)
	if e := s.command("umount", mnt); err == nil {
		err = e
	}
	if e := unmount(); err == nil {
		err = e
	}
	if err != nil {
		return run, err
	}
	return run, n.stop()
}

// ideal starts nbdkit on a disk in memory whose flush takes the time of a PUT.
func (s *suite) ideal(size int64, put time.Duration, filter, param string) (*server, error) {
	source := s.path("ideal.c")
	if err := os.WriteFile(source, idealSource, 0o666); err != nil {
		return nil, err
	}
	return s.nbdkit(filter, "cc", source, fmt.Sprintf("size=%d", size), fmt.Sprintf("put=%d", put.Nanoseconds()), param)
}

// passed does a database's work, and counts what passes while it commits.
func (s *suite) passed(run *databaseRun, v *disk, log string, do func() error) error {
	flushes, written, err := asked(log)
	if err != nil {
		return err
	}
	sent := func() (int64, error) {
		if v == nil {
			return 0, nil
		}
		t, err := v.cloud.traffic(v.container)
		if err != nil {
			return 0, err
		}
		return t.Sent, nil
	}
	before, err := sent()
	if err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	if run.flushes, run.written, err = asked(log); err != nil {
		return err
	}
	run.flushes, run.written = run.flushes-flushes, run.written-written
	after, err := sent()
	if err != nil {
		return err
	}
	run.sent = after - before
	return run.check()
}

// check says what the run lacks to be a measurement.
func (run databaseRun) check() error {
	if run.commits == 0 || run.seconds <= 0 || run.flushes == 0 || run.written == 0 {
		return fmt.Errorf("the database wrote nothing: %d commits, %d flushes, %d bytes", run.commits, run.flushes, run.written)
	}
	return nil
}

// commits runs sqlite's job.
func (s *suite) commits(run *databaseRun, v *disk, log, path, mode string, d time.Duration) error {
	cmd := exec.CommandContext(s.ctx, "python3", "-c", sqliteJob, path, mode, fmt.Sprint(d.Seconds()))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	said := bufio.NewReader(out)
	if _, err = said.ReadString('\n'); err == nil {
		err = s.passed(run, v, log, func() error {
			if _, err := in.Write([]byte("\n")); err != nil {
				return err
			}
			text, err := said.ReadString('\n')
			if err != nil {
				return err
			}
			if _, err := fmt.Sscan(text, &run.commits, &run.seconds); err != nil {
				return fmt.Errorf("the database said %q: %w", text, err)
			}
			return nil
		})
	}
	in.Close()
	if e := cmd.Wait(); err == nil {
		err = e
	}
	return err
}

// asked counts in the log filter's file what a client has asked for so far: its
// flushes, writes with FUA among them, and the bytes that it has written.
func asked(log string) (flushes, written int64, err error) {
	f, err := os.Open(log)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if strings.Contains(lines.Text(), " Flush id=") {
			flushes++
			continue
		}
		_, rest, ok := strings.Cut(lines.Text(), " Write id=")
		if !ok {
			continue
		}
		var id, off, count, fua int64
		if _, err := fmt.Sscanf(rest, "%d offset=0x%x count=0x%x fua=%d", &id, &off, &count, &fua); err != nil {
			return 0, 0, fmt.Errorf("the log filter wrote %q: %w", lines.Text(), err)
		}
		flushes, written = flushes+fua, written+count
	}
	return flushes, written, lines.Err()
}
