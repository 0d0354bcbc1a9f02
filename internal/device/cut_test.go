// SPDX-License-Identifier: MIT

package device_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/device"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/volume"
)

// TestCut cuts a scripted run off at each of its store operations, once before
// and once after the operation took effect, and holds what is left against the
// oracle. Then the volume is opened again, and must be what Swift holds; it is
// written and closed, and must be that when it is opened with the map of that
// session.
func TestCut(t *testing.T) {
	t.Parallel()
	for _, blank := range []bool{false, true} {
		for _, through := range []bool{false, true} {
			t.Run(fmt.Sprintf("blank=%t,through=%t", blank, through), func(t *testing.T) {
				t.Parallel()
				whole := false
				for cut := int64(1); !whole; cut++ {
					for _, effect := range []bool{false, true} {
						s := &script{t: t, world: newWorld(t, inMemory(t), 4096, 40, blank), left: cut, effect: effect, blank: blank, seen: make(map[string]bool)}
						s.oracle, s.opts.WriteThrough, s.opts.Connections = newOracle(s.geo.Size()), through, 1
						whole = s.run() == nil
						if err := s.oracle.crashed(s.raw()); err != nil {
							t.Fatalf("cut at operation %d, effect=%t, in %q: %v", cut, effect, s.at, err)
						}
						s.at = fmt.Sprintf("cut at operation %d, effect=%t, in %q, and opened again", cut, effect, s.at)
						s.again()
						if whole {
							s.covered()
						}
					}
				}
			})
		}
	}
}

// again opens the volume after the cut, twice, and verifies every byte.
func (s *script) again() {
	s.t.Helper()
	s.crashAt = 0
	rng := rand.New(rand.NewPCG(9, uint64(s.left)))
	for n := range 2 {
		s.opts.Holder = fmt.Sprintf("again:%d", n+1)
		s.mustOpen()
		if err := s.do(rng, "read 0 163840", "extents 0 163840", "write 5000 100", "zero 20480 8192", "write 45056 4096", "flush", "read 0 163840"); err != nil {
			s.t.Fatalf("%s: %v", s.at, err)
		}
		if err := s.device.Close(); err != nil {
			s.t.Fatalf("%s: close: %v", s.at, err)
		}
		if got, want := s.raw(), s.oracle.read(0, s.geo.Size()); !bytes.Equal(got, want) {
			s.t.Fatalf("%s: Swift holds something else: %s", s.at, firstDifference(got, want))
		}
	}
}

// covered fails the test unless the script did all that a volume ever does.
// Since it was cut at each of its operations, it was cut at each of these.
func (s *script) covered() {
	s.t.Helper()
	for _, op := range []string{
		"METADATA", "SET METADATA", // the lock is taken, read back, given back
		"GET disk.part/", "PUT disk.part/", "DELETE disk.part/",
		"HEAD disk.part/", "LIST", // a look for holes
		"PUT swiftnbd/map/ index", "PUT swiftnbd/map/ shard", "LIST", // the map is saved
		"HEAD swiftnbd/map/ index", "GET swiftnbd/map/ index", "GET swiftnbd/map/ shard", // and loaded
		"DELETE swiftnbd/map/ index", "DELETE swiftnbd/map/ shard", // the one before goes
	} {
		// What our own setup has made is known to be blank.
		if !s.seen[op] && !(s.blank && strings.HasPrefix(op, "HEAD disk.part/")) {
			s.t.Errorf("the script makes no %s", op)
		}
	}
}

