// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/store/mem"
)

// witness is a container that looks at what arrives, from whomever: whether a
// name gets other bytes than it had, and whether an object is deleted that a
// root needs which is the newest, or was so less than horizon ago.
type witness struct {
	store.Store
	box     *mem.Container
	t       testing.TB
	horizon time.Duration

	mu      sync.Mutex
	content map[string][sha256.Size]byte
	newest  layout.Position // root
	reigns  []reign

	pinNeeds map[layout.Position]map[string]bool // of snapshots, by their roots
}

// reign is a root that is or was the newest, and what it needs.
type reign struct {
	needs map[string]bool
	end   time.Time // zero: it is the newest
}

func newWitness(t testing.TB, box *mem.Container, horizon time.Duration) *witness {
	w := &witness{Store: box, box: box, t: t, horizon: horizon, content: map[string][sha256.Size]byte{}, pinNeeds: map[layout.Position]map[string]bool{}}
	list, err := box.List(t.Context(), store.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list {
		b := get(t, box, o.Name)
		w.content[o.Name] = sha256.Sum256(b)
		if at, ok := layout.ParseRootName(o.Name); ok {
			w.reign(at, b)
		}
	}
	return w
}

// get returns an object's bytes.
func get(t testing.TB, s store.Store, name string) []byte {
	t.Helper()
	info, err := s.Head(context.Background(), name)
	if err != nil {
		t.Errorf("look at %s: %v", name, err)
		return nil
	}
	b := make([]byte, info.Size)
	if _, err := s.Get(context.Background(), name, b, store.GetOptions{}); err != nil {
		t.Errorf("look at %s: %v", name, err)
	}
	return b
}

// reign notes a root that has arrived. w.mu is held.
func (w *witness) reign(at layout.Position, b []byte) {
	if !w.newest.Less(at) {
		return
	}
	root, err := layout.ParseRoot(b)
	if err != nil {
		w.t.Errorf("root %v: %v", at, err)
		return
	}
	r := reign{needs: map[string]bool{layout.RootName(at): true}}
	for _, name := range root.Runs.Blocks {
		name := layout.RunName(name)
		r.needs[name] = true
		run, err := layout.ParseRun(get(w.t, w.box, name), root.UUID)
		if err != nil {
			w.t.Errorf("%s, which root %v names: %v", name, at, err)
			return
		}
		for e, err := range run.Entries() {
			if err != nil {
				w.t.Error(err)
				return
			}
			if e.Kind == layout.Data { // or a later run has the blocks: too much does no harm here but for the next lines
				r.needs[layout.LogName(e.At)] = true
			}
		}
	}
	for _, name := range root.Runs.Objects {
		r.needs[layout.RunName(name)] = true
	}
	if !root.Kept.IsZero() {
		r.needs[layout.KeptName(root.Kept)] = true
	}
	w.pins(root, r.needs)
	for name := range live(w.t, w.box, root) {
		r.needs[name+"!"] = true
		if _, err := w.box.Head(context.Background(), name); err != nil {
			w.t.Errorf("root %v needs %s: %v", at, name, err)
		}
	}
	if n := len(w.reigns); n > 0 {
		w.reigns[n-1].end = time.Now()
	}
	w.reigns = append(w.reigns, r)
	w.newest = at
}

// pins notes what the snapshots of a root need, from their own roots and maps.
func (w *witness) pins(root layout.Root, needs map[string]bool) {
	for _, p := range root.Pins {
		of := w.pinNeeds[p.Root]
		if of == nil {
			name := layout.RootName(p.Root)
			pinned, err := layout.ParseRoot(get(w.t, w.box, name))
			if err != nil {
				w.t.Errorf("snapshot %s: %v", p.Name, err)
				continue
			}
			of = map[string]bool{name: true}
			for _, run := range slices.Concat(pinned.Runs.Blocks, pinned.Runs.Objects) {
				of[layout.RunName(run)] = true
			}
			for name := range live(w.t, w.box, pinned) {
				of[name+"!"] = true
			}
			w.pinNeeds[p.Root] = of
		}
		for name := range of {
			needs[name] = true
		}
	}
}

// live returns the names of the data objects that have the bytes of a root's map.
func live(t testing.TB, s store.Store, root layout.Root) map[string]bool {
	d := newDisk(Options{UUID: root.UUID})
	counts := map[layout.Position]int64{}
	for _, name := range root.Runs.Blocks {
		if err := d.loadRun(name, get(t, s, layout.RunName(name)), counts); err != nil {
			t.Error(err)
		}
	}
	if len(root.Runs.Objects) > 0 || root.Table != nil || len(root.Runs.Blocks) == 0 {
		table := newDisk(Options{UUID: root.UUID})
		for _, name := range root.Runs.Objects {
			if err := table.takeTable(name, get(t, s, layout.RunName(name))); err != nil {
				t.Error(err)
			}
		}
		if err := table.takeEntries(root.TableEntries()); err != nil {
			t.Error(err)
		}
		if err := table.sameCounts(counts); err != nil {
			t.Errorf("root at %v: %v", root.At, err)
		}
	}
	names := map[string]bool{}
	for e := range d.m.All() {
		if e.Kind == layout.Data {
			names[layout.LogName(e.At)] = true
		}
	}
	return names
}

func (w *witness) Put(ctx context.Context, name string, data []byte, etag store.ETag) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !strings.HasPrefix(name, "swiftnbd/") || strings.HasPrefix(name, layout.ChildPrefix) { // notes are written again
		return w.Store.Put(ctx, name, data, etag)
	}
	sum := sha256.Sum256(data)
	if old, ok := w.content[name]; ok && old != sum {
		w.t.Errorf("%s was written with other bytes before", name)
	}
	w.content[name] = sum
	if err := w.Store.Put(ctx, name, data, etag); err != nil {
		return err
	}
	if at, ok := layout.ParseRootName(name); ok {
		w.reign(at, data)
	}
	return nil
}

