// SPDX-License-Identifier: MIT

package logdisk

import (
	"testing"

	"swiftnbd/internal/logdisk/layout"
)

// TestLastNumber has an epoch whose numbers are used up. The next one is the collector's,
// and who opens the disk would not look for it: what is there is not acknowledged.
func TestLastNumber(t *testing.T) {
	for _, compress := range []bool{false, true} {
		v := newVolume(t, 64*blockSize)
		v.o.Compress = compress
		do := doer(t)
		d, err := v.open(t.Context(), v.box)
		do(err)
		s := newScript(t, 64)
		do(s.write(d, 1, 2))
		do(s.flush(d))
		d.mu.Lock()
		d.durable, d.next = layout.FirstCollected-1, layout.FirstCollected
		d.mu.Unlock()
		do(d.Write(t.Context(), make([]byte, blockSize), 3*blockSize))
		if err := d.Flush(t.Context()); err == nil {
			t.Error("acknowledged, and nobody will find it")
		}
		if d.ctx.Err() == nil {
			t.Error("the disk goes on")
		}
		d.Close()
		d, err = v.open(t.Context(), v.box)
		do(err)
		s.check(d)
		d.Close()
	}
}
