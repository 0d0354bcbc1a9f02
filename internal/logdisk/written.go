// SPDX-License-Identifier: MIT

package logdisk

import "swiftnbd/internal/logdisk/layout"

// recent has the bytes of small objects that were written lately. A client that
// writes little and flushes leaves one for each flush, and the collector joins them:
// it need not read back what has just been written. Disk.mu guards it.
type recent struct {
	of    map[layout.Position][]byte
	order []layout.Position // the oldest first; some are not in of any more
	bytes int64
}

const (
	// recentBytes is how many bytes recent has, at most: those of a full object in
	// flushes of a block each, with their tails, and as much again.
	recentBytes = 8 << 20
	// recentMost is how large an object is of which it has the bytes, at most.
	recentMost = 64 << 10
)

// add takes an object's bytes, which nobody changes any more.
func (r *recent) add(at layout.Position, all []byte) {
	if r.of == nil {
		r.of = make(map[layout.Position][]byte)
	}
	r.of[at] = all
	r.order = append(r.order, at)
	r.bytes += int64(len(all))
	for r.bytes > recentBytes || len(r.order) > 2*len(r.of)+64 {
		r.drop(r.order[0])
		r.order = r.order[1:]
	}
}

// drop forgets an object, if it is there.
func (r *recent) drop(at layout.Position) {
	r.bytes -= int64(len(r.of[at]))
	delete(r.of, at)
}

// written returns the bytes of an object that was written lately; nil: they have to
// be read.
func (d *Disk) written(at layout.Position) []byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.recent.of[at]
}
