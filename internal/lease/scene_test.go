// SPDX-License-Identifier: MIT

package lease_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/volume"
)

const (
	term = 60 * time.Second
	// grace is lease.Options' own, and a second for what is read of a clock
	// that shows whole seconds.
	grace = 3 * time.Second
)

// scene is a volume in a cluster, and those who want it. It is made in a
// synctest bubble, so that a minute costs nothing, and one who sleeps or waits
// lets the clock go on.
type scene struct {
	t       *testing.T
	cluster *mem.Cluster
	clock   func() time.Time // what the cluster's proxies show

	mu      sync.Mutex
	parties []*party
	log     []string
}

// inScene runs a test in a bubble with a volume that is blank.
func inScene(t *testing.T, test func(*testing.T, *scene)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &scene{t: t, cluster: mem.NewCluster()}
		// As Swift gives it: in whole seconds.
		s.clock = func() time.Time { return time.Now().Truncate(time.Second) }
		time.Sleep(370 * time.Millisecond) // so that they are cut
		s.setup()
		t.Cleanup(func() {
			time.Sleep(10 * term) // whoever is stopped wakes up
			for _, p := range s.parties {
				p.kill()
			}
		})
		test(t, s)
	})
}

func (s *scene) setup() {
	s.t.Helper()
	g, err := geometry.New(16, 10)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := volume.Create(s.t.Context(), s.volume(), g); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) volume() *mem.Container { return s.cluster.Container("v") }

// request is one request of a party.
type request struct {
	store.Op
	n         int    // from 1, in their order; 0 for an object's, which is not counted
	container string // "v" or a lease's
}

// party is one who wants the volume: a process. Its fields are set before its
// requests begin, or else with set.
type party struct {
	*scene
	name  string
	term  time.Duration
	plain bool // the cluster does not check signatures
	again bool // its requests are tried again, as those of our programs

	mu    sync.Mutex
	fence *store.Fence // of the last attempt to take it
	hook  func(r request, call func() error) error
	under func() // between a write's signing and its arrival
	n     int
	dead  bool
	held  *lease.Held
	extra map[string]string // what it has kept in its leases

	refuse bool              // good signatures are refused
	stale  map[string]string // of the volume's items, in copies that are only hints
	hints  int               // how many of those were read
	only   map[string]string // of the volume's items, in all copies
}

// behind has good signatures refused, or not any more.
func (p *party) behind(is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = is
}

func (s *scene) party(name string) *party {
	p := &party{scene: s, name: name, term: term}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parties = append(s.parties, p)
	return p
}

// set changes how the party's requests fare, and counts them anew.
func (p *party) set(hook func(r request, call func() error) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook, p.n = hook, 0
}

var errDead = errors.New("the process is dead")

// kill ends the process: none of its requests is made any more, and those
// under way are not waited for.
func (p *party) kill() {
	p.mu.Lock()
	p.dead, p.hook = true, nil
	held := p.held
	p.mu.Unlock()
	if held != nil {
		held.Keep(context.Background()) // ends its goroutine; what it writes fails
	}
}

// dated shows the scene's clock.
type dated struct {
	store.Store
	p *party
}

func (d dated) Metadata(ctx context.Context) (store.Metadata, error) {
	md, err := d.Store.Metadata(ctx)
	md.Date = d.p.clock()
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	if err == nil {
		maps.Copy(md.Items, d.p.only)
	}
	return md, err
}

// shows has the party see these items of the volume, whatever they are.
func (p *party) shows(items map[string]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.only = items
}

func (d dated) MetadataHint(ctx context.Context) (store.Metadata, error) {
	md, err := d.Metadata(ctx)
	if d.p.stale != nil && err == nil {
		maps.Copy(md.Items, d.p.stale)
		d.p.mu.Lock()
		d.p.hints++
		d.p.mu.Unlock()
	}
	return md, err
}

// reach returns the party's way to a container.
func (p *party) reach(name string) store.Store {
	c := p.cluster.Container(name)
	if fence := p.fences(); name == "v" && fence != nil {
		c = c.Fenced(fence).UnderWay(func() {
			p.mu.Lock()
			under := p.under
			p.mu.Unlock()
			if under != nil {
				under()
			}
		})
	}
	return store.Wrap(dated{c, p}, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
		p.mu.Lock()
		r, hook, dead := request{Op: op, container: name}, p.hook, p.dead
		if op.Name == "" && ctx.Err() == nil {
			p.n++
			r.n = p.n
		}
		p.mu.Unlock()
		if dead {
			return errDead
		}
		if ctx.Err() != nil {
			return &store.TransportError{Op: op.String(), Err: context.Cause(ctx)}
		}
		if hook == nil {
			return call(ctx)
		}
		// What is on its way arrives, whoever waits for it.
		return hook(r, func() error { return call(context.WithoutCancel(ctx)) })
	})
}

