// SPDX-License-Identifier: MIT

package store_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"swiftnbd/internal/store"
)

var errTaken = errors.New("somebody else has it")

// inBubble runs a test whose time costs nothing.
func inBubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, test)
}

func TestFence(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var f store.Fence
		if err := f.Check(); !errors.Is(err, store.ErrLapsed) || f.Lost() != nil || !store.Transient(err) {
			t.Errorf("without a grant: %v, lost %v", err, f.Lost())
		}
		f.Set(store.Grant{Key: "k", Until: time.Now().Add(time.Minute)})
		time.Sleep(time.Minute - 1)
		if g, err := f.Grant(); err != nil || g.Key != "k" {
			t.Errorf("in its last moment: %+v, %v", g, err)
		}
		time.Sleep(time.Nanosecond)
		if err := f.Check(); !errors.Is(err, store.ErrLapsed) {
			t.Errorf("at its end: %v", err)
		}
		f.Set(store.Grant{})
		time.Sleep(1000 * time.Hour)
		if err := f.Check(); err != nil {
			t.Errorf("without an end: %v", err)
		}
		f.Lose(errTaken)
		f.Lose(errors.New("another reason"))
		f.Set(store.Grant{})
		if err := f.Check(); !errors.Is(err, errTaken) || f.Lost() != err || store.Transient(err) {
			t.Errorf("lost: %v", err)
		}
	})
}

// TestFenceClocks has either of the clocks be at the end before the other: the
// machine has slept, or its clock was set.
func TestFenceClocks(t *testing.T) {
	// A time with both readings begins with the wall clock's seconds, in the
	// upper 33 bits but one of 64 (time.Time). There is no other way to a
	// time whose readings contradict each other.
	wall := func(at time.Time, ahead time.Duration) time.Time {
		*(*uint64)(unsafe.Pointer(&at)) += uint64(ahead/time.Second) << 30
		return at
	}
	now := time.Now()
	if at := wall(now, -time.Hour); now.Sub(at) != 0 || now.Round(0).Sub(at.Round(0)) != time.Hour {
		t.Fatalf("time.Time is not what it was: %v, %v", now, at)
	}
	for name, until := range map[string]time.Time{
		"wall": wall(now.Add(time.Hour), -2*time.Hour), "monotonic": wall(now.Add(-time.Hour), 2*time.Hour),
	} {
		var f store.Fence
		f.Set(store.Grant{Until: until})
		if err := f.Check(); !errors.Is(err, store.ErrLapsed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var f store.Fence
	f.Set(store.Grant{Until: now.Add(time.Hour)})
	if err := f.Check(); err != nil {
		t.Error(err)
	}
}

func TestFenceWait(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var f store.Fence
		after := func(d time.Duration, do func()) { time.AfterFunc(d, do) }
		begun := time.Now()
		if err := f.Wait(t.Context(), time.Minute); !errors.Is(err, store.ErrLapsed) || time.Since(begun) != time.Minute {
			t.Errorf("nothing came: %v after %v", err, time.Since(begun))
		}
		begun = time.Now()
		after(time.Second, func() { f.Set(store.Grant{Until: time.Now().Add(-1)}) }) // of no use
		after(10*time.Second, func() { f.Set(store.Grant{Until: time.Now().Add(time.Minute)}) })
		if err := f.Wait(t.Context(), time.Minute); err != nil || time.Since(begun) != 10*time.Second {
			t.Errorf("renewed: %v after %v", err, time.Since(begun))
		}
		if err := f.Wait(t.Context(), 0); err != nil {
			t.Errorf("it holds: %v", err)
		}
		time.Sleep(time.Minute)
		ctx, cancel := context.WithCancelCause(t.Context())
		after(time.Second, func() { cancel(errTaken) })
		if err := f.Wait(ctx, time.Minute); !errors.Is(err, errTaken) {
			t.Errorf("cancelled: %v", err)
		}
		begun = time.Now()
		after(time.Second, func() { f.Lose(errTaken) })
		if err := f.Wait(t.Context(), time.Minute); !errors.Is(err, errTaken) || time.Since(begun) != time.Second {
			t.Errorf("lost: %v after %v", err, time.Since(begun))
		}
	})
}

