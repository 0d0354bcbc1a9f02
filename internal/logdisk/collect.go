// SPDX-License-Identifier: MIT

package logdisk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// The collector
//
// It copies the live blocks of objects that are mostly garbage, or small, into
// new objects. These have numbers of their own, from layout.FirstCollected on,
// and no flush waits for them. A new object is in Swift before the map is told
// of it. So if the process dies, the next one's map has the blocks where they
// were, and the new object is a stray. The old objects are deleted when a root
// has been in Swift for a while that does not need them.

const (
	// collectEvery is Options.Every, and idleAfter Options.Idle, unless they are
	// given.
	collectEvery = time.Second
	idleAfter    = 10 * time.Second
	// idleUse is the use, in percent, below which an idle disk collects an
	// object.
	idleUse = 95
	// manySmall is how many small objects there are before they are joined while
	// clients write: of a block each they fill one. Much of what they have is written
	// again until then.
	manySmall = 1024
	// collectLeast is how many bytes an object wastes at least, all together,
	// before any is collected while clients write.
	collectLeast = 16 << 20
	// collectGroups is how many objects are written before use is looked at
	// again, and collectAtOnce how many of them beside each other: each takes
	// some 20 MiB of memory while it is made.
	collectGroups = 16
	collectAtOnce = 2
	// deleteAtOnce is how many objects one request deletes, and deleteAgain how long
	// the pause is before they are deleted again if it fails.
	deleteAtOnce = 1000
	deleteAgain  = 10 * time.Second
	// collectAgain is how long it rests at most when it has failed: it has read what it
	// was to move, and would read it in vain each second while a quota is used up.
	collectAgain = 2 * deleteAgain
	// badFor is how long the collector leaves an object alone that it could not
	// read.
	badFor = time.Hour
)

// collect is the loop of the collector.
func (d *Disk) collect() {
	defer d.resting.Done()
	defer d.recoverPanic()
	tick := time.NewTicker(d.o.Every)
	defer tick.Stop()
	t := tidying{}
	var said said
	for {
		more, errs := d.tidy(context.WithValue(d.behind, politeKey{}, true), &t)
		if d.behind.Err() != nil {
			return
		}
		for _, err := range errs {
			if said.news(err) {
				d.o.Log("collect garbage: %v (tried again; no data is concerned, but what nothing needs stays in Swift)", err)
			}
		}
		if more && len(errs) == 0 {
			continue
		}
		select {
		case <-tick.C:
		case <-d.behind.Done():
			return
		}
	}
}

// tidying is how far the collector is with what it does now and then.
type tidying struct {
	swept  time.Time
	chunks retirement

	again time.Time     // when to collect again
	pause time.Duration // how long it rests, since it has failed; 0: not at all
}

// collected notes how collecting has ended.
func (t *tidying) collected(err error, every time.Duration) {
	if err == nil {
		t.pause = 0
		return
	}
	t.pause = min(max(2*t.pause, every), collectAgain)
	t.again = time.Now().Add(t.pause)
}

// tidy collects some groups of objects, deletes what is to be deleted, and says
// whether there is more to collect. None of its steps waits for another one to have
// nothing to do, or to succeed: while clients write there may always be something to
// collect, and when a quota is used up nothing can be written, but what is deleted makes
// room.
func (d *Disk) tidy(ctx context.Context, t *tidying) (more bool, errs []error) {
	try := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	if time.Since(t.swept) > sweepEvery {
		if err := d.sweep(ctx); err != nil {
			try(err)
		} else {
			t.swept = time.Now()
		}
	}
	n := 0
	if t.pause == 0 || !time.Now().Before(t.again) {
		var err error
		n, err = d.collectOnce(ctx)
		t.collected(err, d.o.Every)
		try(err)
	}
	if ctx.Err() != nil {
		return false, errs
	}
	if more = n > 0 && t.pause == 0; !more && d.idle() && d.wastes() {
		try(d.save(d.ctx))
	}
	try(d.deleteGarbage(ctx))
	try(d.retireChunks(ctx, &t.chunks))
	return more, errs
}

// idle says whether no client has written lately, and nothing that a client has read
// waits for being put in order: the collector alone would not put it so.
func (d *Disk) idle() bool {
	return time.Since(time.Unix(0, d.lastWrite.Load())) > d.o.Idle && !d.missed.any(time.Now(), d.o.Idle)
}

// wastes says whether objects wait for the next checkpoint to be deleted, or for
// it to tell whether they are needed.
func (d *Disk) wastes() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dying.len() > 0 || d.merged != nil || d.phantoms && !d.delta.empty()
}

