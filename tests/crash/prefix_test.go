// SPDX-License-Identifier: MIT

package crash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"

	"swiftnbd/tests/harness"
)

// op is one change of a block, or of several. Its stamp is its number in
// history.ops. A moment is a tick of the history's clock.
type op struct {
	begun uint64
	ended uint64 // when it was acknowledged; 0: it was not
	zero  bool   // it makes zeroes, which do not tell by whom
}

// history is all that happened to a disk: for each block the operations that
// changed it, one after the other, since each block belongs to one connection.
//
// Version 2 of the format promises that what a crash leaves is a complete prefix
// of the order in which writes were acknowledged. Two writes that were under way
// at once have no order. So if a block shows an operation that had begun when
// another had been acknowledged, that other one has to be there, too, on
// whatever block.
type history struct {
	mu     sync.Mutex
	now    uint64
	ops    []op
	blocks [][]int // the numbers of each block's operations, oldest first
	// flushed is when the newest flush began that was acknowledged: what had been
	// acknowledged by then has to be there.
	flushed uint64
}

func newHistory(blocks int) *history {
	h := &history{ops: []op{{ended: 1, zero: true}}, now: 2, blocks: make([][]int, blocks)}
	for b := range h.blocks {
		h.blocks[b] = []int{0} // the disk begins with zeroes
	}
	return h
}

// begin returns the number of a new operation on n blocks from first on.
func (h *history) begin(first, n int, zero bool) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now++
	h.ops = append(h.ops, op{begun: h.now, zero: zero})
	for b := first; b < first+n; b++ {
		h.blocks[b] = append(h.blocks[b], len(h.ops)-1)
	}
	return len(h.ops) - 1
}

// end notes that the operation was acknowledged. A durable one is a flush, too,
// and itself there.
func (h *history) end(n int, durable bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now++
	h.ops[n].ended = h.now
	if durable {
		// Nobody else can have begun at this very moment.
		h.flushed = max(h.flushed, h.ops[n].begun)
		h.ops[n].ended = min(h.ops[n].ended, h.ops[n].begun)
	}
}

func (h *history) tick() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now++
	return h.now
}

func (h *history) flushedAt(begun uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.flushed = max(h.flushed, begun)
}

const stampSize = 4096

// stamp fills a block with its own number and the operation's.
func stamp(p []byte, block, op int) {
	for i := 0; i < stampSize; i += 16 {
		binary.BigEndian.PutUint64(p[i:], uint64(block)+1)
		binary.BigEndian.PutUint64(p[i+8:], uint64(op))
	}
}

// read returns which operation's stamp the block p has, 0 for zeroes.
func readStamp(p []byte, block int) (int, error) {
	n := int(binary.BigEndian.Uint64(p[8:]))
	want := make([]byte, stampSize)
	if n > 0 {
		stamp(want, block, n)
	}
	if string(p) != string(want) {
		return 0, fmt.Errorf("block %d is torn, or another's: it begins with %x and ends with %x", block, p[:16], p[stampSize-16:])
	}
	return n, nil
}