// deleted looks at a deletion. w.mu is held.
func (w *witness) deleted(name string) {
	for _, r := range w.reigns {
		if !r.end.IsZero() && time.Since(r.end) >= w.horizon {
			continue
		}
		if _, ok := layout.ParseLogName(name); ok && r.needs[name+"!"] || !ok && r.needs[name] {
			w.t.Errorf("%s is deleted, and a root needs it that is the newest, or was %v ago", name, w.horizon)
		}
	}
	if at, ok := layout.ParseLogName(name); ok && at.N < layout.FirstCollected && at.Epoch == w.newest.Epoch {
		if root, err := layout.ParseRoot(get(w.t, w.box, layout.RootName(w.newest))); err == nil && root.At.Less(at) {
			w.t.Errorf("%s is deleted, and the newest root, %v, has the log up to %v only", name, w.newest, root.At)
		}
	}
}

func (w *witness) Delete(ctx context.Context, name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deleted(name)
	return w.Store.Delete(ctx, name)
}

func (w *witness) BulkDelete(ctx context.Context, names []string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range names {
		w.deleted(name)
	}
	return w.Store.BulkDelete(ctx, names)
}

// wire is one holder's way to the container.
type wire struct {
	store.Store

	mu      sync.Mutex
	n       int64 // requests so far
	holdAt  int64 // from this one on writes are under way for ever; 0: none
	kinds   map[string]int
	held    []func() // what is under way: calling it makes it arrive
	refused error    // not nil: writes fail with it at once
	dead    bool     // nothing answers
	// late, if not nil, is asked before each write how long it is under way; of
	// more than slow its sender hears nothing.
	late func() time.Duration
}

// slow is how long a sender waits for an answer.
const slow = 30 * time.Second

func newWire(s store.Store) *wire {
	w := &wire{kinds: map[string]int{}}
	w.Store = w.to(s)
	return w
}

// to is the holder's way to another container.
func (w *wire) to(s store.Store) store.Store {
	return wirePuts{store.Wrap(s, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
		return w.around(ctx, op, nil, call)
	}), w, s}
}

// wirePuts has what needs a copy of the caller's data.
type wirePuts struct {
	store.Store
	w *wire
	s store.Store
}

func (p wirePuts) Put(ctx context.Context, name string, data []byte, etag store.ETag) error {
	data = slices.Clone(data)
	call := func(ctx context.Context) error { return p.s.Put(ctx, name, data, etag) }
	return p.w.around(ctx, store.Op{Kind: store.OpPut, Name: name}, data, call)
}

