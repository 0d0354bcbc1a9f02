// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// Making a clone
//
// A clone is made without the parent's lease, which a server may have. What the
// two sides write makes sure that either sees the other:
//
//	who makes a clone          who deletes the snapshot
//	writes a note of it        writes a note that it goes
//	looks for the other note   looks for notes of clones, by the listing and by name
//	reads the pinned root      writes a root without the pin
//	makes the clone
//
// The pinned root and then the note that it goes stay for some minutes, so that
// a slow one finds them missing, or there.

// Parent is a snapshot of which clones are made.
type Parent struct {
	UUID layout.UUID
	Pin  layout.Pin

	sizes map[layout.Position]int64 // of roots, as far as a listing shows them
}

// shortPage is how many roots a page of a listing has when more may follow: Swift's
// own limit is 10,000, and it may be set lower.
const shortPage = 1000

// FindParent finds a snapshot in a disk's container. The disk may be in use. Two
// requests are enough, unless the newest root is not listed yet. A listing may be late
// by minutes, and have an older root only. What it lacks of the same epoch is found by
// name, and with Options.Root and Options.Newest all else, as when the disk is opened.
func FindParent(ctx context.Context, s store.Store, snapshot string, o Options) (*Parent, error) {
	o.Store, o.Epoch = s, 0
	d := newDisk(o)
	defer d.cancel(ErrClosed)
	p := &Parent{sizes: map[layout.Position]int64{}}
	var newest layout.Position
	for page, err := range store.Pages(ctx, s, store.ListOptions{Prefix: layout.RootPrefix}) {
		if err != nil {
			return nil, fmt.Errorf("list the roots: %w", err)
		}
		for _, info := range page {
			if at, ok := layout.ParseRootName(info.Name); ok {
				p.sizes[at] = info.Size
				newest = at // they are in order
			}
		}
		if len(page) < shortPage {
			break // mostly it is the last one, and saves a request
		}
	}
	if hint, ok := layout.ParseRootText(o.Root); ok && newest.Less(hint) {
		newest = hint
	}
	if newest.IsZero() {
		return nil, errNoRoot
	}
	if o.Newest > 0 {
		var err error
		if newest, err = d.rootAfter(ctx, newest); err != nil {
			return nil, err
		}
	}
	for {
		root, err := d.rootOf(ctx, newest, p.sizes[newest])
		if err != nil {
			return nil, err
		}
		p.UUID = root.UUID
		if pin := findPin(root.Pins, snapshot); pin != nil {
			p.Pin = *pin
			return p, nil
		}
		// A listing is late.
		next := newest
		next.N++
		size, ok, err := d.head(ctx, layout.RootName(next))
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("snapshot %s: %w", snapshot, ErrNoSnapshot)
		}
		newest, p.sizes[next] = next, size
	}
}

// rootOf reads a root of any volume. A size of 0 is not known.
func (d *Disk) rootOf(ctx context.Context, at layout.Position, size int64) (root layout.Root, err error) {
	name := layout.RootName(at)
	if size == 0 {
		if size, err = d.headKnown(ctx, name, "the root"); err != nil {
			return root, err
		}
	}
	if size > wholeLimit {
		return root, fmt.Errorf("object %s: %w", name, &layout.DamagedError{What: "root", Why: fmt.Sprintf("it has %d bytes", size)})
	}
	b := make([]byte, size)
	if err := d.getKnown(ctx, name, "the listing", 0, b); err != nil {
		return root, err
	}
	if root, err = layout.ParseRoot(b); err == nil {
		err = root.Check(root.UUID, at)
	}
	if err != nil {
		return root, fmt.Errorf("object %s: %w", name, err)
	}
	return root, nil
}

// Child is a clone that is to be made.
type Child struct {
	Parent *Parent
	// Notes is the parent's container, for who may write there; nil: nobody notes
	// the clone. Base is the same container as the clone's server reaches it.
	Notes, Base store.Store
	// Where the parent is, as the clone has it, and where the clone is, as the
	// parent has it: the URL of the storage, or layout.SameAccount.
	ParentURL, ParentName string
	URL, Name             string

	Store store.Store // the clone's container, which holds no disk
	// Again says that the container was there: a run that was interrupted may have
	// made it, and requests of that may arrive still. Roots is then the number of
	// the last root that it has.
	Again bool
	Roots uint64

	// Set by Clone:
	UUID layout.UUID
	Root layout.Position // the first root
}

// ErrNoNote says that no note of the clone can be written at its parent.
var ErrNoNote = errors.New("the clone cannot be noted at its parent")

// ErrGoing says that a snapshot is being deleted.
var ErrGoing = errors.New("the snapshot is being deleted; if that was interrupted, delete it again")

