// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"slices"
	"sync"
	"time"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
)

// Gathering
//
// A disk that was written at random and is read in order needs a request for each
// block. Who reads a large part of a chunk like that has all of it in memory, in order,
// for a moment. So it is written anew as it is, together with others: the next reader needs
// one request. What nobody reads in order is left alone.
//
// The objects are the collector's in every respect, and what they replace is
// garbage as any other.

const (
	// gatherBytes is how much is read at once, at least, that is gathered. Who reads as
	// much reads in order.
	gatherBytes = ChunkSize / 4
	// gatherEach is for how many bytes that are gathered there was a request. Who writes
	// a block there again makes one more: so at most 16 blocks are written for each that
	// was.
	gatherEach = 64 << 10
	// gatherMost is how many parts wait in memory, at most, beside those of the
	// object that is written next. The chunks of others are read again later.
	gatherMost = 16
	// missedMost is of how many of these is known which they are.
	missedMost = 4096
	// gatherWait is how long chunks wait for others, to have an object together, and
	// how long nobody has read such a chunk before one is read again.
	gatherWait = time.Second
)

// gathered is what was read of a chunk.
type gathered struct {
	first, count uint64 // blocks
	moves        []move
}

// scattered is told of the n bytes of blocks from first on that were read with the
// wants, which are sorted.
func (d *Disk) scattered(first uint64, n int, wants []want) {
	if n < gatherBytes || d.o.GC == 0 || d.o.Epoch == 0 || d.o.Brief || len(wants) < n/gatherEach {
		return
	}
	// Compressed records stay where they are, and would be counted at every read.
	plain := slices.DeleteFunc(slices.Clone(wants), func(w want) bool { return w.Kind != layout.Data })
	requests := 0
	for i := 0; i < len(plain); i = joined(plain, i) {
		requests++
	}
	if requests < n/gatherEach {
		return
	}
	chunk := first / chunkBlocks
	if len(d.gathering) == cap(d.gathering) {
		d.missed.add(chunk)
		return
	}
	data := make([]byte, n)
	g := gathered{first, uint64(n) / layout.BlockSize, make([]move, 0, len(plain))}
	for _, w := range plain {
		p := data[(w.First-first)*layout.BlockSize:][:len(w.p)]
		copy(p, w.p)
		g.moves = append(g.moves, move{want: want{Extent: w.Extent, p: p}})
	}
	select {
	case d.gathering <- g:
		d.missed.gathered(chunk, n == ChunkSize)
	default:
		d.missed.add(chunk)
	}
}

// missed are chunks that are to be read again.
type missed struct {
	mu     sync.Mutex
	chunks map[uint64]bool
	lately map[uint64]bool // gathered; some of them
	last   time.Time       // when one was read
	taken  bool            // one was read again:
	again  uint64          // the last of these
}

// any says whether there are any, or have been lately: then there may soon be more.
func (m *missed) any(now time.Time, lately time.Duration) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.chunks) > 0 || now.Sub(m.last) < lately
}

func (m *missed) add(chunk uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addLocked(chunk)
}

func (m *missed) addLocked(chunk uint64) {
	m.last = time.Now()
	if m.chunks == nil {
		m.chunks = make(map[uint64]bool)
	}
	if len(m.chunks) < missedMost {
		m.chunks[chunk] = true
	}
}

// gathered notes that a chunk was, or a part of it. The one before it was read in
// small parts if a client began there.
func (m *missed) gathered(chunk uint64, whole bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = time.Now()
	if whole {
		delete(m.chunks, chunk)
	}
	if m.lately == nil || len(m.lately) == missedMost {
		m.lately = make(map[uint64]bool)
	}
	m.lately[chunk] = true
	if chunk > 0 && !m.lately[chunk-1] && !(m.taken && m.again == chunk) {
		m.addLocked(chunk - 1)
	}
}

// take takes one of them, which may as well be any.
func (m *missed) take() (chunk uint64, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for chunk := range m.chunks {
		delete(m.chunks, chunk)
		m.taken, m.again = true, chunk
		return chunk, true
	}
	return 0, false
}

// gather is the loop that writes what was gathered, and reads what was missed when
// nobody else reads such chunks.
func (d *Disk) gather() {
	defer d.resting.Done()
	defer d.recoverPanic()
	var (
		list  []gathered
		full  = uint64(d.o.Seal / layout.FrameSize) // blocks of an object
		have  uint64                                // blocks in list
		wait  = time.NewTimer(0)
		pause = gatherWait
		again uint64 // the chunk that was read again last
		ctx   = context.WithValue(d.behind, politeKey{}, true)
	)
	defer wait.Stop()
	for {
		select {
		case g := <-d.gathering:
			if g.first/chunkBlocks != again { // a client reads
				pause = gatherWait
			}
			list = append(list, g)
			have += g.count
		case <-wait.C:
			chunk, ok := d.missed.take()
			if ok {
				// If it is scattered still, it comes as any other.
				again, pause = chunk, gatherWait/100
				if _, err := d.read(ctx, chunk*chunkBlocks, make([]byte, ChunkSize)); err != nil && d.behind.Err() == nil && d.saidGather.news(err) {
					d.o.Log("read what was not in order: %v (left as it was; no data is concerned)", err)
				}
				break
			}
			pause = gatherWait
			if len(list) > 0 {
				d.writeGathered(ctx, list)
				list, have = nil, 0
			}
			continue // until somebody reads
		case <-d.behind.Done():
			return
		}
		if have >= full {
			d.writeGathered(ctx, list)
			list, have = nil, 0
		}
		wait.Reset(pause)
	}
}

func (d *Disk) writeGathered(ctx context.Context, list []gathered) {
	if err := d.moveGathered(ctx, list); err != nil && d.behind.Err() == nil && d.saidGather.news(err) {
		d.o.Log("put in order what was read: %v (left as it was; no data is concerned)", err)
	}
}

// moveGathered writes what was gathered, as far as it is still where it was.
func (d *Disk) moveGathered(ctx context.Context, list []gathered) error {
	d.moving <- struct{}{}
	defer func() { <-d.moving }()
	watch, left := blockmap.New(), blockmap.New()
	for _, g := range list {
		for _, m := range g.moves {
			watch.Set(m.First, m.Count, blockmap.Value{Kind: layout.Zeroes}, nil)
			left.Set(m.First, m.Count, blockmap.Value{Kind: layout.Zeroes}, nil)
		}
	}
	d.addWatch(watch)
	defer d.unwatch(watch)
	var still []move
	for _, g := range list {
		err := d.viewed(ctx, g.first, g.count, func() {
			for _, m := range g.moves {
				for e := range d.m.Lookup(m.First, m.Count) {
					if e.Value != m.From(e.First-m.First) {
						continue
					}
					for _, l := range slices.Collect(left.Lookup(e.First, e.Count)) {
						e := part(e, l.First, l.First+l.Count)
						p := m.p[(e.First-m.First)*layout.BlockSize:][:e.Count*layout.BlockSize]
						still = append(still, move{want: want{Extent: e, p: p}, live: []blockmap.Extent{e}})
						left.Remove(e.First, e.Count, nil) // two may have read it beside each other
					}
				}
			}
		})
		if err != nil {
			return err
		}
	}
	if len(still) == 0 {
		return nil
	}
	err := d.moveTo(ctx, still, watch, func() {})
	if err == nil {
		d.stats.Gathered.Add(int64(len(list)))
	}
	return err
}
