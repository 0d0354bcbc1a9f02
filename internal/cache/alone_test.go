// SPDX-License-Identifier: MIT

package cache

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"swiftnbd/internal/geometry"
)

// torn is a disk of which one byte cannot be read.
type torn struct {
	logged
	bad    int64
	partly bool // whether others may be
	reads  int
}

var errTorn = errors.New("it cannot be read")

func (t *torn) Partly(err error) bool { return t.partly && errors.Is(err, errTorn) }

func (t *torn) Beside(_ geometry.ChunkIndex, _, wide geometry.ByteRange) geometry.ByteRange {
	return wide
}

func (t *torn) Read(_ context.Context, i geometry.ChunkIndex, off int64, p []byte) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reads++
	off += t.geo.Offset(i)
	if off <= t.bad && t.bad < off+int64(len(p)) {
		return false, errTorn
	}
	copy(p, t.data[off:])
	return false, nil
}

// TestAlone reads and partly writes what lies beside bytes that cannot be read. It is
// fetched with them at first, and then alone; but not if the error says that this is of
// no use: each attempt may take as long as an outage is waited for.
func TestAlone(t *testing.T) {
	const size, block = 1 << 20, 4096
	geo, err := geometry.New(size, 4)
	if err != nil {
		t.Fatal(err)
	}
	for _, partly := range []bool{true, false} {
		for name, do := range map[string]func(c *Cache, l *torn, off int64) error{
			"read": func(c *Cache, _ *torn, off int64) error { return c.Read(t.Context(), make([]byte, block), off) },
			"write": func(c *Cache, l *torn, off int64) error {
				return c.Through(t.Context(), []byte{7}, off+9, block, l.keep)
			},
		} {
			l := &torn{logged: logged{geo: geo, data: bytes.Repeat([]byte{1}, 4*size)}, partly: partly, bad: size + 3*block + 5}
			c, err := NewReader(l, geo, Options{Size: MinSize(size) + size, Connections: 4, Check: true, Log: noPanics(t)})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := do(c, l, size+2*block); (err == nil) != partly {
				t.Errorf("%s beside them, partly %v: %v", name, partly, err)
			}
			if want := map[bool]int{true: 2, false: 1}[partly]; l.reads != want {
				t.Errorf("%s beside them, partly %v: %d reads, want %d", name, partly, l.reads, want)
			}
			l.reads = 0
			if err := do(c, l, size+3*block); !errors.Is(err, errTorn) {
				t.Errorf("%s of them: %v", name, err)
			}
			if l.reads > 2 {
				t.Errorf("%s of them, partly %v: %d reads", name, partly, l.reads)
			}
		}
	}
}
