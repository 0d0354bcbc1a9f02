// SPDX-License-Identifier: MIT

package logdisk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// Verification
//
// Verify holds all that Swift has of a disk against each other:
//
//	the newest root      is there and whole, and no later lease has left data
//	its runs             are there and whole, every page of them
//	the log after it     is there as far as it was acknowledged
//	each data object     that the map or the log needs is there; its records are
//	                     whole, every frame has its CRC
//	the map              has each block in an object that counts, at a frame
//	                     of that block
//	each snapshot        has its root and its map, and all that they need is there
//	                     and whole, and in the list of what is kept
//	each chunk           of version 1 that a converted disk needs is there and whole
//	a clone's base       is there, and its map; its data objects are the parent's
//	                     verification
//	all other objects    are needed by nothing: strays
//
// If the root, a run or the log is damaged, it is not known what is needed, and
// nothing counts as a stray.

// VerifyOptions say what Verify does. Nobody may write to the disk meanwhile.
type VerifyOptions struct {
	Quick  bool // footers and records only, and no frames
	Repair bool // delete strays, write the hint anew
	// Held is asked before each change: its error ends the repair.
	Held func() error
	// Begin is told how many bytes (or objects, if Quick) will be read, and Add
	// how many were. Both may be nil.
	Begin func(total int64)
	Add   func(n int64)

	window int64 // bytes of memory for a part of the map; 0: the usual
}

// Finding is one thing that is wrong.
type Finding struct {
	Object string // its name; empty: the container
	Lost   bool   // it is not there, and otherwise damaged
	Why    string
	Blocks int64   // of the disk that cannot be read because of it, or not be trusted
	Ranges []Range // where they are: the first ones
}

// Range is a part of the disk, bytes.
type Range struct{ Off, Len int64 }

// maxRanges bounds Finding.Ranges.
const maxRanges = 16

// Objects counts objects and their bytes.
type Objects struct{ Count, Bytes int64 }

func (o *Objects) add(bytes int64) { o.Count, o.Bytes = o.Count+1, o.Bytes+bytes }

// Report is what Verify has found.
type Report struct {
	Root       string // the newest root, without its prefix; empty: none was found
	Size       int64  // of the disk, bytes
	Runs       int64  // that it names
	Data       Objects
	Live       int64 // blocks that have data
	Frames     int64 // that were checked
	DeadFrames int64 // of them, frames that are damaged, and that nothing needs
	Damage     []Finding
	Judged     bool    // it is known what is needed: the strays are all
	Strays     Objects // that nothing needs and that may be deleted
	Waiting    Objects // that nothing needs and that are too young for that
	Unfinished Objects // of a session that died, after the end of its log: the next session drops them
	Clones     int64   // notes of clones
	Chunks     Objects // of version 1 that the disk needs, and that were checked
	Unmapped   bool    // a chunk of version 1 is not there, and no map says whether it was
	Base       *BaseInfo
	Foreign    []string
	HintOld    bool // the container does not name the newest root
	HintFixed  bool
	Deleted    Objects // strays
}

// verification is one run of Verify.
type verification struct {
	*Disk
	v   VerifyOptions
	r   *Report
	now time.Time // Swift's

	listed Objects         // data objects that the listing has
	last   layout.Position // of them
	runs   map[layout.Position]store.ObjectInfo
	roots  map[layout.Position]store.ObjectInfo
	lists  []store.ObjectInfo                   // of what snapshots need
	gone   map[layout.Position]store.ObjectInfo // notes that snapshots go

	chunks map[geometry.ChunkIndex]store.ObjectInfo // of version 1
	maps   []string                                 // of them

	sound positions     // runs of blocks that are whole
	table *Disk         // the newest root's table of objects; nil: it has none, or it is damaged
	tail  *blockmap.Map // what the log after the root has

	pinned verifiedPins

	from, end layout.Position // the log after the root, both included
	needed    positions

	strayLogs  objectSet // that may be deleted
	strays     Objects   // and how many there are
	waiting    Objects
	unfinished Objects

	found sync.Mutex // guards the following, and r while objects are checked
	bad   map[layout.Position]*badObject
}