// wholes are objects that are so small that all of them came with their tails.
type wholes struct {
	mu   sync.Mutex
	room int64 // bytes that may be kept still
	of   map[layout.Position][]byte
}

func (w *wholes) add(at layout.Position, all []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.room -= int64(len(all)); w.room >= 0 {
		w.of[at] = all
	}
}

// move is what the collector copies: a run of live blocks that become frames, or a
// compressed record as a whole.
type move struct {
	want                   // what is copied
	live []blockmap.Extent // the blocks of it that the map has
}

// collectOnce collects some groups of objects, and returns how many objects it
// has taken on.
func (d *Disk) collectOnce(ctx context.Context) (int, error) {
	if d.o.GC == 0 {
		return 0, nil
	}
	d.moving <- struct{}{}
	defer func() { <-d.moving }()
	var taken atomic.Int64
	paged := d.paged()
	g, ctx := errgroup.WithContext(ctx)
	if g.SetLimit(collectAtOnce); paged {
		g.SetLimit(1) // its groups are beside each other
	}
	for batch := range batches(d.victims(), paged) {
		g.Go(guarded(func() error { return d.collectBatch(ctx, batch, &taken) }))
	}
	err := g.Wait()
	return int(taken.Load()), err
}

// collectBatch writes the live blocks of each of some groups of objects as one object,
// and adds to taken how many objects it has taken on. What is live in them is looked up
// for all groups together, in the order of the map: a page that has blocks of
// many of them is read once.
func (d *Disk) collectBatch(ctx context.Context, groups [][]victim, taken *atomic.Int64) error {
	list := slices.Concat(groups...)
	tails := make([]logged, len(list))
	whole := wholes{room: int64(d.o.Seal) + int64(d.o.Seal)/4, of: make(map[layout.Position][]byte)}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchLimit)
	for i, v := range list {
		g.Go(guarded(func() (err error) {
			var end []byte
			if tails[i], end, err = d.readEnd(gctx, v.at, v.size); err == nil && int64(len(end)) == tails[i].size {
				whole.add(v.at, end)
			}
			if err != nil && d.spare(v.at, err) {
				err = nil
			}
			return err
		}))
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	watch := d.watch(tails)
	defer d.unwatch(watch)
	moves, err := d.find(ctx, list, tails)
	if err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	tails = nil // they are large

	of := make(map[layout.Position]int, len(list)) // the group of each object
	for i, group := range groups {
		for _, v := range group {
			of[v.at] = i
		}
	}
	byGroup := make([][]move, len(groups))
	for _, m := range moves {
		i := of[m.At]
		byGroup[i] = append(byGroup[i], m)
	}
	g, gctx = errgroup.WithContext(ctx)
	g.SetLimit(collectAtOnce)
	for i, group := range groups {
		g.Go(guarded(func() error {
			n, err := d.collectGroup(gctx, group, byGroup[i], whole.of, watch)
			byGroup[i] = nil
			taken.Add(int64(n))
			return err
		}))
	}
	return g.Wait()
}

// collectGroup writes the moves, which are of a group of objects, as one object, and
// returns how many objects it has taken on. whole are the objects that were read
// already. watch has what nobody has written since they were found.
func (d *Disk) collectGroup(ctx context.Context, list []victim, moves []move, whole map[layout.Position][]byte, watch *blockmap.Map) (int, error) {
	moves, err := d.fetchMoves(ctx, list, moves, whole)
	if err != nil {
		return 0, fmt.Errorf("collect: %w", err)
	}
	if len(moves) == 0 {
		d.mu.Lock()
		d.phantom(list)
		d.mu.Unlock()
		return 0, nil // what was in them was written again, or cannot be read
	}
	if err := d.moveTo(ctx, moves, watch, func() { d.phantom(list) }); err != nil {
		return 0, err
	}
	d.stats.Collected.Add(int64(len(list)))
	return len(list), nil
}