// note records what the session does to the store.
func (s *script) note(op faulty.Op) faulty.Fault {
	what := string(op.Kind)
	switch dir, name := path.Split(op.Name); {
	case strings.HasPrefix(dir, volume.ExtraPrefix) && name == "index":
		what += " swiftnbd/map/ index"
	case strings.HasPrefix(dir, volume.ExtraPrefix):
		what += " swiftnbd/map/ shard"
	case dir != "":
		what += " " + dir
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[what] = true
	return faulty.Fault{}
}

// script is a run that touches all that a session does.
type script struct {
	*world
	t      *testing.T
	oracle *oracle
	left   int64 // store operations until the cut, over all sessions
	effect bool
	blank  bool // made by our own setup
	at     string

	mu   sync.Mutex
	seen map[string]bool // what was done to the store, as note calls it
}

// run returns nil when the script came to its end, else after the cut.
func (s *script) run() error {
	rng := rand.New(rand.NewPCG(1, uint64(s.left)))
	s.driver = s.note
	for n, session := range []func() error{
		func() error {
			return s.do(rng, "extents 100000 8192", "write 0 5000", "write 8192 4096", "flush", "write 100 200", "fua 40960 512", "flush")
		},
		func() error {
			return s.do(rng, "write 0 20", "zero 8192 4096", "flush", "write 9000 10", "trim 0 4096", "flush")
		},
		func() error { return s.do(rng, "read 0 163840", "extents 0 163840") },
		func() error { return s.do(rng, "zero 0 163840", "write 50000 30000", "fua 70000 3", "write 50000 100") },
		func() error {
			return s.do(rng, "write 0 1", "write 4096 4096", "zero 4096 4096", "write 12288 4096", "flush", "zero 12288 100")
		},
		// Much at once, and the same chunks again between flushes.
		func() error {
			return s.do(rng, "write 4000 40000", "trim 100000 20000", "flush", "write 4000 40000", "zero 8192 12288", "fua 8000 9000", "flush")
		},
	} {
		s.at = fmt.Sprintf("session %d: open", n)
		// As processes are: each names its map by itself.
		s.crashAt, s.opts.Holder = s.left, fmt.Sprintf("host:%d", n+1)
		err := s.open()
		if err == nil {
			if err = session(); err == nil {
				s.at = fmt.Sprintf("session %d: close", n)
				if err = s.device.Close(); err == nil {
					s.device = nil
					s.oracle.flushed(s.oracle.flushing())
				}
			}
		}
		if s.session.Crashed() {
			// Even where the device did not see it (a map's garbage).
			s.kill()
			return faulty.ErrCrashed
		}
		if err != nil {
			s.t.Fatalf("%s: %v", s.at, err)
		}
		s.left -= s.session.Ops()
	}
	return nil
}

// TestCutSetup cuts the setup of a volume off at each of its operations. What
// is left is no volume, or an empty one; and setup can be done again.
func TestCutSetup(t *testing.T) {
	for _, exists := range []bool{false, true} {
		for cut, whole := int64(1), false; !whole; cut++ {
			for _, effect := range []bool{false, true} {
				inner := inMemory(t)
				geo, err := geometry.New(4096, 40)
				if err != nil {
					t.Fatal(err)
				}
				// Of a container that was there nobody may think it empty.
				want := make([]byte, geo.Size())
				if exists {
					if _, err := inner.CreateContainer(t.Context(), nil); err != nil {
						t.Fatal(err)
					}
					noise(rand.New(rand.NewPCG(1, 1)), want[4096:8192])
					if err := inner.Put(t.Context(), chunked.ObjectName(1), want[4096:8192], ""); err != nil {
						t.Fatal(err)
					}
				}
				f := faulty.New(inner, nil)
				f.CrashAt(cut, effect)
				err = volume.Create(t.Context(), f, geo)
				if whole = !f.Crashed(); whole != (err == nil) {
					t.Fatalf("cut at operation %d, effect=%t: %v", cut, effect, err)
				}
				w := &world{t: t, geo: geo, inner: inner, policy: policy, opts: device.Options{Holder: "host:1", Connections: 1, Age: time.Hour, Timeout: 2 * time.Second}}
				for range 2 {
					if err := w.open(); errors.Is(err, store.ErrContainerNotFound) || errors.Is(err, volume.ErrNotSetUp) {
						if whole {
							t.Fatal(err)
						}
						if err := volume.Create(t.Context(), inner, geo); err != nil {
							t.Fatalf("cut at operation %d, effect=%t, set up again: %v", cut, effect, err)
						}
						w.mustOpen()
					} else if err != nil {
						t.Fatal(err)
					}
					b := make([]byte, geo.Size())
					if _, err := w.device.ReadAt(b, 0); err != nil || !bytes.Equal(b, want) {
						t.Fatalf("cut at operation %d, effect=%t: %v, %s", cut, effect, err, firstDifference(b, want))
					}
					if err := w.device.Close(); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
}

// do carries steps out.
func (s *script) do(rng *rand.Rand, steps ...string) error {
	d := s.device
	for _, step := range steps {
		s.at = step
		var op string
		var off, n int64
		if _, err := fmt.Sscan(step, &op, &off, &n); err != nil && op != "flush" {
			s.t.Fatal(err)
		}
		b := make([]byte, n)
		var c *change
		var err error
		durable := s.opts.WriteThrough
		switch op {
		case "write", "fua":
			noise(rng, b)
			b[0] = byte(rng.Uint32()) | 1
			c, durable = s.oracle.begin(off, b), durable || op == "fua"
			err = d.WriteFUA(b, off, op == "fua")
		case "zero", "trim":
			c = s.oracle.begin(off, b)
			if op == "zero" {
				err = d.Zero(off, n, false, false)
			} else {
				err = d.Trim(off, n, false)
			}
		case "flush":
			upTo := s.oracle.flushing()
			if err = d.Sync(); err == nil {
				s.oracle.flushed(upTo)
			}
		case "read":
			if _, err = d.ReadAt(b, off); err == nil && !bytes.Equal(b, s.oracle.read(off, n)) {
				s.t.Errorf("%s: %s", step, firstDifference(b, s.oracle.read(off, n)))
			}
		case "extents":
			err = d.Extents(off, n, func(o, l int64, hole bool) bool {
				if hole && len(bytes.TrimLeft(s.oracle.read(o, l), "\x00")) > 0 {
					s.t.Errorf("%d bytes at %d are called a hole", l, o)
				}
				return true
			})
		}
		if err != nil {
			if !errors.Is(err, faulty.ErrCrashed) {
				s.t.Fatalf("%s: %v", step, err)
			}
			return err
		}
		if c != nil {
			s.oracle.end(c, durable)
		}
	}
	return nil
}