func TestFenceGuard(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var f store.Fence
		if _, _, err := f.Guard(t.Context()); !errors.Is(err, store.ErrLapsed) {
			t.Errorf("without a grant: %v", err)
		}
		for name, c := range map[string]struct {
			change func()
			want   error
			after  time.Duration
		}{
			"ends":    {func() {}, store.ErrLapsed, time.Minute},
			"renewed": {func() { f.Set(store.Grant{Until: time.Now().Add(time.Minute)}) }, store.ErrLapsed, 90 * time.Second},
		} {
			f.Set(store.Grant{Until: time.Now().Add(time.Minute)})
			ctx, stop, err := f.Guard(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			time.AfterFunc(30*time.Second, c.change)
			<-ctx.Done()
			if took := time.Since(begun); took != c.after || !errors.Is(context.Cause(ctx), c.want) {
				t.Errorf("%s: ended after %v, %v", name, took, context.Cause(ctx))
			}
			stop()
		}
		// Stopped: the caller's context goes on, and no timer is left.
		f.Set(store.Grant{Until: time.Now().Add(time.Minute)})
		for range 100 {
			_, stop, err := f.Guard(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			stop()
			stop()
		}
		// Lost: at the end of what was granted at the latest.
		ctx, stop, err := f.Guard(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		f.Lose(errTaken)
		time.Sleep(time.Minute + 1)
		if !errors.Is(context.Cause(ctx), errTaken) {
			t.Errorf("lost: %v", context.Cause(ctx))
		}
		var forever store.Fence
		forever.Set(store.Grant{})
		ctx, stop, err = forever.Guard(t.Context())
		if err != nil || ctx != t.Context() {
			t.Errorf("without an end: %v", err)
		}
		stop()
	})
}

func TestFenceDoubt(t *testing.T) {
	var f store.Fence
	for range 3 {
		f.Doubt() // nobody listens: it does not wait
	}
	<-f.Doubts()
	select {
	case <-f.Doubts():
		t.Error("three doubts are two")
	default:
	}
}

// TestExpires is how long a signature is good, by the store's clock and by ours.
func TestExpires(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		// What the store's clock shows is 1000 s ahead, and was read at some
		// moment of the two seconds that the request took.
		const ahead = 1000 * time.Second
		for _, late := range []time.Duration{0, 2 * time.Second} {
			taken := time.Now()
			read := taken.Add(late + ahead).Truncate(time.Second)
			time.Sleep(2 * time.Second)
			g := store.Grant{Server: read, Taken: taken, Slack: 2 * time.Second, UntilServer: read.Add(time.Hour)}
			time.Sleep(7300 * time.Millisecond)
			server, local := g.Expires()
			truly := time.Unix(server, 0).Add(-ahead) // of our clock
			if left := time.Until(truly); left < 7*time.Second || left > 12*time.Second {
				t.Errorf("it is good for %v", left)
			}
			if local.Before(truly) || local.After(truly.Add(5*time.Second)) {
				t.Errorf("its end is %v away from what is said to be later", local.Sub(truly))
			}
			g.UntilServer = time.Now().Add(ahead + 3*time.Second)
			if server, _ := g.Expires(); time.Unix(server, 0).After(g.UntilServer) {
				t.Errorf("it is good for longer than the lease: %v, %v", time.Unix(server, 0), g.UntilServer)
			}
			g.UntilServer, g.SignedFor = time.Now().Add(ahead+time.Hour), time.Minute
			if server, _ := g.Expires(); time.Until(time.Unix(server, 0).Add(-ahead)) < 50*time.Second {
				t.Error("it is not good for as long as was asked for")
			}
			time.Sleep(700 * time.Millisecond)
		}
	})
}