// moveTo writes the moves as one object, and has the map say so of what is in the
// watch still. Disk.mu is held when it calls moved.
func (d *Disk) moveTo(ctx context.Context, moves []move, watch *blockmap.Map, moved func()) error {
	slices.SortFunc(moves, func(a, b move) int { return cmp.Compare(a.First, b.First) })
	var o object
	size := 0
	for i := range moves {
		size += moves[i].bytes()
	}
	o.buf = make([]byte, 0, size+tailRoom)
	f := layout.Footer{Collected: true, UUID: d.o.UUID}
	var live int64
	packed := false
	for _, m := range moves {
		r := m.record(&o, &d.o.UUID)
		o.records = append(o.records, r)
		packed = packed || r.Kind == layout.Zstd
		for _, e := range m.live {
			live += int64(e.Count)
		}
	}
	d.mu.Lock()
	d.collected++
	o.at = layout.Position{Epoch: d.o.Epoch, N: layout.FirstCollected + d.collected - 1}
	f.At, f.Durable, f.Size, f.Sealed = o.at, d.durable, d.size.Load(), time.Now()
	d.mu.Unlock()
	data := layout.AppendTail(o.buf, o.records, f)
	if err := d.putOnce(ctx, layout.LogName(o.at), data); err != nil {
		return fmt.Errorf("write collected object %s: %w", o.at, err)
	}
	d.stats.CollectedBytes.Add(int64(len(data)))
	d.mu.Lock()
	defer d.mu.Unlock()
	h := held{size: int64(len(data))}
	if packed {
		// By the blocks that are live now: what is dead in a record that was moved as
		// a whole cannot be had back by moving it once more.
		h.density = densityOf(live, h.size)
	}
	d.objects.add(o.at, h)
	for i, r := range o.records {
		e := extentOfRecord(o.at, r)
		// What nobody has written since it was found is there still.
		for _, l := range moves[i].live {
			for s := range watch.Lookup(l.First, l.Count) {
				d.relocate(part(e, s.First, s.First+s.Count), r.Source)
				d.stats.Moved.Add(int64(s.Count))
			}
		}
	}
	moved()
	d.evict()
	if h, _ := d.objects.get(o.at); h.live == 0 { // all was written again meanwhile
		d.dead(o.at)
	}
	return nil
}

// bytes returns how many bytes the record has.
func (m *move) bytes() int {
	if m.raw {
		return len(m.p)
	}
	return int(m.Count) * layout.FrameSize
}

// record appends the bytes of a move to the object, and returns its record.
func (m *move) record(o *object, u *layout.UUID) layout.Record {
	r := layout.Record{
		First: m.First, Count: uint32(m.Count), Kind: layout.Data, Place: uint32(len(o.buf)),
		Source: m.At, SourcePlace: m.Place, Unpacked: m.Kind == layout.Zstd && !m.raw,
	}
	if m.raw {
		r.Kind = layout.Zstd
		o.buf = append(o.buf, m.p...)
	} else {
		for i := range m.Count {
			o.buf = append(o.buf, make([]byte, layout.FrameSize)...)
			layout.PutFrame(o.buf[len(o.buf)-layout.FrameSize:], m.p[i*layout.BlockSize:][:layout.BlockSize], m.First+i, u)
		}
	}
	r.Bytes = uint32(len(o.buf)) - r.Place
	return r
}

// fetchMoves reads what is to be moved, and leaves out what cannot be read. whole
// are the objects that were read already.
func (d *Disk) fetchMoves(ctx context.Context, list []victim, moves []move, whole map[layout.Position][]byte) ([]move, error) {
	fetch := func(moves []move) error {
		wants := make([]want, 0, len(moves))
		for i := range moves {
			m := &moves[i]
			if m.raw {
				m.p = make([]byte, m.Bytes)
			} else {
				m.p = make([]byte, m.Count*layout.BlockSize)
			}
			if all := whole[m.At]; m.end() > int64(len(all)) {
				wants = append(wants, m.want)
			} else if err := d.unpackWant(m.want, all[m.Place:]); err != nil {
				return err
			}
		}
		return d.fetch(ctx, wants)
	}
	err := fetch(moves)
	if err == nil || !unreadable(err) {
		return moves, err
	}
	// One of them, but which?
	var good []move
	for _, v := range list {
		of := slices.DeleteFunc(slices.Clone(moves), func(m move) bool { return m.At != v.at })
		if err := fetch(of); err == nil {
			good = append(good, of...)
		} else if !d.spare(v.at, err) {
			return nil, err
		}
	}
	return good, nil
}

// spare has the collector leave an object alone for a while whose bytes are
// damaged or not there, and says whether the error says so.
func (d *Disk) spare(at layout.Position, err error) bool {
	if !unreadable(err) {
		return false
	}
	d.o.Log("collect: %v; the object stays as it is: run swiftnbd-ctl verify", err)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.objects.spoil(at, time.Now())
	return true
}