func (p *party) options() lease.Options {
	fence := new(store.Fence)
	p.mu.Lock()
	p.fence = fence
	p.mu.Unlock()
	o := lease.Options{
		Store: p.reach("v"), Name: "v", Sibling: p.reach, Holder: p.name, Term: p.term, Fence: fence,
		Log: func(format string, args ...any) { p.note(p.name + ": " + fmt.Sprintf(format, args...)) },
	}
	if p.again {
		policy := store.Policy{Timeout: 20 * time.Second, Base: 10 * time.Millisecond}
		o.Store = store.Retry(o.Store, policy)
		o.Sibling = func(name string) store.Store { return store.Retry(p.reach(name), policy) }
	}
	o.Extra = func() map[string]string {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.extra
	}
	if !p.plain {
		o.CheckFence = func(ctx context.Context, g store.Grant) error {
			md, err := p.reach("v").Metadata(ctx)
			p.mu.Lock()
			defer p.mu.Unlock()
			if err == nil && p.refuse {
				err = store.ErrFenced
			} else if err == nil && md.Items[lease.KeyFence] != g.Key {
				err = errors.New("a good signature is refused")
			}
			return err
		}
	}
	return o
}

func (s *scene) note(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, line)
}

// logged says whether one of the lines for the operator has all of words.
func (s *scene) logged(words ...string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.log, func(line string) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) })
	})
}

// acquire takes the volume.
func (p *party) acquire() (volume.Meta, error) {
	h, meta, err := lease.Acquire(context.Background(), p.options())
	if err == nil {
		p.mu.Lock()
		p.held = h
		p.mu.Unlock()
	}
	return meta, err
}

func (p *party) mustAcquire() volume.Meta {
	p.t.Helper()
	meta, err := p.acquire()
	if err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
	return meta
}

// holds says whether the party believes that it may write.
func (p *party) holds() bool {
	fence := p.fences()
	return fence != nil && fence.Check() == nil
}

// fences returns the fence of the last attempt to take the volume, or nil.
func (p *party) fences() *store.Fence {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fence
}

// has returns what the last attempt gave that was successful, or nil.
func (p *party) has() *lease.Held {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

// write writes an object with the party's name in it.
func (p *party) write() error {
	return p.reach("v").Put(context.Background(), "o", []byte(p.name), "")
}

// written returns who wrote the object last.
func (s *scene) written() string {
	info, err := s.volume().Head(context.Background(), "o")
	if err != nil {
		return ""
	}
	b := make([]byte, info.Size)
	if _, err := s.volume().Get(context.Background(), "o", b, store.GetOptions{}); err != nil {
		s.t.Error(err)
	}
	return string(b)
}

// writes says that the party's writes are kept.
func (p *party) writes(what string) {
	p.t.Helper()
	if err := p.write(); err != nil {
		p.t.Errorf("%s: %s cannot write: %v", what, p.name, err)
	} else if w := p.written(); w != p.name {
		p.t.Errorf("%s: %q is written, not %s's", what, w, p.name)
	}
}

// isLost says that the party has lost the volume, and writes nothing more.
func (p *party) isLost(what string) {
	p.t.Helper()
	if err := p.fence.Lost(); !errors.Is(err, lease.ErrLost) {
		p.t.Errorf("%s: %s has not lost it: %v", what, p.name, err)
	}
	if err := p.write(); !errors.Is(err, lease.ErrLost) {
		p.t.Errorf("%s: %s writes: %v", what, p.name, err)
	}
}

// refused is an error that says that the volume is holder's.
func (s *scene) refused(what string, err error, holder string) *lease.LockedError {
	s.t.Helper()
	var le *lease.LockedError
	if !errors.As(err, &le) || le.Holder != holder || errors.Is(err, lease.ErrLost) {
		s.t.Fatalf("%s: %v, want that it is %s's", what, err, holder)
	}
	return le
}

// cut is a hook that lets nothing pass.
func cut(r request, _ func() error) error {
	return &store.TransportError{Op: r.String(), Err: errors.New("no route to host")}
}

// leases returns the leases that exist.
func (s *scene) leases() []string {
	return slices.DeleteFunc(s.cluster.Names(), func(n string) bool { return n == "v" })
}
