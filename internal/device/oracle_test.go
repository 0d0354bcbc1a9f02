// SPDX-License-Identifier: MIT

package device_test

import (
	"bytes"
	"fmt"
	"sync"
)

// oracle knows what each byte of a disk may be.
//
// While a session lives a read must return what was written last. What a crash
// leaves must be, byte by byte, either what the last flush that covers the
// byte has made durable, or something that was written to it since, whether or
// not that was acknowledged.
//
// Each byte is changed by one goroutine at a time, one change after the other.
type oracle struct {
	mu     sync.Mutex
	want   []byte    // what a read returns
	stable []byte    // what is durable, as of floor and the changes with fua
	floor  int       // changes numbered up to here are in stable
	seq    int       // numbers changes by their end
	log    []*change // those not in stable yet, in the order of their beginning

	// stripe and clients, when not 0, say whose each byte is, and that what a
	// crash leaves must be a complete prefix of the changes.
	stripe  int64
	clients int
}

// change is a write, zero or trim.
type change struct {
	off  int64
	data []byte
	from int  // seq of the newest change that had ended when it began
	seq  int  // 0: it has not ended, or has failed
	fua  bool // it was durable when it ended
}

func newOracle(size int64) *oracle {
	return &oracle{want: make([]byte, size), stable: make([]byte, size)}
}

// mustBePrefix has crashed look at the order of changes, too.
func (o *oracle) mustBePrefix(stripe int64, clients int) { o.stripe, o.clients = stripe, clients }

// begin notes that data is being written at off.
func (o *oracle) begin(off int64, data []byte) *change {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := &change{off: off, data: bytes.Clone(data), from: o.seq}
	o.log = append(o.log, c)
	return c
}

// end notes that the change was acknowledged.
func (o *oracle) end(c *change, fua bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seq++
	c.seq, c.fua = o.seq, fua
	copy(o.want[c.off:], c.data)
}

// flushing returns what a flush that begins now has to cover.
func (o *oracle) flushing() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seq
}

// flushed notes that a flush has succeeded.
func (o *oracle) flushed(upTo int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if upTo <= o.floor {
		return
	}
	// By their ends: those of one byte ended in the order they began.
	var rest []*change
	for _, c := range o.log {
		if c.seq == 0 || c.seq > upTo {
			rest = append(rest, c)
			continue
		}
		copy(o.stable[c.off:], c.data)
	}
	o.log, o.floor = rest, upTo
}

// read returns what a read of [off, off+n) must return.
func (o *oracle) read(off, n int64) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.want[off : off+n])
}

// crashed holds what a crash has left against what may be, and takes it over
// as what is.
func (o *oracle) crashed(got []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for p := range got {
		if got[p] != o.want[p] && !o.allowed(int64(p), got[p]) {
			return fmt.Errorf("byte %d is %#x; flushed was %#x, written last %#x; since the flush: %v",
				p, got[p], o.stable[p], o.want[p], o.history(int64(p)))
		}
		// What was written last may be there without a flush, but not
		// instead of something durable that is newer: want is the newest.
	}
	if o.clients > 0 {
		if err := o.prefix(got); err != nil {
			return err
		}
	}
	copy(o.stable, got)
	copy(o.want, got)
	o.log, o.floor = nil, o.seq
	return nil
}

// allowed says whether byte p may be b.
func (o *oracle) allowed(p int64, b byte) bool {
	durable, at := o.stable[p], 0
	for _, c := range o.log {
		if c.fua && c.covers(p) && c.seq > at {
			durable, at = c.data[p-c.off], c.seq
		}
	}
	if b == durable {
		return true
	}
	for _, c := range o.log {
		if c.covers(p) && (c.seq == 0 || c.seq > at) && c.data[p-c.off] == b {
			return true
		}
	}
	return false
}

func (o *oracle) history(p int64) (out []string) {
	for _, c := range o.log {
		if c.covers(p) {
			out = append(out, fmt.Sprintf("%#x (%d bytes at %d, number %d, fua=%t)", c.data[p-c.off], len(c.data), c.off, c.seq, c.fua))
		}
	}
	return out
}

func (c *change) covers(p int64) bool { return p >= c.off && p < c.off+int64(len(c.data)) }

// stage is how far one client's changes are in what a crash has left.
type stage struct {
	from    int // the newest change that is there had this from
	missing int // the first that is not, or not whole, was acknowledged with this seq; 0: it was not; -1: it was durable
	what    string
}

// prefix says whether got is the disk as it was at one moment. Changes that were
// under way at once have no order. If one is there, or a part of it, all have to
// be there whole that had been acknowledged when it began.
func (o *oracle) prefix(got []byte) error {
	stages := make([][]stage, o.clients)
	for c := range stages {
		if stages[c] = o.stages(c, got); len(stages[c]) == 0 {
			return fmt.Errorf("client %d's part of the disk is as after none of its changes", c)
		}
	}
	// The earliest stage of each that goes with the others.
	least, by := o.floor, "a flush"
	for _, c := range o.log {
		if c.fua && c.seq > 0 {
			least = max(least, c.from)
		}
	}
	for again := true; again; {
		again = false
		for c := range stages {
			for s := stages[c]; s[0].missing != 0 && s[0].missing <= least; s = stages[c] {
				if stages[c] = s[1:]; len(s) == 1 {
					return fmt.Errorf("not a prefix: client %d's newest is %s, and the next was acknowledged as number %d; but there is %s, which begins after number %d",
						c, s[0].what, s[0].missing, by, least)
				}
			}
			if s := stages[c][0]; s.from > least {
				least, by, again = s.from, fmt.Sprintf("%s of client %d", s.what, c), true
			}
		}
	}
	return nil
}

// stages returns the stages of a client whose changes got may have, the earliest
// first.
func (o *oracle) stages(client int, got []byte) (out []stage) {
	var mine []*change
	for _, c := range o.log {
		if int(c.off/o.stripe)%o.clients == client {
			mine = append(mine, c)
		}
	}
	now := bytes.Clone(o.stable)
	s := stage{what: "what was flushed"}
	for i := 0; ; i++ {
		var next *change
		if i < len(mine) {
			next = mine[i]
		}
		// A change that is not there whole may be there in part.
		if same, part := o.compare(client, got, now, next); same {
			at := s
			if next != nil {
				at.missing = next.seq
				if next.fua && next.seq > 0 {
					at.missing = -1
				}
			}
			if part {
				at.from, at.what = max(at.from, next.from), fmt.Sprintf("a part of change %d", i)
			}
			out = append(out, at)
		}
		if next == nil {
			return out
		}
		copy(now[next.off:], next.data)
		s.from, s.what = max(s.from, next.from), fmt.Sprintf("change %d of %d bytes at %d", i, len(next.data), next.off)
	}
}

// compare says whether got has the client's bytes as in now, where next covers
// them perhaps as in next; part says that some are.
func (o *oracle) compare(client int, got, now []byte, next *change) (same, part bool) {
	for off := int64(client) * o.stripe; off < int64(len(got)); off += o.stripe * int64(o.clients) {
		end := min(off+o.stripe, int64(len(got)))
		if bytes.Equal(got[off:end], now[off:end]) {
			continue
		}
		for p := off; p < end; p++ {
			if got[p] == now[p] {
				continue
			}
			if next == nil || !next.covers(p) || next.data[p-next.off] != got[p] {
				return false, false
			}
			part = true
		}
	}
	return true, part
}