// unreadable says whether the error is an object's own, and not that of the way
// to it.
func unreadable(err error) bool {
	return errors.As(err, new(*layout.DamagedError)) || errors.As(err, new(*layout.UnsupportedError)) || errors.As(err, new(*AwayError)) ||
		errors.Is(err, store.ErrNotFound) || errors.Is(err, io.ErrUnexpectedEOF)
}

// there yields those of the blocks of an object's record that the map has in it.
// d.mu is held, for reading at least.
func (d *Disk) there(at layout.Position, r layout.Record) iter.Seq[blockmap.Extent] {
	return func(yield func(blockmap.Extent) bool) {
		all := extentOfRecord(at, r)
		for e := range d.m.Lookup(all.First, all.Count) {
			if e.Value == all.From(e.First-all.First) && !yield(e) {
				return
			}
		}
	}
}

// movesOf returns how the live blocks of an object's record are moved. A compressed
// record is moved as a whole, unless the frames of what is live are shorter.
func movesOf(at layout.Position, r layout.Record, live []blockmap.Extent) (moves []move) {
	var blocks uint64
	for _, e := range live {
		blocks += e.Count
	}
	if r.Kind == layout.Zstd && blocks*layout.FrameSize >= uint64(r.Bytes) {
		return []move{{want: want{Extent: extentOfRecord(at, r), raw: true}, live: live}}
	}
	for i, e := range live {
		moves = append(moves, move{want: want{Extent: e}, live: live[i : i+1 : i+1]})
	}
	return moves
}

// watch returns the blocks of the objects' records. As long as they are watched,
// those leave it that somebody writes.
func (d *Disk) watch(tails []logged) *blockmap.Map {
	w := blockmap.New()
	for _, t := range tails {
		for _, r := range t.records {
			if stored(r.Kind) {
				w.Set(r.First, uint64(r.Count), blockmap.Value{Kind: layout.Zeroes}, nil)
			}
		}
	}
	d.addWatch(w)
	return w
}

func (d *Disk) addWatch(w *blockmap.Map) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watches = append(d.watches, w)
}

func (d *Disk) unwatch(w *blockmap.Map) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watches = slices.DeleteFunc(d.watches, func(other *blockmap.Map) bool { return other == w })
}

// findAtOnce is how many parts of the map are loaded beside each other to see
// what an object has live.
const findAtOnce = 8

// find returns those blocks of the objects' records that the map has there.
func (d *Disk) find(ctx context.Context, list []victim, tails []logged) (moves []move, err error) {
	type record struct {
		at layout.Position
		layout.Record
	}
	var records []record
	for i, v := range list {
		for _, r := range tails[i].records {
			if stored(r.Kind) {
				records = append(records, record{v.at, r})
			}
		}
	}
	if len(records) == 0 {
		return nil, nil
	}
	slices.SortFunc(records, func(a, b record) int { return cmp.Compare(a.First, b.First) })
	look := func(records []record) (found []move) {
		for _, r := range records {
			if live := slices.Collect(d.there(r.at, r.Record)); len(live) > 0 {
				found = append(found, movesOf(r.at, r.Record, live)...)
			}
		}
		return found
	}
	d.mu.RLock()
	if d.regions.missing == 0 {
		moves = look(records)
		d.mu.RUnlock()
		return moves, nil
	}
	d.mu.RUnlock()
	var mu sync.Mutex // guards moves
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(findAtOnce)
	for len(records) > 0 && ctx.Err() == nil {
		// Those that begin in one region.
		first, n := records[0].First, 0
		limit, end := (first>>d.regions.shift+1)<<d.regions.shift, first
		for ; n < len(records) && records[n].First < limit; n++ {
			end = max(end, records[n].First+uint64(records[n].Count))
		}
		batch := records[:n]
		records = records[n:]
		g.Go(guarded(func() error {
			var found []move
			if err := d.viewed(ctx, first, end-first, func() { found = look(batch) }); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			moves = append(moves, found...)
			return nil
		}))
	}
	return moves, g.Wait()
}

// phantom notes which of the objects have counts that are too high: what was live
// in them was moved. Only a merge can tell. d.mu is held.
func (d *Disk) phantom(list []victim) {
	for _, v := range list {
		if d.objects.see(v.at) {
			d.phantoms = true
		}
	}
	if d.phantoms {
		d.wakeMerging()
	}
}

// remove deletes the objects, which need not be there.
func (d *Disk) remove(ctx context.Context, names []string) error {
	return store.DeleteAll(ctx, d.store, names, store.DeleteOptions{Batch: deleteAtOnce, Batches: 1, Singly: fetchLimit, All: true})
}