// Clone notes the clone at its parent and writes its first root. It returns the
// root's name without its prefix, and the size of the disk. The disk is there
// when the container's metadata say so, which is the caller's to do. After an
// error of it, or of that, Forget.
func (c *Child) Clone(ctx context.Context, o Options) (root string, size int64, err error) {
	p := c.Parent
	o.Store, o.Epoch = c.Base, 0
	d := newDisk(o)
	defer d.cancel(ErrClosed)
	c.UUID = layout.NewUUID()
	if c.Again {
		if err := c.remember(ctx); err != nil {
			return "", 0, err
		}
	}
	if c.Notes != nil {
		note := layout.Note{Snapshot: p.Pin.Name, URL: c.URL, Container: c.Name, UUID: c.UUID, Made: time.Now()}
		b, err := note.Marshal()
		if err != nil {
			return "", 0, err
		}
		if err := c.Notes.Put(ctx, c.note(), b, etagOf(b)); err != nil {
			return "", 0, fmt.Errorf("%w: %w", ErrNoNote, err)
		}
		b = []byte(c.note() + "\n")
		if err := c.Notes.Put(ctx, layout.RecentName(p.Pin.Root, c.URL, c.Name), b, etagOf(b)); err != nil {
			return "", 0, fmt.Errorf("%w: %w", ErrNoNote, err)
		}
		switch _, err := c.Notes.Head(ctx, layout.GoneName(p.Pin.Root)); {
		case err == nil:
			return "", 0, fmt.Errorf("snapshot %s: %w", p.Pin.Name, ErrGoing)
		case !errors.Is(err, store.ErrNotFound):
			return "", 0, err
		}
	}
	below, err := d.rootOf(ctx, p.Pin.Root, p.sizes[p.Pin.Root])
	if err != nil {
		return "", 0, err
	}
	if below.UUID != p.UUID {
		return "", 0, &layout.DamagedError{What: "root " + layout.RootName(p.Pin.Root), Why: "it belongs to another volume"}
	}
	clone := &layout.Clone{Base: 1, Root: p.Pin.Root, Snapshot: p.Pin.Name, Size: below.Size, Depth: 1}
	if b := below.Below; b != nil && b.Clone != nil {
		clone.Depth = b.Clone.Depth + 1
	}
	if clone.Depth > MaxDepth {
		return "", 0, fmt.Errorf("it is a clone of a clone, and so on, %d times already, and that is the most: flatten one of them", MaxDepth)
	}
	// A root of an earlier run that arrives late has a smaller number.
	at := layout.Position{N: max(c.Roots+1, uint64(time.Now().Unix()))}
	c.Root = at
	r := layout.Root{
		Requires: []string{layout.FeatureClone}, Name: at, UUID: c.UUID, Size: below.Size,
		Bases: []layout.Base{{Number: 1, URL: c.ParentURL, Container: c.ParentName, UUID: p.UUID}},
		Below: &layout.Below{Clone: clone},
	}
	b, err := r.Marshal()
	if err != nil {
		return "", 0, err
	}
	name := layout.RootName(at)
	if err := c.Store.Put(ctx, name, b, etagOf(b)); err != nil {
		return "", 0, fmt.Errorf("write the first root: %w", err)
	}
	return name[len(layout.RootPrefix):], r.Size, nil
}

// remember takes the uuid of a run that was interrupted: its metadata may arrive
// after ours, and must not make another disk of it. The root tells it, which may have been
// written for another disk than a clone of this parent, and otherwise the note.
func (c *Child) remember(ctx context.Context) error {
	if c.Roots > 0 {
		left, err := FindLeft(ctx, c.Store)
		if err != nil {
			return err
		}
		if left != (layout.UUID{}) {
			c.UUID = left
			return nil
		}
	}
	if c.Notes == nil {
		return nil
	}
	names, err := notesOf(ctx, c.Notes, c.URL, c.Name)
	if err != nil {
		return err
	}
	for _, name := range names {
		info, err := c.Notes.Head(ctx, name)
		var n layout.Note
		if err == nil {
			n, err = readNote(ctx, c.Notes, info)
		}
		switch {
		case err == nil && n.Container == c.Name:
			c.UUID = n.UUID
		case err != nil && !errors.Is(err, store.ErrNotFound):
			return err
		}
	}
	return nil
}

func (c *Child) note() string { return layout.ChildName(c.Parent.Pin.Root, c.URL, c.Name) }

// Forget takes the note back of a clone that was not made.
func (c *Child) Forget(ctx context.Context) error {
	if c.Notes == nil {
		return nil
	}
	if err := c.Notes.Delete(ctx, c.note()); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return nil
}