// Verify checks the whole disk. Its errors are those of requests, or that the
// disk has something that this program does not know; what is wrong with the
// disk is in the report.
func Verify(ctx context.Context, o Options, vo VerifyOptions) (*Report, error) {
	o.Epoch, o.MapMemory = 0, math.MaxInt64
	d := newDisk(o)
	defer d.cancel(ErrClosed)
	v := &verification{
		Disk: d, v: vo, r: &Report{},
		runs: map[layout.Position]store.ObjectInfo{}, roots: map[layout.Position]store.ObjectInfo{}, gone: map[layout.Position]store.ObjectInfo{},
		chunks: map[geometry.ChunkIndex]store.ObjectInfo{}, tail: blockmap.New(), bad: map[layout.Position]*badObject{},
	}
	md, err := d.store.Metadata(ctx)
	if err != nil {
		return nil, err
	}
	if v.now = md.Date; v.now.IsZero() {
		v.now = time.Now()
	}
	if err := v.list(ctx); err != nil {
		return nil, err
	}
	whole, err := v.readMap(ctx)
	if err != nil {
		return nil, err
	}
	if v.r.Root != "" {
		ok, err := v.checkObjects(ctx)
		if err != nil {
			return nil, err
		}
		whole = whole && ok
		if err := v.checkChunks(ctx); err != nil {
			return nil, err
		}
		if err := v.place(ctx); err != nil {
			return nil, err
		}
	}
	// The checks end early then, and not all of them with an error.
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	v.foreign(ctx)
	v.foreignChunks(v.r.Root == "" || slices.Contains(v.root.Requires, layout.FeatureChunks))
	slices.SortFunc(v.r.Damage, func(a, b Finding) int { return cmp.Compare(a.Object, b.Object) })
	v.r.Judged = whole
	strays := v.findStrays()
	if vo.Repair {
		return v.r, v.repair(ctx, strays)
	}
	return v.r, nil
}

// damaged notes what is wrong with an object.
func (v *verification) damaged(name string, err error) {
	f := Finding{Object: name, Why: reason(err)}
	if f.Lost = away(err); f.Lost {
		f.Why = "it is not there"
	}
	v.r.Damage = append(v.r.Damage, f)
}

// damagedOnce is damaged for what several roots may name.
func (v *verification) damagedOnce(name string, err error) {
	if !slices.ContainsFunc(v.r.Damage, func(f Finding) bool { return f.Object == name }) {
		v.damaged(name, err)
	}
}

// foreign says of damaged objects what lies in their place, if it is a symlink or
// a manifest.
func (v *verification) foreign(ctx context.Context) {
	for i := range v.r.Damage {
		f := &v.r.Damage[i]
		if f.Lost {
			continue
		}
		if info, err := v.store.Head(ctx, f.Object); err == nil && info.Elsewhere != "" {
			f.Why = fmt.Sprintf("it is %s, whose bytes are not its own (%s)", info.Elsewhere, f.Why)
		}
	}
}

// reason returns an error without the name of the object.
func reason(err error) string {
	var d *layout.DamagedError
	if errors.As(err, &d) {
		return d.Error()
	}
	return err.Error()
}

// objectOf returns the object's name, with which the error begins.
func objectOf(err error) string {
	s, _ := strings.CutPrefix(err.Error(), "object ")
	name, _, _ := strings.Cut(s, ": ")
	return name
}

// content says whether the error is about what the disk has, and not about a
// request or about this program.
func content(err error) bool {
	var damaged *layout.DamagedError
	return errors.As(err, &damaged) || away(err)
}

// chunkContent is content for a chunk, as package chunked says it.
func chunkContent(err error) bool {
	return errors.As(err, new(*chunked.ChangedError)) || errors.As(err, new(*chunked.SizeError)) || errors.As(err, new(*chunked.ForeignError))
}

// away says whether the error is that an object is not there.
func away(err error) bool {
	var e *AwayError
	return errors.As(err, &e) || errors.Is(err, store.ErrNotFound)
}

// list reads the container's listing.
func (v *verification) list(ctx context.Context) error {
	for page, err := range store.Pages(ctx, v.store, store.ListOptions{}) {
		if err != nil {
			return fmt.Errorf("list the container: %w", err)
		}
		for _, o := range page {
			if at, ok := layout.ParseLogName(o.Name); ok {
				v.listed.add(o.Size)
				v.last = at
			} else if at, ok := layout.ParseRunName(o.Name); ok {
				v.runs[at] = o
			} else if at, ok := layout.ParseRootName(o.Name); ok {
				v.roots[at] = o
			} else if _, ok := layout.ParseKeptName(o.Name); ok {
				v.lists = append(v.lists, o)
			} else if _, ok := layout.ParseChildName(o.Name); ok {
				v.r.Clones++
			} else if _, ok := layout.ParseRecentName(o.Name); ok {
				// It is only about notes.
			} else if at, ok := layout.ParseGoneName(o.Name); ok {
				v.gone[at] = o
			} else if i, ok := chunked.ParseObjectName(o.Name); ok {
				v.chunks[i] = o
			} else if strings.HasPrefix(o.Name, chunked.MapPrefix) {
				v.maps = append(v.maps, o.Name)
			} else {
				v.r.Foreign = append(v.r.Foreign, o.Name)
			}
		}
	}
	return nil
}