// prefix says whether disk is the disk as it was at one moment, which is not
// before the newest flush, and takes it over as what is durable. It returns how
// many acknowledged operations are not in it.
func (h *history) prefix(disk []byte) (lost int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	// at is for each block the place in its history that the disk shows. least is
	// the moment before which nothing that was acknowledged may be missing.
	at := make([]int, len(h.blocks))
	zeroes := make([]bool, len(h.blocks))
	least, by := h.flushed, "a flush"
	for b := range h.blocks {
		n, err := readStamp(disk[b*stampSize:][:stampSize], b)
		if err != nil {
			return 0, err
		}
		if zeroes[b] = n == 0; zeroes[b] {
			continue
		}
		if at[b] = indexOf(h.blocks[b], n); at[b] < 0 || h.ops[n].zero {
			return 0, fmt.Errorf("block %d has stamp %d, which was not written there, or is gone since an earlier crash", b, n)
		}
		if h.ops[n].begun > least {
			least, by = h.ops[n].begun, fmt.Sprintf("block %d has operation %d", b, n)
		}
	}
	// missing returns the moment at which the operation after the one that block b
	// shows was acknowledged.
	missing := func(b int) uint64 {
		if at[b]+1 < len(h.blocks[b]) {
			if e := h.ops[h.blocks[b][at[b]+1]].ended; e > 0 {
				return e
			}
		}
		return math.MaxUint64
	}
	for again := true; again; {
		again = false
		for b := range h.blocks {
			// Zeroes may be any operation's that made some: the oldest that can be.
			for zeroes[b] && (!h.ops[h.blocks[b][at[b]]].zero || missing(b) <= least) {
				if at[b]++; at[b] == len(h.blocks[b]) {
					return 0, fmt.Errorf("block %d has zeroes, and was something else at moment %d: %s", b, least, by)
				}
				if o := h.ops[h.blocks[b][at[b]]]; o.zero && missing(b) > least && o.begun > least {
					least, by, again = o.begun, fmt.Sprintf("block %d can have its zeroes only from operation %d", b, h.blocks[b][at[b]]), true
				}
			}
			if m := missing(b); m <= least {
				return 0, fmt.Errorf("block %d has operation %d, and operation %d on it was acknowledged at moment %d; but %s, which began at %d",
					b, h.blocks[b][at[b]], h.blocks[b][at[b]+1], m, by, least)
			}
		}
	}
	for b := range h.blocks {
		for _, n := range h.blocks[b][at[b]+1:] {
			if h.ops[n].ended > 0 {
				lost++
			}
		}
		h.blocks[b] = []int{h.blocks[b][at[b]]} // what is gone must not come back
		n := h.blocks[b][0]
		h.ops[n].ended = max(h.ops[n].ended, 1)
	}
	h.flushed = h.now
	return lost, nil
}

func indexOf(list []int, n int) int {
	for i, v := range list {
		if v == n {
			return i
		}
	}
	return -1
}

