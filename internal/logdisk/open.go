// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// Setup writes the first root of a disk of size bytes into its container, and
// returns the root's name without its prefix.
func Setup(ctx context.Context, s store.Store, u layout.UUID, size int64) (string, error) {
	return SetupAfter(ctx, s, u, size, 0)
}

// SetupAfter is Setup in a container that has the roots of so many setups that
// were interrupted: no name is used twice.
func SetupAfter(ctx context.Context, s store.Store, u layout.UUID, size int64, roots uint64) (string, error) {
	at := layout.Position{N: roots + 1}
	name := layout.RootName(at)
	b, err := layout.Root{Name: at, UUID: u, Size: size}.Marshal()
	if err != nil {
		return "", err
	}
	if err := s.Put(ctx, name, b, etagOf(b)); err != nil {
		return "", fmt.Errorf("write the first root: %w", err)
	}
	return name[len(layout.RootPrefix):], nil
}

// Open opens the disk: it reads the newest root and the log after it. With
// Options.Epoch it then ends the log of the former holder, by a root of its own,
// before it returns. Errors are a *layout.DamagedError, an *AwayError, or Swift's.
func Open(ctx context.Context, o Options) (*Disk, error) {
	var d *Disk
	err := whileGone(func() (err error) {
		d = newDisk(o)
		if err = d.recover(ctx); err == nil {
			err = d.openCache()
		}
		if err != nil {
			d.cancel(ErrClosed)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if o.Epoch != 0 {
		if o.Compress && !slices.Contains(d.root.Requires, layout.FeatureZstd) {
			// The root is in Swift before any compressed record is.
			d.root.Requires = append(slices.Clone(d.root.Requires), layout.FeatureZstd)
		}
		if err := d.resend(ctx); err != nil {
			d.Close()
			return nil, err
		}
		if err := d.save(ctx); err != nil {
			d.Close()
			return nil, err
		}
		d.lastWrite.Store(time.Now().UnixNano())
		d.wg.Add(1)
		go d.loop()
		if !o.Brief {
			d.resting.Add(3)
			go d.merging()
			go d.collect()
			go d.gather()
		}
	}
	return d, nil
}

// AwayError says that a data object was acknowledged, and that Swift does not
// find it now: replicas that have it are away. Nothing is lost by it, and
// nothing may be served without it.
type AwayError struct {
	Name string // the object
	By   string // what says that it was acknowledged
}

func (e *AwayError) Error() string {
	return fmt.Sprintf("object %s is in Swift, as %s says, and cannot be found now: the servers that have it are away", e.Name, e.By)
}

// Rewind is for a disk that lacks an object for good. Opening ends with an AwayError
// then, for ever: a log is not cut before what was acknowledged. With Rewind it is, if
// Ask says so. What was written from the object on is given up.
type Rewind struct {
	Wait time.Duration // how long the object is looked for
	// Ask is asked before something is given up. later is how many objects that were
	// written after it have been found: they are given up, too.
	Ask func(lost *AwayError, later int) bool
}

// rewind says whether what lacks the object may be given up.
func (d *Disk) rewind(lost *AwayError, later int) bool {
	return d.o.Rewind != nil && d.o.Rewind.Ask(lost, later)
}

// recover brings the disk to what Swift has of it.
func (d *Disk) recover(ctx context.Context) (err error) {
	// The older moment is for now only: it would keep the one before it in memory, and
	// so on. And a base has runs of its own, whose names may be the same.
	defer func() { d.o.near = nil }()
	at, early := d.o.at, []byte(nil)
	if at.IsZero() {
		if at, early, err = d.newestRoot(ctx); err != nil {
			return err
		}
	}
	d.rootAt = at
	root, err := d.parseRoot(at, early)
	if early == nil || err != nil {
		root, err = d.readRoot(ctx, at)
	}
	var lost *AwayError
	for d.o.Rewind != nil && errors.As(err, &lost) {
		older, lerr := d.olderRoot(ctx, at)
		if lerr != nil || older.IsZero() || !d.rewind(lost, 0) {
			return errors.Join(err, lerr)
		}
		at, d.rootAt = older, older
		root, err = d.readRoot(ctx, at)
	}
	if err != nil {
		return err
	}
	if d.o.Snapshot != "" {
		pin := findPin(root.Pins, d.o.Snapshot)
		if pin == nil {
			return fmt.Errorf("snapshot %s: %w", d.o.Snapshot, ErrNoSnapshot)
		}
		d.rootAt = pin.Root
		if root, err = d.readRoot(ctx, d.rootAt); err != nil {
			return err
		}
	}
	d.setRoot(d.rootAt, root)
	if err := d.setBase(root); err != nil {
		return err
	}
	if d.o.Snapshot != "" || !d.o.at.IsZero() {
		return d.openMap(ctx) // no log is after it
	}
	from := layout.Position{Epoch: at.Epoch, N: 1}
	if root.At.Epoch == at.Epoch {
		from.N = root.At.N + 1
	}
	return d.openMapAndLog(ctx, from)
}

// openMapAndLog reads the map and, beside that, the log from the position on, and
// applies it.
func (d *Disk) openMapAndLog(ctx context.Context, from layout.Position) error {
	logCtx, stop := context.WithCancel(ctx)
	defer stop()
	var (
		whole  int
		log    log
		logErr error
		read   = make(chan struct{})
	)
	go func() {
		defer close(read)
		logErr = guarded(func() (err error) {
			log, whole, err = d.readWholeLog(logCtx, from)
			return err
		})()
	}()
	err := d.openMap(ctx)
	if err == nil {
		err = d.loadKept(ctx)
	}
	if err != nil {
		stop()
	}
	<-read
	if err == nil {
		err = logErr
	}
	if err != nil {
		return err
	}
	d.replay(from, log.objects, whole)
	d.noteUnsure(from, log, whole)
	return nil
}

// openMap reads the indexes of the map, the table of objects, and of a small map
// all of it.
func (d *Disk) openMap(ctx context.Context) error {
	blocks := blocksOf(d.size.Load())
	d.regions = newRegions(blocks, d.o.regionShift)
	tree, err := d.openRuns(ctx, d.root.Runs.Blocks)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.setTree(tree)
	d.mu.Unlock()
	if d.o.at.IsZero() { // otherwise nobody asks for the objects
		if err := d.readTable(ctx, d.root, "the root"); err != nil {
			return err
		}
	}
	if d.o.at.IsZero() && len(d.root.Runs.Objects) == 0 && d.root.Table == nil && len(tree) > 0 {
		if err := d.countTree(ctx); err != nil {
			return err
		}
	}
	var bytes int64
	for _, r := range tree {
		bytes += r.size
	}
	if bytes <= d.wholeMap() {
		n := d.regions.n
		base, err := d.readTree(ctx, tree, 0, n<<d.regions.shift)
		if err != nil {
			return err
		}
		d.mu.Lock()
		d.loaded(0, n, base)
		d.evict()
		d.mu.Unlock()
	}
	for _, r := range tree {
		r.whole = nil
	}
	return nil
}

// logged is a data object as it was found.
type logged struct {
	footer  layout.Footer
	records []layout.Record
	size    int64 // 0: it was not found
}

// beyond is how many numbers behind the last object that was found are looked
// for by name before the log counts as read: about as many uploads as a writer has
// under way at once.
const beyond = 32

// readWholeLog reads the log from the position on, and says how many of its objects
// are of cuts that are whole.
func (d *Disk) readWholeLog(ctx context.Context, from layout.Position) (log log, whole int, err error) {
	for end := d.waitUntil(ctx); ; {
		log, err := d.readLog(ctx, from)
		if err != nil {
			return log, 0, err
		}
		whole := len(log.objects)
		for i, l := range log.objects {
			if l.size == 0 {
				whole = i
				break
			}
		}
		if g := from.N + uint64(whole); log.durable >= g {
			away := &AwayError{Name: layout.LogName(layout.Position{Epoch: from.Epoch, N: g}), By: log.by}
			if gone := d.gone(ctx, notFound(away.Name, fmt.Errorf("object %s: %w", away.Name, store.ErrNotFound))); gone != nil {
				return log, 0, gone
			}
			if time.Now().After(end) {
				if later := log.found() - whole; !d.rewind(away, later) {
					return log, 0, away
				}
				log.objects = log.objects[:whole]
				whole, err = wholeCuts(log.objects, from)
				return log, whole, err
			}
			select {
			case <-time.After(min(time.Second, time.Until(end)+time.Millisecond)):
				continue
			case <-ctx.Done():
				return log, 0, context.Cause(ctx)
			}
		}
		whole, err = wholeCuts(log.objects[:whole], from)
		return log, whole, err
	}
}

// waitUntil returns until when an object that is away is waited for. Where ctx has an
// end, as when the disk is opened, a part of its time is left to look once more and to
// say what is away.
func (d *Disk) waitUntil(ctx context.Context) time.Time {
	wait := d.o.Timeout
	if d.o.Rewind != nil {
		wait = d.o.Rewind.Wait
	}
	if end, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(end)*3/4)
	}
	return time.Now().Add(wait)
}

// replay applies the log from the position on: the first so many of its objects.
func (d *Disk) replay(from layout.Position, objects []logged, whole int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, l := range objects[:whole] {
		d.apply(layout.Position{Epoch: from.Epoch, N: from.N + uint64(i)}, l)
	}
	d.keepTails(from, objects)
	d.at, d.former = d.root.At, layout.Position{Epoch: from.Epoch, N: from.N + uint64(whole) - 1}
	if d.former.N > 0 {
		d.at = d.former
	}
}

// wholeCuts returns how many of the objects, the first of which is at from, are
// in cuts that are whole.
func wholeCuts(log []logged, from layout.Position) (n int, err error) {
	var begun uint64 // the first object of the cut that is not whole yet; 0: none
	for i, l := range log {
		at := from.N + uint64(i)
		switch {
		case l.footer.Collected:
			return 0, fmt.Errorf("object %s: %w", layout.LogName(layout.Position{Epoch: from.Epoch, N: at}),
				&layout.DamagedError{What: "data object", Why: "it is the collector's, and has a client's number"})
		case begun == 0 && l.footer.FirstOfCut != at, begun != 0 && l.footer.FirstOfCut != begun:
			return 0, fmt.Errorf("object %s: %w", layout.LogName(layout.Position{Epoch: from.Epoch, N: at}),
				&layout.DamagedError{What: "data object", Why: fmt.Sprintf("its cut begins at %d, which does not go with the objects before", l.footer.FirstOfCut)})
		case l.footer.LastOfCut:
			begun = 0
		default:
			begun = l.footer.FirstOfCut
		}
		if begun == 0 {
			n = i + 1
		}
	}
	return n, nil
}

// log is what was found of an epoch's log.
type log struct {
	objects []logged // from the first position on; with gaps
	durable uint64   // so far it was acknowledged
	by      string   // who says so
}

// found returns how many objects were found.
func (l *log) found() (n int) {
	for _, o := range l.objects {
		if o.size > 0 {
			n++
		}
	}
	return n
}

// readLog reads the tails of the objects from the position on, as far as there
// are any.
func (d *Disk) readLog(ctx context.Context, from layout.Position) (log, error) {
	var l log
	known := d.o.near.tailsFrom(from)
	listed, last, err := d.listLog(ctx, layout.Position{Epoch: from.Epoch, N: from.N + uint64(len(known))})
	if err != nil {
		return l, err
	}
	if d.o.Durable.Epoch == from.Epoch {
		l.durable, l.by = d.o.Durable.N, "its former holder"
	}
	for missing := uint64(0); missing < beyond || from.N+uint64(len(l.objects)) <= last; {
		n := from.N + uint64(len(l.objects))
		batch := make([]logged, beyond)
		away := make([]*AwayError, beyond) // what may be given up
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(d.o.Connections)
		for i := range batch {
			if k := len(l.objects) + i; k < len(known) {
				batch[i] = known[k]
				continue
			}
			at := layout.Position{Epoch: from.Epoch, N: n + uint64(i)}
			g.Go(guarded(func() (err error) {
				batch[i], err = d.readTail(gctx, at, listed[at.N])
				if d.o.Rewind != nil && errors.As(err, &away[i]) {
					return nil
				}
				return err
			}))
		}
		if err := g.Wait(); err != nil {
			return l, err
		}
		for i, o := range batch {
			if n := n + uint64(i); away[i] != nil && n > l.durable {
				l.durable, l.by = n, away[i].By
			}
			if o.size == 0 {
				missing++
				continue
			}
			missing = 0
			if o.footer.Durable > l.durable {
				l.durable, l.by = o.footer.Durable, layout.LogName(layout.Position{Epoch: from.Epoch, N: n + uint64(i)})
			}
		}
		l.objects = append(l.objects, batch...)
	}
	return l, nil
}

// listLog returns the sizes of the listed objects of from's epoch from its
// number on, and the last number. A listing is late: it says what there is, and
// not what there is not.
func (d *Disk) listLog(ctx context.Context, from layout.Position) (sizes map[uint64]int64, last uint64, err error) {
	sizes = make(map[uint64]int64)
	o := store.ListOptions{
		Prefix:    layout.LogPrefix,
		Marker:    layout.LogName(layout.Position{Epoch: from.Epoch, N: from.N - 1}),
		EndMarker: layout.LogName(layout.Position{Epoch: from.Epoch, N: layout.FirstCollected}),
	}
	for page, err := range store.Pages(ctx, d.store, o) {
		if err != nil {
			return nil, 0, fmt.Errorf("list the log: %w", err)
		}
		for _, info := range page {
			if at, ok := layout.ParseLogName(info.Name); ok && at.Epoch == from.Epoch {
				sizes[at.N] = info.Size
				last = max(last, at.N)
			}
		}
	}
	return sizes, last, nil
}

// readTail reads the records of a data object of size bytes; 0: of unknown size.
// A size of 0 in the result says that it was not found.
func (d *Disk) readTail(ctx context.Context, at layout.Position, size int64) (logged, error) {
	l, _, err := d.readEnd(ctx, at, size)
	return l, err
}

// readEnd is readTail, and returns the bytes that were read, too: all that a small
// object has.
func (d *Disk) readEnd(ctx context.Context, at layout.Position, size int64) (l logged, end []byte, err error) {
	name := layout.LogName(at)
	by := "the listing, or the map,"
	if size == 0 {
		by = "Swift's answer before"
		var ok bool
		if size, ok, err = d.head(ctx, name); err != nil || !ok {
			return logged{}, nil, err
		}
	}
	tail := d.written(at)
	for n := min(size, layout.TailSize); ; {
		if tail == nil {
			tail = make([]byte, n)
			if err := d.getKnown(ctx, name, by, size-n, tail); err != nil {
				return logged{}, nil, err
			}
		}
		var need int64
		l.footer, l.records, need, err = layout.ParseTail(tail, size)
		if err == nil && need > 0 {
			n, tail = need, nil
			continue
		}
		if err == nil {
			err = l.footer.Check(d.o.UUID, at)
		}
		if err != nil {
			return logged{}, nil, fmt.Errorf("object %s: %w", name, err)
		}
		l.size = size
		return l, tail, nil
	}
}

// apply puts a data object's records into the map. d.mu is held.
func (d *Disk) apply(at layout.Position, l logged) {
	d.objects.ensure(at)
	d.objects.setSize(at, l.size)
	d.objects.setDensity(at, densityOfRecords(l.records, l.size))
	for _, r := range l.records {
		d.install(extentOfRecord(at, r))
	}
	d.evict()
	// A disk that is served only grows. An object that was sealed before the root
	// with the new size, and durable after it, has the old one.
	d.size.Store(max(d.size.Load(), l.footer.Size))
	if h, _ := d.objects.get(at); h.live == 0 {
		d.dead(at)
	}
}
