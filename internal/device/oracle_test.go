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
}

// change is a write, zero or trim.
type change struct {
	off  int64
	data []byte
	seq  int  // 0: it has not ended, or has failed
	fua  bool // it was durable when it ended
}

func newOracle(size int64) *oracle {
	return &oracle{want: make([]byte, size), stable: make([]byte, size)}
}

// begin notes that data is being written at off.
func (o *oracle) begin(off int64, data []byte) *change {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := &change{off: off, data: bytes.Clone(data)}
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