// Children reads the notes of a disk's clones in its container. With a root only
// those of its snapshot's. A note that cannot be read counts too, and has no
// Container.
func Children(ctx context.Context, s store.Store, root layout.Position) (notes []layout.Note, err error) {
	prefix := layout.ChildPrefix
	if !root.IsZero() {
		prefix += layout.RootText(root) + "-"
	}
	for page, err := range store.Pages(ctx, s, store.ListOptions{Prefix: prefix}) {
		if err != nil {
			return nil, fmt.Errorf("list the clones: %w", err)
		}
		for _, info := range page {
			if _, ok := layout.ParseChildName(info.Name); !ok {
				continue
			}
			n, err := readNote(ctx, s, info)
			if errors.Is(err, store.ErrNotFound) {
				continue // it is gone, and listed still
			}
			if err != nil {
				return nil, err
			}
			notes = append(notes, n)
		}
	}
	return notes, nil
}

// recentChildren reads the notes of a root that were written last. It asks for them
// by name: a listing may be late for as long as servers are away. So Children and
// this together find every note, unless several were written in a time in which the
// listing had none of them.
func recentChildren(ctx context.Context, s store.Store, root layout.Position) ([]layout.Note, error) {
	names := layout.RecentNames(root)
	found := make([]*layout.Note, len(names))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchLimit)
	for i, name := range names {
		g.Go(guarded(func() error {
			n, err := recentChild(gctx, s, name)
			if errors.Is(err, store.ErrNotFound) {
				return nil
			}
			found[i] = &n
			return err
		}))
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var notes []layout.Note
	for _, n := range found {
		if n != nil {
			notes = append(notes, *n)
		}
	}
	return notes, nil
}

// recentChild reads the note that an object of RecentName's names. If that object
// makes no sense, the note is empty.
func recentChild(ctx context.Context, s store.Store, name string) (layout.Note, error) {
	info, err := s.Head(ctx, name)
	if err != nil {
		return layout.Note{}, err
	}
	b := make([]byte, min(info.Size, 1<<10))
	if _, err := s.Get(ctx, name, b, store.GetOptions{Newest: true}); err != nil {
		return layout.Note{}, fmt.Errorf("read object %s: %w", name, err)
	}
	note := strings.TrimSuffix(string(b), "\n")
	if _, ok := layout.ParseChildName(note); !ok {
		return layout.Note{}, nil
	}
	if info, err = s.Head(ctx, note); err != nil {
		return layout.Note{}, err
	}
	return readNote(ctx, s, info)
}

// readNote reads a note. One that is damaged is empty.
func readNote(ctx context.Context, s store.Store, info store.ObjectInfo) (layout.Note, error) {
	b := make([]byte, min(info.Size, 64<<10))
	if _, err := s.Get(ctx, info.Name, b, store.GetOptions{Newest: true}); err != nil {
		return layout.Note{}, fmt.Errorf("read object %s: %w", info.Name, err)
	}
	n, err := layout.ParseNote(b)
	if err != nil {
		return layout.Note{}, nil
	}
	return n, nil
}

// DropNotes deletes the notes of a clone in its parent's container.
func DropNotes(ctx context.Context, s store.Store, url, name string) error {
	names, err := notesOf(ctx, s, url, name)
	if err != nil {
		return err
	}
	return store.DeleteAll(ctx, s, names, store.DeleteOptions{Batch: deleteAtOnce, Batches: 1, Singly: fetchLimit})
}

// Noted says whether a clone has a note in its parent's container.
func Noted(ctx context.Context, s store.Store, url, name string) (bool, error) {
	names, err := notesOf(ctx, s, url, name)
	return len(names) > 0, err
}

// notesOf lists the notes of a clone.
func notesOf(ctx context.Context, s store.Store, url, name string) (names []string, err error) {
	suffix := layout.ChildSuffix(url, name)
	for page, err := range store.Pages(ctx, s, store.ListOptions{Prefix: layout.ChildPrefix}) {
		if err != nil {
			return nil, fmt.Errorf("list the clones: %w", err)
		}
		for _, info := range page {
			if _, ok := layout.ParseChildName(info.Name); ok && strings.HasSuffix(info.Name, suffix) {
				names = append(names, info.Name)
			}
		}
	}
	return names, nil
}

// ChildrenError says that a snapshot, or the disk as a whole, has clones.
type ChildrenError struct {
	Snapshot string // empty: the disk
	Notes    []layout.Note
}

func (e *ChildrenError) Error() string {
	if e.Snapshot == "" {
		return "it is needed by " + NameClones(e.Notes)
	}
	return fmt.Sprintf("snapshot %s is needed by %s", e.Snapshot, NameClones(e.Notes))
}

// NameClones names clones in a message: "its clone a", "its clones a, b and 3
// more".
func NameClones(notes []layout.Note) string {
	if len(notes) == 1 {
		return "its clone " + ListClones(notes)
	}
	return "its clones " + ListClones(notes)
}