func (w *wire) around(ctx context.Context, op store.Op, data []byte, call func(context.Context) error) error {
	w.mu.Lock()
	w.n++
	hold := w.holdAt > 0 && w.n >= w.holdAt
	refused, dead, late := w.refused, w.dead, w.late
	kind := string(op.Kind)
	if i := strings.LastIndexByte(op.Name, '/'); i > 0 {
		kind += " " + op.Name[:i]
	}
	w.kinds[kind]++
	writes := op.Kind.Writes() && op.Kind != "METADATA HINT"
	switch {
	case dead:
	case !writes, refused != nil:
	case hold:
		w.held = append(w.held, func() { _ = call(context.Background()) })
	}
	w.mu.Unlock()
	switch {
	case dead:
		return fmt.Errorf("%s: %w", op, faulty.ErrCrashed)
	case !writes:
		return call(ctx)
	case refused != nil:
		return fmt.Errorf("%s: %w", op, refused)
	case hold:
		<-ctx.Done()
		return &store.TransportError{Op: op.String(), Sent: true, Err: context.Cause(ctx)}
	case late == nil:
		return call(ctx)
	}
	took := late()
	answer := make(chan error, 1)
	time.AfterFunc(took, func() { answer <- call(context.Background()) })
	t := time.NewTimer(slow)
	defer t.Stop()
	select {
	case err := <-answer:
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.dead || w.refused != nil {
			err = errors.New("the answer came after the lease's end")
		}
		return err
	case <-t.C:
		return &store.TransportError{Op: op.String(), Sent: true, Err: errors.New("no answer")}
	case <-ctx.Done():
		return &store.TransportError{Op: op.String(), Sent: true, Err: context.Cause(ctx)}
	}
}

// take returns what is under way, in any order.
func (w *wire) take(rng *rand.Rand) []func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	held := w.held
	w.held = nil
	rng.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
	return held
}

// arrivals takes what is under way. some has some more of it arrive at each call,
// perhaps none, and rest all that has not arrived yet.
func (w *wire) arrivals(rng *rand.Rand) (some, rest func()) {
	held := w.take(rng)
	land := func(n int) {
		for _, one := range held[:n] {
			one()
		}
		held = held[n:]
	}
	return func() { land(rng.IntN(len(held) + 1)) }, func() { land(len(held)) }
}

func (w *wire) requests() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

// die ends the process at the wire's end.
func (w *wire) die() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead = true
}

// refuse has every later write fail.
func (w *wire) refuse(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused = err
}

// loadRun puts a run into m, and counts the live blocks by it. It counts them in
// counts, too, as the table of objects does.
func (d *Disk) loadRun(name layout.Position, b []byte, counts map[layout.Position]int64) error {
	run, err := parseRun(name, b, d.o.UUID)
	if err != nil {
		return err
	}
	for e, err := range run.Entries() {
		if err != nil {
			return err
		}
		if err := served(e); err != nil {
			return err
		}
		if stored(e.Kind) {
			d.objects.ensure(e.At)
			d.objects.count(e.At, int64(e.Count))
			counts[e.At] += int64(e.Count)
		}
		d.m.Set(e.First, e.Count, extentOf(e).Value, func(old blockmap.Extent) {
			if !e.Blind && stored(old.Kind) {
				counts[old.At] -= int64(old.Count)
			}
			d.replaced(old)
		})
	}
	return nil
}

// sameCounts says which count of the table is another one.
func (d *Disk) sameCounts(counts map[layout.Position]int64) error {
	for at, o := range d.objects.all() {
		if counts[at] != o.live {
			return &layout.DamagedError{What: "root", Why: fmt.Sprintf("its table of objects has %d live blocks for %s, and its runs of blocks %d", o.live, layout.LogName(at), counts[at])}
		}
	}
	for at, n := range counts {
		if n != 0 && !d.objects.has(at) {
			return &layout.DamagedError{What: "root", Why: fmt.Sprintf("its table of objects lacks %s, of which its runs of blocks have %d blocks", layout.LogName(at), n)}
		}
	}
	return nil
}