// readMap reads the newest root, its runs and the log after it. whole says that
// all of it was there.
func (v *verification) readMap(ctx context.Context) (whole bool, err error) {
	hint, _ := layout.ParseRootText(v.o.Root)
	at, err := v.findRoot(ctx)
	if errors.Is(err, errNoRoot) {
		v.damaged(layout.RootPrefix, err)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	v.r.HintOld = hint != at
	root, err := v.readRoot(ctx, at)
	switch {
	case err == nil:
	case content(err):
		v.damaged(layout.RootName(at), err)
		return false, nil
	default:
		return false, err
	}
	if err := v.setBase(root); err != nil {
		return false, err
	}
	if err := v.checkBase(ctx); err != nil {
		return false, err
	}
	v.setRoot(at, root)
	v.r.Root, v.r.Size, v.r.Runs = layout.RootText(at), root.Size, int64(len(root.Runs.Blocks))
	whole = true
	bad := func(name string, err error) error {
		if !content(err) {
			return fmt.Errorf("object %s: %w", name, err)
		}
		v.damaged(name, err)
		whole = false
		return nil
	}
	tree, err := v.checkRuns(ctx, root.Runs.Blocks, "the root", bad)
	if err != nil {
		return false, err
	}
	v.setTree(tree)
	known := whole
	ok, err := v.readPins(ctx)
	if err != nil {
		return false, err
	}
	whole = whole && ok
	if known { // after the tables of the snapshots: there is one in memory at a time
		if v.table, ok, err = v.tableOf(ctx, root, "the root"); err != nil {
			return false, err
		}
		whole = whole && ok
	}
	ok, err = v.readTails(ctx)
	if err != nil {
		return false, err
	}
	// Whoever has written data has written a root before.
	if v.last.Epoch > at.Epoch {
		v.damaged(layout.RootName(layout.Position{Epoch: v.last.Epoch, N: 1}),
			fmt.Errorf("it is not there, and %s was written after it: what the disk has since is not known: %w", layout.LogName(v.last), store.ErrNotFound))
		return false, nil
	}
	return whole && ok, nil
}

// tableOf reads the table of objects of a root, which needs it, as by says. It returns
// nil if it is damaged, and for a root of before there were tables.
func (v *verification) tableOf(ctx context.Context, root layout.Root, by string) (table *Disk, whole bool, err error) {
	if len(root.Runs.Objects) == 0 && root.Table == nil {
		return nil, true, nil
	}
	whole = true
	table = newDisk(v.o)
	table.cancel(ErrClosed)
	for _, at := range root.Runs.Objects {
		b, err := v.readWhole(ctx, layout.RunName(at), by)
		if err == nil {
			err = table.takeTable(at, b)
		}
		if err != nil && !content(err) {
			return nil, false, fmt.Errorf("object %s: %w", layout.RunName(at), err)
		}
		if err != nil {
			v.damagedOnce(layout.RunName(at), err)
			whole = false
		}
	}
	if err := table.takeEntries(root.TableEntries()); err != nil {
		return nil, false, fmt.Errorf("object %s: %w", layout.RootName(root.Name), err)
	}
	if !whole {
		return nil, false, nil
	}
	return table, true, nil
}

// readTails applies the log after the root, as opening does, and notes what is
// wrong with it.
func (v *verification) readTails(ctx context.Context) (whole bool, err error) {
	v.from = layout.Position{Epoch: v.rootAt.Epoch, N: 1}
	if v.root.At.Epoch == v.rootAt.Epoch {
		v.from.N = v.root.At.N + 1
	}
	v.end = layout.Position{Epoch: v.from.Epoch, N: v.from.N - 1}
	l, err := v.readLog(ctx, v.from)
	if content(err) {
		// Which one? All of the log lies after it.
		damage := len(v.r.Damage)
		aerr := v.readTailsAlone(ctx)
		if aerr == nil && len(v.r.Damage) == damage { // it lies beyond a gap
			v.damaged(objectOf(err), err)
		}
		return false, aerr
	}
	if err != nil {
		return false, err
	}
	n := 0
	for n < len(l.objects) && l.objects[n].size != 0 {
		n++
	}
	whole = true
	if g := v.from.N + uint64(n); l.durable >= g {
		v.r.Damage = append(v.r.Damage, Finding{Object: layout.LogName(layout.Position{Epoch: v.from.Epoch, N: g}), Lost: true,
			Why: "it is not there, and " + l.by + " says that it was acknowledged: the log after it cannot be used"})
		whole = false
	}
	n, err = wholeCuts(l.objects[:n], v.from)
	if err != nil {
		v.damaged(objectOf(err), err)
		whole = false
	}
	v.applyLog(l.objects[:n])
	return whole, nil
}

// readTailsAlone is readTails for a log of which some object is damaged: it reads
// one after the other, and stops at the first that is.
func (v *verification) readTailsAlone(ctx context.Context) error {
	sizes, _, err := v.listLog(ctx, v.from)
	if err != nil {
		return err
	}
	var good []logged
	for at := v.from; ; at.N++ {
		size, ok := sizes[at.N]
		if !ok {
			break
		}
		l, err := v.readTail(ctx, at, size)
		if content(err) {
			if !away(err) {
				err = fmt.Errorf("%s; the log after it cannot be used", reason(err))
			}
			v.damaged(layout.LogName(at), err)
			break
		}
		if err != nil {
			return err
		}
		good = append(good, l)
	}
	n, err := wholeCuts(good, v.from)
	if err != nil {
		v.damaged(objectOf(err), err)
	}
	v.applyLog(good[:n])
	return nil
}

func (v *verification) applyLog(log []logged) {
	for _, l := range log {
		v.end.N++
		for _, r := range l.records {
			e := extentOfRecord(v.end, r)
			v.tail.Set(e.First, e.Count, e.Value, nil)
		}
		v.size.Store(max(v.size.Load(), l.footer.Size)) // see apply
		v.needed.add(v.end)
	}
	v.r.Size = v.size.Load()
}

// counts says whether the client's object lies within its epoch, as the root has
// that ended.
func (v *verification) counts(at layout.Position) bool {
	for _, e := range v.root.Ended {
		if e.Epoch == at.Epoch {
			return at.N <= e.N
		}
	}
	return false
}

// oldEnough says whether what nothing needs may be deleted.
func (v *verification) oldEnough(o store.ObjectInfo) bool {
	old := func(o store.ObjectInfo) bool {
		return !o.LastModified.IsZero() && v.now.Sub(o.LastModified) >= v.o.Horizon
	}
	return old(v.roots[v.rootAt]) && old(o)
}

// findStrays counts the objects that nothing needs, and returns the names of those that
// may be deleted and are no data objects.
func (v *verification) findStrays() (names []store.ObjectInfo) {
	if !v.r.Judged {
		return nil
	}
	v.r.Strays, v.r.Waiting, v.r.Unfinished = v.strays, v.waiting, v.unfinished
	stray := func(o store.ObjectInfo) {
		if !v.oldEnough(o) {
			v.r.Waiting.add(o.Size)
			return
		}
		v.r.Strays.add(o.Size)
		names = append(names, o)
	}
	_, keepsRun := v.keeps()
	named := runsOf(v.root)
	for at, o := range v.runs {
		if !named[at] && !v.pinned.runs[at] && !keepsRun(at) {
			stray(o)
		}
	}
	for at, o := range v.roots {
		if at != v.rootAt && !pinned(v.root.Pins, at) {
			stray(o)
		}
	}
	for _, o := range v.lists {
		if v.keptStray(o) {
			stray(o)
		}
	}
	for at, o := range v.gone {
		if _, ok := v.roots[at]; !ok || pinned(v.root.Pins, at) { // it outlives the root
			stray(o)
		}
	}
	return names
}

// repair does what needs no guess. With damage, an object that nothing needs may
// have the only copy left of something: then nothing is deleted.
func (v *verification) repair(ctx context.Context, strays []store.ObjectInfo) error {
	if v.r.HintOld && v.r.Root != "" {
		if err := v.v.Held(); err != nil {
			return err
		}
		if err := v.store.SetMetadata(ctx, volume.RootItems(v.o.UUID, v.r.Root, v.r.Size)); err != nil {
			return fmt.Errorf("note the newest root: %w", err)
		}
		v.r.HintFixed = true
	}
	if len(v.r.Damage) > 0 {
		return nil
	}
	for len(strays) > 0 || v.strayLogs.len() > 0 {
		if err := v.v.Held(); err != nil {
			return err
		}
		n := min(len(strays), deleteAtOnce)
		some := slices.Clone(strays[:n])
		strays = strays[n:]
		for _, o := range v.strayLogs.take(deleteAtOnce - n) {
			some = append(some, store.ObjectInfo{Name: layout.LogName(o.at), Size: o.size})
		}
		names := make([]string, len(some))
		for i, o := range some {
			names[i] = o.Name
		}
		if err := v.remove(ctx, names); err != nil {
			return fmt.Errorf("delete %d objects: %w", len(names), err)
		}
		for _, o := range some {
			v.r.Deleted.add(o.Size)
		}
	}
	return nil
}
