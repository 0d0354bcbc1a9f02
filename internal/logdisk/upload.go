// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

// Stats counts what the disk did. The fields may be read at any time.
type Stats struct {
	Flushes   atomic.Int64
	Sealed    atomic.Int64 // objects
	Uploads   atomic.Int64 // objects that are in Swift
	Bytes     atomic.Int64 // of them
	Failures  atomic.Int64 // uploads that failed and are tried again
	Gets      atomic.Int64 // reads of Swift
	GetBytes  atomic.Int64
	Deleted   atomic.Int64 // objects that nothing needed
	Collected atomic.Int64 // objects that the collector has read
	Moved     atomic.Int64 // blocks that it has moved
	Gathered  atomic.Int64 // chunks that were put in order when somebody had read them
	Saves     atomic.Int64 // checkpoints
	SaveBytes atomic.Int64 // of runs and roots
	Merges    atomic.Int64 // of runs
	MapGets   atomic.Int64 // reads of the map's runs
	MapBytes  atomic.Int64 // of them

	CollectedBytes atomic.Int64 // of objects that the collector has written

	CompressFrom atomic.Int64 // bytes of the frames that were compressed
	CompressTo   atomic.Int64 // of the records that they became
}

// Stats returns the counters.
func (d *Disk) Stats() *Stats { return &d.stats }

// startUploads begins as many uploads as may be under way. d.mu is held.
func (d *Disk) startUploads() {
	for d.flying < d.o.Connections && len(d.queue) > 0 && d.ctx.Err() == nil {
		o := d.queue[0]
		d.queue = d.queue[1:]
		d.flying++
		d.wg.Add(1)
		go d.upload(o)
	}
}

// upload brings a sealed object to Swift, however long that takes.
func (d *Disk) upload(o *object) {
	defer d.wg.Done()
	defer d.recoverPanic()
	data, packed := d.encode(o)
	if packed {
		defer freeBuffer(data)
	}
	etag := d.hash(data)
	defer d.putEnded()
	var recent []byte
	if d.o.GC > 0 && len(data) <= recentMost {
		recent = bytes.Clone(data)
	}
	for {
		// The same bytes under the same name each time: it does not matter
		// which of the attempts Swift has kept, or when it does so.
		beside := d.ways.crowded()
		sent := time.Now()
		err := d.store.Put(d.ctx, layout.LogName(o.at), data, etag)
		if err == nil {
			took := time.Since(sent)
			d.measure(int64(len(data)), took)
			if len(data) < measured {
				d.ways.timed(sent, took, beside)
			}
			d.uploaded(o, int64(len(data)), took, recent)
			return
		}
		if d.ctx.Err() != nil {
			return
		}
		d.stats.Failures.Add(1)
		d.failed(fmt.Errorf("write object %s of the log: %w", o.at, err))
		select {
		case <-time.After(d.o.Pause):
		case <-d.ctx.Done():
			return
		}
	}
}

const (
	// measured is how large an object is, at least, whose upload says how fast
	// Swift is: that of a smaller one is mostly latency. Bytes.
	measured = 256 << 10
	// leastSeal is how small objects become when Swift is slow, bytes of frames.
	leastSeal = 64 * layout.FrameSize
)

// measure learns from an upload of n bytes that took so long, and bounds what may
// be written and not durable to what Swift takes within FlushTime. A slower
// Swift also gets smaller objects, or one alone would take longer.
func (d *Disk) measure(n int64, took time.Duration) {
	if d.o.FlushTime < 0 || n < measured && n < int64(d.sealAt.Load()) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	rate := float64(n) * float64(max(d.hashes.putting, 1)) / max(took, time.Millisecond).Seconds()
	// Down quickly, up slowly: a bound that is too small costs little.
	if d.rate == 0 {
		d.rate = rate
	} else if rate < d.rate {
		d.rate += (rate - d.rate) / 2
	} else {
		d.rate += (rate - d.rate) / 8
	}
	bytes := int64(d.rate * d.o.FlushTime.Seconds())
	seal := min(max(bytes/4, leastSeal), int64(d.o.Seal))
	d.sealAt.Store(seal)
	d.room.bound(max(bytes, 2*seal))
}

