// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// piece is a part of the image on its way.
type piece struct {
	off, n int64
	data   []byte // nil for a hole; as long as a unit
}

// copy reads the rest of the image, and has each piece written while the next
// ones are read.
func (u *upload) copy(ctx context.Context, weighed bool) error {
	places := max(2, min(int64(u.o.connections), uploadMemory/u.unit))
	free := make(chan []byte, places)
	for range places {
		free <- nil
	}
	notes := u.notes(ctx)
	defer notes.end()
	var writers sync.WaitGroup
	defer writers.Wait()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var p []byte
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-u.broken.Done():
			return context.Cause(u.broken)
		case p = <-free:
		}
		if p == nil {
			p = make([]byte, u.unit)
		}
		n, hole, err := u.in.next(p, min(u.device.Size()-u.at, uploadHole*u.unit))
		if errors.Is(err, io.EOF) {
			break
		}
		if berr := context.Cause(u.broken); err != nil && berr != nil {
			return berr
		}
		if err != nil {
			return fmt.Errorf("%s: %w", u.path, err)
		}
		if n > u.device.Size()-u.at {
			return fmt.Errorf("%s has more than the %d bytes of the disk", u.path, u.device.Size())
		}
		job := piece{off: u.at, n: n}
		if !hole && !zero(p[:n]) {
			u.digest.add(u.at, p[:n])
			job.data = p
		}
		u.at += n
		segment := notes.add()
		writers.Go(func() {
			defer segment.Done()
			if err := u.write(job); err != nil {
				u.fail(err)
			}
			if !hole || !weighed {
				u.bar.add(job.n)
			}
			free <- p
		})
		notes.due(u.at, u.digest)
	}
	writers.Wait()
	return context.Cause(u.broken)
}

// write makes a piece of the disk what the image has there.
func (u *upload) write(job piece) error {
	if job.data == nil {
		return u.clear(job.off, job.n)
	}
	// The rest of the image's last block is zeroes, up to the disk's end.
	n := min((job.n+u.grain-1)/u.grain*u.grain, u.device.Size()-job.off)
	clear(job.data[job.n:n])
	for begin := int64(0); begin < n; {
		isZero := zero(job.data[begin:min(begin+u.grain, n)])
		end := begin
		for end < n && zero(job.data[end:min(end+u.grain, n)]) == isZero {
			end = min(end+u.grain, n)
		}
		if isZero {
			if err := u.clear(job.off+begin, end-begin); err != nil {
				return err
			}
		} else {
			if _, err := u.device.WriteAt(job.data[begin:end], job.off+begin); err != nil {
				return err
			}
			u.sent.Add(min(end, job.n) - begin) // of the image, and not of what fills the last grain
		}
		begin = end
	}
	return nil
}

// clear makes a range of the disk read as zeroes.
func (u *upload) clear(off, n int64) error {
	if u.fresh {
		return nil
	}
	return u.extents(off, n, func(off, n int64) error { return u.device.Zero(off, n, false, false) })
}

// notes keeps the record of how far an upload is: from time to time it waits for
// the pieces that were begun so far, makes them durable, and writes the record.
type notes struct {
	u       *upload
	ctx     context.Context
	segment *sync.WaitGroup // of the pieces since the last note
	last    time.Time
	busy    chan struct{} // holds a value while a note is made
}

func (u *upload) notes(ctx context.Context) *notes {
	return &notes{u: u, ctx: context.WithoutCancel(ctx), segment: new(sync.WaitGroup), last: time.Now(), busy: make(chan struct{}, 1)}
}

// add counts a piece.
func (n *notes) add() *sync.WaitGroup {
	n.segment.Add(1)
	return n.segment
}

// due makes a note if it is time. at is the end of the pieces so far.
func (n *notes) due(at int64, d digest) {
	if time.Since(n.last) < n.u.tool.pace.uploadNote {
		return
	}
	select {
	case n.busy <- struct{}{}:
	default:
		return // the last one is not done yet
	}
	segment, sum := n.segment, d.sum()
	n.segment, n.last = new(sync.WaitGroup), time.Now()
	go func() {
		defer func() { <-n.busy }()
		segment.Wait()
		if err := n.u.note(n.ctx, at, sum); err != nil {
			n.u.tool.log.DebugContext(n.ctx, "no note of how far the upload is", "error", err)
		}
	}()
}

// end waits for a note that is being made.
func (n *notes) end() {
	n.busy <- struct{}{}
	<-n.busy
}

// note makes what was written durable, and writes down that it is. at is the end
// of the pieces that were written.
func (u *upload) note(ctx context.Context, at int64, sum string) error {
	if err := context.Cause(u.broken); err != nil || at <= u.record.at {
		return err
	}
	if err := u.device.Sync(); err != nil {
		return err
	}
	r := u.record
	r.at, r.sum = at, sum
	if err := r.write(ctx, u.store); err != nil {
		return err
	}
	u.record = r
	return nil
}