// TestHistory has the checker itself find what is wrong.
func TestHistory(t *testing.T) {
	newDisk := func() (*history, []byte, func(b int, flush bool) int) {
		h := newHistory(4)
		disk := make([]byte, 4*stampSize)
		return h, disk, func(b int, durable bool) int {
			n := h.begin(b, 1, false)
			h.end(n, durable)
			return n
		}
	}
	for name, want := range map[string]bool{"all": true, "none": true, "gap": false, "unflushed": false, "fua": false, "both under way": true, "gone came back": false} {
		h, disk, do := newDisk()
		var err error
		switch name {
		case "all":
			stamp(disk, 0, do(0, false))
			stamp(disk[stampSize:], 1, do(1, false))
		case "none":
			do(0, false)
			do(1, false)
		case "gap":
			do(0, false)
			stamp(disk[stampSize:], 1, do(1, false))
		case "unflushed":
			do(0, false)
			h.flushedAt(h.tick())
		case "fua":
			do(0, true)
		case "both under way":
			a, b := h.begin(0, 1, false), h.begin(1, 1, false)
			h.end(a, false)
			h.end(b, false)
			stamp(disk[stampSize:], 1, b)
		case "gone came back":
			n := do(0, false)
			if _, err = h.prefix(disk); err != nil {
				t.Fatal(err)
			}
			stamp(disk, 0, n)
		}
		if _, err = h.prefix(disk); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// work changes, flushes and reads blocks of connection k of n until the
// connection breaks. Each connection has groups of blocks.
func (h *history) work(c *client, rng *rand.Rand, k, n int) error {
	const group = 32
	mine := len(h.blocks) / group / n
	shown := func(b int) int { // what a read must show
		h.mu.Lock()
		defer h.mu.Unlock()
		list := h.blocks[b]
		if last := list[len(list)-1]; !h.ops[last].zero {
			return last
		}
		return 0
	}
	for {
		first := (rng.IntN(mine)*n+k)*group + rng.IntN(group)
		count := 1
		if rng.IntN(4) == 0 {
			count = 1 + rng.IntN(group-first%group)
		}
		off := int64(first) * stampSize
		var err error
		switch x := rng.IntN(40); {
		case x < 30:
			zero, durable := x < 5, x%10 == 0
			i := h.begin(first, count, zero)
			var flags uint16
			if durable {
				flags = flagFUA
			}
			if zero {
				_, err = c.do([]uint16{cmdZero, cmdTrim}[x%2], flags, off, count*stampSize, nil)
			} else {
				p := make([]byte, count*stampSize)
				for j := range count {
					stamp(p[j*stampSize:], first+j, i)
				}
				_, err = c.do(cmdWrite, flags, off, len(p), p)
			}
			if err == nil {
				h.end(i, durable)
			}
		case x < 37:
			var p []byte
			if p, err = c.do(cmdRead, 0, off, count*stampSize, nil); err == nil {
				for j := range count {
					got, err := readStamp(p[j*stampSize:][:stampSize], first+j)
					if want := shown(first + j); err != nil || got != want {
						return fmt.Errorf("read while it works: block %d has stamp %d, want %d: %w", first+j, got, want, err)
					}
				}
			}
		default:
			begun := h.tick()
			if _, err = c.do(cmdFlush, 0, 0, 0, nil); err == nil {
				h.flushedAt(begun)
			}
		}
		var ne nbdError
		if errors.As(err, &ne) {
			return err
		}
		if err != nil {
			return nil // killed
		}
	}
}

// TestKillPrefix is TestKill for version 2 of the format, which promises more:
// every block of the disk is of one moment, which is not before the last flush
// that was acknowledged.
func TestKillPrefix(t *testing.T) {
	t.Parallel()
	const blocks = 4096
	for name, tc := range map[string]struct {
		clients int
		swift   []string
		params  []string
	}{
		"default": {8, nil, nil},
		// Many objects under way at once, and little of the disk in memory.
		"slow": {8, []string{"--latency", "30ms"}, []string{"cache=5M", "flush-time=30", "writeback-age=0.05"}},
		// One at a time, which takes a while.
		"narrow":       {4, []string{"--bandwidth", "4M"}, []string{"connections=2", "flush-time=5"}},
		"writethrough": {6, nil, []string{"cache-mode=writethrough", "cache=5M"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := newRand(t)
			d := newLogDisk(t, blocks*stampSize, tc.swift, tc.params...)
			h := newHistory(blocks)
			serve := d.start
			lost, ops := 0, 0
			check := func(uri string) {
				t.Helper()
				n, err := h.prefix(readAll(t, uri))
				if err != nil {
					t.Fatalf("after %d operations: %v", len(h.ops), err)
				}
				lost += n
			}
			for range *killsFlag {
				uri := serve()
				serve = d.takeOver
				check(uri)
				d.killAtWork(uri, rng, tc.clients, h.work)
				if t.Failed() {
					return
				}
				ops = len(h.ops)
			}
			uri := serve()
			check(uri)
			d.n.Stop(t)
			if _, err := h.prefix(d.account.Read011(t, d.name)); err != nil {
				t.Errorf("what is in Swift after a clean end: %v", err)
			}
			t.Logf("%d operations, of which %d were acknowledged and not flushed, and are gone", ops, lost)
		})
	}
}

// readAll reads the whole disk on a connection of its own.
func readAll(t *testing.T, uri string) []byte {
	t.Helper()
	c, err := dial(uri)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close() // nbdkit waits for its clients
	disk := make([]byte, 0, c.size)
	for off := int64(0); off < c.size; off += 1 << 20 {
		p, err := c.do(cmdRead, 0, off, int(min(1<<20, c.size-off)), nil)
		if err != nil {
			t.Fatalf("read at %s: %v", strconv.FormatInt(off, 10), err)
		}
		disk = append(disk, p...)
	}
	return disk
}

// newLogDisk is newDisk for version 2 of the format, in a Swift with further
// options.
func newLogDisk(t *testing.T, size int64, swift []string, params ...string) *disk {
	t.Helper()
	c, _ := harness.OwnDev(t, append([]string{"--dir", t.TempDir()}, swift...)...)
	d := &disk{t: t, account: c.Account(t), name: harness.Name(t)}
	d.account.SetupLog(t, d.name, size)
	d.secrets = harness.Secrets(t, c.Section(d.name))
	d.params = append([]string{d.name, "secrets=" + d.secrets, lease}, params...)
	return d
}
