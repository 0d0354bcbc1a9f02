// SPDX-License-Identifier: MIT

package cache

import (
	"container/list"
	"sync"
	"time"
)

// dirtyList has every chunk of which Swift lacks something.
type dirtyList struct {
	mu      sync.Mutex // guards all below and chunk.dirtyElem, .queue, .since, .unsaved, .begun
	waiting list.List  // of *chunk, longest dirty at the front
	full    list.List  // of *chunk that are dirty as a whole: nothing to fetch
	busy    list.List  // of *chunk that are being uploaded
}

// add notes that the chunk is dirty, and says whether it was not in the list.
// A chunk that is being uploaded stays among the busy.
func (d *dirtyList) add(ch *chunk, full bool) (added bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case ch.dirtyElem == nil:
		ch.since = time.Now().UnixNano()
		ch.unsaved = ch.since
		d.push(ch, full)
		return true
	case full && ch.queue == &d.waiting:
		d.waiting.Remove(ch.dirtyElem)
		d.push(ch, true)
	}
	return false
}

func (d *dirtyList) push(ch *chunk, full bool) {
	ch.queue = &d.waiting
	if full {
		ch.queue = &d.full
	}
	ch.dirtyElem = ch.queue.PushBack(ch)
}

// remove takes the chunk out: it is clean.
func (d *dirtyList) remove(ch *chunk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ch.dirtyElem != nil {
		ch.queue.Remove(ch.dirtyElem)
		ch.dirtyElem, ch.queue = nil, nil
	}
}

// begin moves the chunk to the busy ones. end moves it back to the waiting
// ones: it is dirty again, or still, if its upload has failed.
func (d *dirtyList) begin(ch *chunk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ch.dirtyElem != nil {
		ch.queue.Remove(ch.dirtyElem)
	}
	ch.queue = &d.busy
	ch.begun = time.Now().UnixNano()
	ch.dirtyElem = d.busy.PushBack(ch)
}

func (d *dirtyList) end(ch *chunk, full, failed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ch.queue.Remove(ch.dirtyElem)
	ch.since = time.Now().UnixNano()
	if !failed {
		ch.unsaved = ch.begun // Swift has what was written before
	}
	d.push(ch, full)
}

// lens returns how many chunks are dirty in part, as a whole, and being
// uploaded.
func (d *dirtyList) lens() (part, full, busy int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting.Len(), d.full.Len(), d.busy.Len()
}

// next returns the chunk that should be uploaded next, or nil. It is a chunk
// that is dirty as a whole since before full, or one that is dirty in part
// since before partial (Unix nanoseconds).
func (d *dirtyList) next(full, partial int64) *chunk {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.full.Front(); e != nil && e.Value.(*chunk).since <= full {
		return e.Value.(*chunk)
	}
	if e := d.waiting.Front(); e != nil && e.Value.(*chunk).since <= partial {
		return e.Value.(*chunk)
	}
	return nil
}

// all returns every chunk in the list. Those that are being uploaded come
// first.
func (d *dirtyList) all() []*chunk {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]*chunk, 0, d.busy.Len()+d.full.Len()+d.waiting.Len())
	for _, l := range []*list.List{&d.busy, &d.full, &d.waiting} {
		for e := l.Front(); e != nil; e = e.Next() {
			out = append(out, e.Value.(*chunk))
		}
	}
	return out
}

// oldest returns since when a byte is dirty, at the earliest; zero: none is. It
// is never too late, and may be too early by the time of one upload.
func (d *dirtyList) oldest() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	var first int64
	for _, l := range []*list.List{&d.busy, &d.full, &d.waiting} {
		for e := l.Front(); e != nil; e = e.Next() {
			if since := e.Value.(*chunk).unsaved; first == 0 || since < first {
				first = since
			}
		}
	}
	if first == 0 {
		return time.Time{}
	}
	return time.Unix(0, first)
}
