// SPDX-License-Identifier: MIT

package control

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// scene is a container with a server for lease 7, which sees the metadata once a
// second.
type scene struct {
	*testing.T
	box   store.Store
	s     *Server
	lease atomic.Int64
	did   []string
	do    func(r Request) error
	old   atomic.Bool // the server sees what it saw before
	seen  atomic.Pointer[store.Metadata]
}

func newScene(t *testing.T) *scene {
	box := mem.New()
	if _, err := box.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	c := &scene{T: t, box: box, do: func(Request) error { return nil }}
	c.lease.Store(7)
	c.s = &Server{
		Store: box, Lease: c.lease.Load, Log: t.Logf,
		Do: func(ctx context.Context, r Request, answered func(context.Context, error) error) error {
			c.did = append(c.did, r.Verb+" "+r.Argument)
			return answered(ctx, c.do(r))
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	c.s.Start(ctx)
	looking := make(chan struct{})
	go func() {
		defer close(looking)
		for ctx.Err() == nil {
			if !c.old.Load() {
				md, err := box.Metadata(ctx)
				if err != nil {
					return
				}
				c.seen.Store(&md)
			}
			if md := c.seen.Load(); md != nil {
				c.s.Seen(*md)
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-looking
		c.s.Wait()
	})
	return c
}

func (c *scene) items() map[string]string {
	c.Helper()
	synctest.Wait() // and the server's fields may be read
	md, err := c.box.Metadata(c.Context())
	if err != nil {
		c.Fatal(err)
	}
	return md.Items
}

func (c *scene) set(items map[string]string) {
	c.Helper()
	if err := c.box.SetMetadata(c.Context(), items); err != nil {
		c.Fatal(err)
	}
}

func (c *scene) ask(lease int64, argument string) error {
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	return Ask(ctx, c.box, Request{lease, Snapshot, argument}, 500*time.Millisecond, func(context.Context) (bool, error) {
		return c.lease.Load() == lease, nil
	})
}

func TestAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newScene(t)
		if err := c.ask(7, "a b é"); err != nil {
			t.Error(err)
		}
		c.do = func(Request) error { return errors.New("it cannot\nbe " + strings.Repeat("é", 300)) }
		err := c.ask(7, "x")
		var refused *RefusedError
		if !errors.As(err, &refused) || !strings.HasPrefix(refused.Why, `"it cannot\nbe é`) || !utf8.ValidString(refused.Why) {
			t.Errorf("%v", err)
		}
		synctest.Wait()
		if want := []string{"snapshot a b é", "snapshot x"}; strings.Join(c.did, "|") != strings.Join(want, "|") {
			t.Errorf("%q", c.did)
		}
		if items := c.items(); len(items) > 0 {
			t.Errorf("left: %v", items)
		}
	})
}

// TestOnce: what a replica that is behind shows again is not done again.
func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newScene(t)
		c.set(map[string]string{keyAsk + "5": "7 snapshot x"})
		time.Sleep(2500 * time.Millisecond)
		if got := c.items(); !maps.Equal(got, map[string]string{keyAnswer + "5": "7 done"}) {
			t.Errorf("%v", got)
		}
		c.set(map[string]string{keyAsk + "5": "7 snapshot x"}) // as an old copy has it
		time.Sleep(answerLife / 2)
		synctest.Wait()
		if len(c.did) != 1 {
			t.Errorf("%q", c.did)
		}
		time.Sleep(answerLife)
		if got := c.items(); got[keyAnswer+"5"] != "" {
			t.Errorf("nobody has taken the answer, and it stays: %v", got)
		}
	})
}

// TestNotForUs: requests for another lease are not done. Those of former ones are
// removed, with their answers.
func TestNotForUs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newScene(t)
		c.set(map[string]string{
			keyAsk + "1": "6 snapshot old", keyAnswer + "2": "6 done", keyAsk + "3": "nonsense", keyAnswer + "4": "x",
			keyAsk + "5": "8 snapshot later", "Swiftnbd-Other": "stays",
		})
		time.Sleep(10 * time.Second)
		want := map[string]string{keyAsk + "5": "8 snapshot later", "Swiftnbd-Other": "stays"}
		if got := c.items(); len(c.did) > 0 || !maps.Equal(got, want) {
			t.Errorf("did %q; %v", c.did, got)
		}
		c.lease.Store(8) // the lease had run out, and was taken again by us
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(c.did) != 1 || c.did[0] != "snapshot later" {
			t.Errorf("%q", c.did)
		}
	})
}

// TestGone: the holder goes away without an answer, or never gives one.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newScene(t)
		c.old.Store(true)
		time.AfterFunc(10*time.Second, func() { c.lease.Store(9) })
		if err := c.ask(7, "x"); !errors.Is(err, ErrGone) {
			t.Errorf("%v", err)
		}
		if err := c.ask(9, "x"); !errors.Is(err, ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if items := c.items(); len(items) > 0 {
			t.Errorf("left: %v", items)
		}
	})
}

// TestTooLong: what does not fit is told before anything is written.
func TestTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newScene(t)
		if err := c.ask(7, strings.Repeat("x", 250)); err == nil || !strings.Contains(err.Error(), "5 bytes too long") {
			t.Errorf("%v", err)
		}
		if items := c.items(); len(items) > 0 {
			t.Errorf("%v", items)
		}
	})
}

// TestPanic: a fault in doing one request is not the end of the others.
func TestPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newScene(t)
		c.do = func(r Request) error {
			if r.Argument == "bad" {
				panic("bad")
			}
			return nil
		}
		if err := c.ask(7, "bad"); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("%v", err)
		}
		if err := c.ask(7, "good"); err != nil {
			t.Error(err)
		}
	})
}

// TestLateAsk has the request arrive when the one that asked has given up: it was
// under way for longer than that one waited for Swift. Nobody does it any more, however
// often it is seen: whoever asked may have gone on by another way.
func TestLateAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newScene(t)
		var late map[string]string
		lost := &store.TransportError{Op: "POST", Err: errors.New("no answer"), Sent: true}
		line := lateMetadata{c.box, func(items map[string]string) error {
			if late == nil {
				late = items
				return lost
			}
			return nil
		}}
		err := Ask(t.Context(), line, Request{7, DeleteSnapshot, "x"}, time.Second, func(context.Context) (bool, error) { return true, nil })
		if !errors.Is(err, lost) || len(late) != 1 {
			t.Fatalf("%v, %v", err, late)
		}
		time.Sleep(time.Minute)
		for range 2 {
			c.set(late)
			time.Sleep(10 * time.Second)
		}
		synctest.Wait()
		if len(c.did) > 0 {
			t.Errorf("it was done: %q", c.did)
		}
		time.Sleep(2 * answerLife)
		if items := c.items(); len(items) > 0 {
			t.Errorf("left: %v", items)
		}
	})
}

// lateMetadata asks before it sets metadata whether that gets lost.
type lateMetadata struct {
	store.Store
	lost func(items map[string]string) error
}

func (l lateMetadata) SetMetadata(ctx context.Context, items map[string]string) error {
	if err := l.lost(items); err != nil {
		return err
	}
	return l.Store.SetMetadata(ctx, items)
}