// ListClones lists clones: "a", "a, b and 3 more".
func ListClones(notes []layout.Note) string {
	const most = 20
	var names []string
	for i, n := range notes {
		if i == most {
			return strings.Join(names, ", ") + fmt.Sprintf(" and %d more", len(notes)-most)
		}
		switch {
		case n.Container == "":
			names = append(names, "(a note that cannot be read)")
		case n.URL != layout.SameAccount:
			names = append(names, store.OneLine(n.Container)+" (at "+store.OneLine(n.URL)+")")
		default:
			names = append(names, store.OneLine(n.Container))
		}
	}
	if len(names) == 1 {
		return names[0]
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

// announce notes that a snapshot is being deleted, and returns its root. One with
// clones is refused unless force.
func (d *Disk) announce(ctx context.Context, snapshot string, force bool) (root layout.Position, err error) {
	if d.o.Epoch == 0 {
		return root, ErrReadOnly
	}
	// A root that was sent and not answered may be without the snapshot: then it goes,
	// whatever is found here, and the note must stay.
	if err := d.sendAgain(ctx); err != nil {
		return root, err
	}
	d.mu.Lock()
	pin := findPin(d.root.Pins, snapshot)
	if pin == nil {
		d.mu.Unlock()
		return root, fmt.Errorf("snapshot %s: %w", snapshot, ErrNoSnapshot)
	}
	root = pin.Root
	if d.going == nil {
		d.going = map[layout.Position]bool{}
	}
	d.going[root] = true
	d.mu.Unlock()
	defer func() {
		if err != nil {
			d.mu.Lock()
			defer d.mu.Unlock()
			delete(d.going, root) // the note, if it is there, is the next sweep's
		}
	}()
	name := layout.GoneName(root)
	if err := d.unlist(ctx, name); err != nil { // an earlier deletion has left it
		return root, err
	}
	if err := putGone(ctx, d.store, root); err != nil {
		return root, err
	}
	if force {
		return root, nil
	}
	notes, err := Children(ctx, d.store, root)
	if err == nil && len(notes) == 0 {
		notes, err = recentChildren(ctx, d.store, root)
	}
	if err != nil {
		return root, err
	}
	if len(notes) > 0 {
		err := &ChildrenError{snapshot, notes}
		if derr := d.store.Delete(ctx, name); derr != nil && !errors.Is(derr, store.ErrNotFound) {
			return root, fmt.Errorf("%w; and the note that it goes stays: %w", err, derr)
		}
		return root, err
	}
	return root, nil
}

// putGone notes that the pin of the root goes.
func putGone(ctx context.Context, s store.Store, root layout.Position) error {
	text := []byte("A snapshot with this root is being deleted, or was.\n")
	if err := s.Put(ctx, layout.GoneName(root), text, etagOf(text)); err != nil {
		return fmt.Errorf("note that the snapshot goes: %w", err)
	}
	return nil
}

// AnnounceEnd notes in a disk's container that all of its snapshots go, for who has
// the lock and is about to delete it all. Who makes a clone from then on finds that.
// It returns the notes of the clones that are there: with any, or after an error,
// withdraw takes it back.
func AnnounceEnd(ctx context.Context, o Options) (notes []layout.Note, withdraw func(ctx context.Context) error, err error) {
	o.Epoch = 0
	d := newDisk(o)
	defer d.cancel(ErrClosed)
	_, root, err := d.readNewest(ctx)
	if content(err) || errors.Is(err, errNoRoot) || unsupported(err) {
		err = nil // of what is damaged nobody makes a clone
	}
	var names []string
	for _, pin := range root.Pins {
		names = append(names, layout.GoneName(pin.Root))
	}
	withdraw = func(ctx context.Context) error { return newDisk(o).remove(ctx, names) }
	if err != nil {
		return nil, withdraw, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchLimit)
	for _, pin := range root.Pins {
		g.Go(guarded(func() error { return putGone(gctx, d.store, pin.Root) }))
	}
	if err = g.Wait(); err == nil {
		notes, err = Children(ctx, d.store, layout.Position{})
	}
	for _, pin := range root.Pins {
		if err != nil || len(notes) > 0 {
			break
		}
		notes, err = recentChildren(ctx, d.store, pin.Root)
	}
	return notes, withdraw, err
}

// announced is called when a snapshot was deleted that was announced.
func (d *Disk) announced(root layout.Position) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.going, root)
	after := time.Now().Add(2 * d.o.Horizon) // the note outlives the root
	for _, name := range append(layout.RecentNames(root), layout.GoneName(root)) {
		d.discard(garbage{name: name, after: after})
	}
}