// encode returns the object's bytes. Nobody changes its frames any more, and
// what is added lies behind what readers look at. packed says that they are in a
// buffer of their own. If a reader would refuse them, encode panics: then the object
// is not sent, and no flush is acknowledged that relies on it. That is also how an
// epoch ends whose numbers are used up.
func (d *Disk) encode(o *object) (data []byte, packed bool) {
	if d.o.Compress {
		data, o.packed = d.pack(o)
	}
	d.mu.RLock()
	f := layout.Footer{
		LastOfCut: true, UUID: d.o.UUID,
		At: o.at, FirstOfCut: o.at.N, Durable: d.durable, Size: d.size.Load(), Sealed: time.Now(),
	}
	d.mu.RUnlock()
	frames, records := o.buf, o.records
	if o.packed != nil {
		frames, records = data, o.packed
	}
	if err := layout.CheckTail(records, f, int64(len(frames))); err != nil {
		panic(err)
	}
	out := layout.AppendTail(frames, records, f)
	if o.packed == nil {
		return out, false
	}
	if cap(out) != cap(frames) { // the tail did not fit
		freeBuffer(frames)
	}
	d.mu.Lock()
	o.density = densityOfRecords(records, int64(len(out)))
	d.mu.Unlock()
	return out, true
}

// uploaded notes that the object, of size bytes, is in Swift, and how long its
// PUT took. recent are its bytes if the collector may want them soon, or nil.
func (d *Disk) uploaded(o *object, size int64, took time.Duration, recent []byte) {
	for _, b := range d.noteUploaded(o, size, took, recent) {
		freeBuffer(b)
	}
}

// noteUploaded is uploaded but for the buffers that are not needed any more.
func (d *Disk) noteUploaded(o *object, size int64, took time.Duration, recent []byte) (old [][]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	o.size = size
	if recent != nil {
		d.recent.add(o.at, recent)
	}
	if size < measured {
		d.crowd.timed(took)
	}
	d.stats.Uploads.Add(1)
	d.stats.Bytes.Add(size)
	d.acked[o.at.N] = o
	for {
		next := d.acked[d.durable+1]
		if next == nil {
			break
		}
		delete(d.acked, next.at.N)
		d.durable++
		d.room.release(next.reserved)
		old = append(old, d.spareBufs.give(next.buf, d.o.Seal, d.mostSpare())) // its upload has returned
		d.relabel(next)
		next.buf, next.records, next.packed, next.kept = nil, nil, nil, true
		d.objects.settle(next)
		if next.live == 0 {
			d.dead(next.at)
		}
		d.crowd.answered(next)
		close(next.done)
	}
	old = append(old, d.spareBufs.trim(d.mostSpare())...)
	old = append(old, d.giveMemoryBack()...)
	d.flying--
	if d.open != nil && len(d.queue) == 0 && (d.wanted || d.room.crowded()) {
		d.seal()
	}
	d.startUploads()
	if d.due() {
		d.wake()
	}
	return old
}

// failed tells those who wait for uploads that one has failed.
func (d *Disk) failed(err error) {
	if d.saidUpload.news(err) {
		d.o.Log("write back: %v (kept in memory, and tried again: it is lost if this process is killed)", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.failing
	f.err = err
	close(f.ch)
	d.failing = newFailure()
}

// await returns when done is closed, or with the error of an upload that fails
// meanwhile: failing is Disk.failing as it was before.
func (d *Disk) await(ctx context.Context, done <-chan struct{}, failing *failure) error {
	select {
	case <-done:
		return nil
	case <-failing.ch:
		return failing.err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-d.ctx.Done():
		return context.Cause(d.ctx)
	}
}

// Dirty returns the bytes that are not durable, and in how many objects.
func (d *Disk) Dirty() (bytes int64, objects int) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for n := d.durable + 1; n < d.next; n++ {
		if o := d.objects.writing[layout.Position{Epoch: d.o.Epoch, N: n}]; o != nil {
			bytes, objects = bytes+int64(len(o.buf))/layout.FrameSize*layout.BlockSize, objects+1
		}
	}
	if d.open != nil {
		bytes, objects = bytes+int64(len(d.open.buf))/layout.FrameSize*layout.BlockSize, objects+1
	}
	return bytes, objects
}

// OldestDirty returns since when the oldest change is not durable; zero: there
// is none.
func (d *Disk) OldestDirty() time.Time {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.durable+1 < d.next {
		return d.objects.writing[layout.Position{Epoch: d.o.Epoch, N: d.durable + 1}].opened
	}
	if d.open != nil {
		return d.open.opened
	}
	return time.Time{}
}

// loop seals the open cut when it is old, and has checkpoints made.
func (d *Disk) loop() {
	defer d.wg.Done()
	defer d.recoverPanic()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var said said
	for {
		d.mu.Lock()
		wait := time.Hour
		if d.open != nil {
			if wait = time.Until(d.open.opened.Add(d.o.Age)); wait <= 0 {
				d.seal()
				wait = time.Hour
			}
		}
		due := d.due()
		d.mu.Unlock()
		if due {
			if err := d.save(d.ctx); err != nil && d.ctx.Err() == nil {
				if said.news(err) {
					d.o.Log("save the map: %v (tried again; no data is concerned)", err)
				}
				wait = min(wait, d.o.Pause)
			}
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-d.kick:
		case <-d.ctx.Done():
			return
		}
	}
}
