// SPDX-License-Identifier: MIT

package device_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"swiftnbd/internal/store/faulty"
)

// TestCut cuts a scripted run off at each of its store operations, once before
// and once after the operation took effect, and holds what is left against the
// oracle. Then the volume is opened again, and must be what Swift holds.
func TestCut(t *testing.T) {
	for _, blank := range []bool{false, true} {
		for _, through := range []bool{false, true} {
			t.Run(fmt.Sprintf("blank=%t,through=%t", blank, through), func(t *testing.T) {
				t.Parallel()
				for cut, whole := int64(1), false; !whole; cut++ {
					for _, effect := range []bool{false, true} {
						s := &script{t: t, world: newWorld(t, inMemory(t), 4096, 40, blank), left: cut, effect: effect}
						s.oracle, s.opts.WriteThrough, s.opts.Connections = newOracle(s.geo.Size()), through, 1
						whole = s.run() == nil
						got := s.raw()
						if err := s.oracle.crashed(got); err != nil {
							t.Fatalf("cut at operation %d, effect=%t, in %q: %v", cut, effect, s.at, err)
						}
						s.crashAt = 0
						s.mustOpen()
						b := make([]byte, s.geo.Size())
						if _, err := s.device.ReadAt(b, 0); err != nil {
							t.Fatalf("cut at operation %d, effect=%t, in %q: read after it: %v", cut, effect, s.at, err)
						}
						if !bytes.Equal(b, got) {
							t.Fatalf("cut at operation %d, effect=%t, in %q: the device says otherwise than Swift: %s", cut, effect, s.at, firstDifference(b, got))
						}
						if err := s.device.Close(); err != nil {
							t.Fatal(err)
						}
					}
					if whole && cut < 40 {
						t.Errorf("the script makes %d store operations only", cut-1)
					}
				}
			})
		}
	}
}

// script is a run that touches all that a session does.
type script struct {
	*world
	t      *testing.T
	oracle *oracle
	left   int64 // store operations until the cut, over all sessions
	effect bool
	at     string
}

// run returns nil when the script came to its end, else after the cut.
func (s *script) run() error {
	rng := rand.New(rand.NewPCG(1, uint64(s.left)))
	for n, session := range []func() error{
		func() error {
			return s.do(rng, "write 0 5000", "write 8192 4096", "flush", "write 100 200", "fua 40960 512", "flush")
		},
		func() error {
			return s.do(rng, "write 0 20", "zero 8192 4096", "flush", "write 9000 10", "trim 0 4096", "flush")
		},
		func() error { return s.do(rng, "read 0 163840", "extents 0 163840") },
		func() error { return s.do(rng, "zero 0 163840", "write 50000 30000", "fua 70000 3", "write 50000 100") },
		func() error {
			return s.do(rng, "write 0 1", "write 4096 4096", "zero 4096 4096", "write 12288 4096", "flush", "zero 12288 100")
		},
	} {
		s.at = fmt.Sprintf("session %d: open", n)
		s.crashAt = s.left
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
