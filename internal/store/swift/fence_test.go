// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
	swiftstore "swiftnbd/internal/store/swift"
)

// keyItem is where the container's key is kept (lease.KeyFence).
const keyItem = "Temp-Url-Key-2"

// fenced is a container with a key, and the way of its writer to it.
type fenced struct {
	t      *testing.T
	client *swiftstore.Client
	name   string
	plain  store.Store // with the token
	fence  *store.Fence
	late   *store.Stragglers
	writer store.Store // signed
}

func newFenced(t *testing.T, o swiftstore.Options) *fenced {
	t.Helper()
	f := &fenced{t: t, client: dial(t, o), name: storetest.Name(t) + " é?%", fence: new(store.Fence), late: new(store.Stragglers)}
	f.plain, f.writer = f.client.Container(f.name), f.client.Fenced(f.name, f.fence, f.late)
	if _, err := f.plain.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		page, err := f.plain.List(ctx, store.ListOptions{})
		for _, o := range page {
			_ = f.plain.Delete(ctx, o.Name)
		}
		if derr := f.plain.DeleteContainer(ctx); err != nil || derr != nil {
			t.Logf("left behind: %v, %v", err, derr)
		}
	})
	f.rotate("first-key")
	f.fence.Set(f.grant("first-key"))
	return f
}

// rotate changes the container's key.
func (f *fenced) rotate(key string) {
	f.t.Helper()
	if err := f.plain.SetMetadata(f.t.Context(), map[string]string{keyItem: key}); err != nil {
		f.t.Fatal(err)
	}
}

// grant returns a grant of a minute by the server's clock.
func (f *fenced) grant(key string) store.Grant {
	f.t.Helper()
	sent := time.Now()
	md, err := f.plain.Metadata(f.t.Context())
	if err != nil || md.Date.IsZero() {
		f.t.Fatal(md.Date, err)
	}
	return store.Grant{
		Key: key, Until: sent.Add(time.Minute), Server: md.Date, Taken: sent, Slack: time.Since(sent),
		UntilServer: md.Date.Add(time.Minute),
	}
}

// doubted says whether the store has raised a doubt since it was asked last.
func (f *fenced) doubted() bool {
	select {
	case <-f.fence.Doubts():
		return true
	default:
		return false
	}
}

// refused has a Put and a Delete be refused, and change nothing.
func (f *fenced) refused(what string) {
	f.t.Helper()
	ctx := f.t.Context()
	old := []byte("kept")
	if err := f.plain.Put(ctx, "o", old, storetest.Sum(old)); err != nil {
		f.t.Fatal(err)
	}
	data := []byte("new")
	for name, err := range map[string]error{
		"put":    f.writer.Put(ctx, "o", data, storetest.Sum(data)),
		"delete": f.writer.Delete(ctx, "o"),
	} {
		if !errors.Is(err, store.ErrFenced) || errors.Is(err, store.ErrUnauthorized) || !store.Transient(err) || store.Ambiguous(err) {
			f.t.Errorf("%s: %s: %v", what, name, err)
		}
	}
	if info, err := f.plain.Head(ctx, "o"); err != nil || info.ETag != storetest.Sum(old) {
		f.t.Errorf("%s: %+v, %v", what, info, err)
	}
	if !f.doubted() {
		f.t.Errorf("%s: no doubt was raised", what)
	}
}

// TestFenced has signed writes pass, and those refused that are signed with
// another key, with one that has been changed, and for too long ago.
func TestFenced(t *testing.T) {
	for name, login := range logins(t) {
		t.Run(name, func(t *testing.T) {
			f := newFenced(t, swiftstore.Options{Login: login})
			ctx, data := t.Context(), storetest.Bytes(70_000, 1)
			for _, object := range []string{"o", "disk.part/00000007", "odd é?%&=+ name"} {
				if err := f.writer.Put(ctx, object, data, storetest.Sum(data)); err != nil {
					t.Errorf("put %s: %v", object, err)
				}
				if info, err := f.writer.Head(ctx, object); err != nil || info.ETag != storetest.Sum(data) {
					t.Errorf("head %s: %+v, %v", object, info, err)
				}
				if err := f.writer.Delete(ctx, object); err != nil {
					t.Errorf("delete %s: %v", object, err)
				}
				if err := f.writer.Delete(ctx, object); !errors.Is(err, store.ErrNotFound) {
					t.Errorf("delete %s again: %v", object, err)
				}
			}
			if f.doubted() {
				t.Error("a doubt, and nothing was refused")
			}
			f.fence.Set(f.grant("another-key"))
			f.refused("another key")
			f.fence.Set(f.grant("first-key"))
			if err := f.writer.Put(ctx, "o", data, storetest.Sum(data)); err != nil {
				t.Errorf("its own again: %v", err)
			}
			f.rotate("second-key")
			f.refused("a key that was changed")
			g := f.grant("second-key")
			g.UntilServer = g.Server.Add(-2 * time.Second)
			f.fence.Set(g)
			f.refused("a lease that ended by the server's clock")
			g = f.grant("second-key")
			g.SignedFor = -5 * time.Second
			f.fence.Set(g)
			f.refused("a signature that is too old")

			// Without a key it is the token that counts.
			g.Key = ""
			f.fence.Set(g)
			if err := f.writer.Put(ctx, "o", data, storetest.Sum(data)); err != nil {
				t.Errorf("not signed: %v", err)
			}
			// What the holder's own clock forbids is not sent.
			g.Until = time.Now()
			f.fence.Set(g)
			if err := f.writer.Delete(ctx, "o"); !errors.Is(err, store.ErrLapsed) || f.doubted() {
				t.Errorf("lapsed: %v", err)
			}
			f.fence.Lose(errors.New("somebody has it"))
			if err := f.writer.Delete(ctx, "o"); err == nil || !strings.Contains(err.Error(), "somebody has it") || store.Transient(err) {
				t.Errorf("lost: %v", err)
			}
			if _, err := f.writer.Head(ctx, "o"); err != nil {
				t.Errorf("deleted by whoever lost it: %v", err)
			}
		})
	}
}

// TestCheckFence asks clusters whether they check signatures.
func TestCheckFence(t *testing.T) {
	for name, login := range logins(t) {
		t.Run(name, func(t *testing.T) {
			f := newFenced(t, swiftstore.Options{Login: login})
			if err := f.client.CheckFence(t.Context(), f.name, f.grant("first-key")); err != nil {
				t.Errorf("%v", err)
			}
			// A key that is not the container's: its signatures are no use.
			if err := f.client.CheckFence(t.Context(), f.name, f.grant("another")); !errors.Is(err, store.ErrFenced) {
				t.Errorf("another key: %v", err)
			}
		})
	}
	server, login := embedded(t, devswift.Options{Without: []string{"tempurl"}})
	f := newFenced(t, swiftstore.Options{Login: login})
	for range 2 {
		if err := f.client.CheckFence(t.Context(), f.name, f.grant("first-key")); !errors.Is(err, swiftstore.ErrNoFence) {
			t.Errorf("without tempurl: %v", err)
		}
	}
	// Nor can one that keeps /info to itself be taken at its word.
	server.SetFault(devswift.Rules(devswift.Rule{Prefix: "/info", Action: devswift.Action{Status: 403}}))
	f = newFenced(t, swiftstore.Options{Login: login})
	if err := f.client.CheckFence(t.Context(), f.name, f.grant("first-key")); !errors.Is(err, swiftstore.ErrNoFence) {
		t.Errorf("without tempurl and /info: %v", err)
	}
	// One that lets everybody in refuses no signature.
	server.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == "HEAD" && r.Object != "" {
			return &devswift.Action{Status: 404}
		}
		return nil
	})
	if err := f.client.CheckFence(t.Context(), f.name, f.grant("first-key")); !errors.Is(err, swiftstore.ErrNoFence) {
		t.Errorf("one that checks nothing: %v", err)
	}
	server.SetFault(devswift.Rules(devswift.Rule{Method: "HEAD", Action: devswift.Action{Status: 503}}))
	if err := f.client.CheckFence(t.Context(), f.name, store.Grant{Key: "k"}); err == nil || errors.Is(err, swiftstore.ErrNoFence) || !store.Transient(err) {
		t.Errorf("one that does not answer: %v", err)
	}
}

// TestFencedBody has a lease end while an object is being sent, to a server
// that it reaches slowly: the object must not come about, neither then nor when
// the network goes on, although the kernel has taken all its bytes ("small").
func TestFencedBody(t *testing.T) {
	for name, size := range map[string]int{"small": 60_000, "large": 40 << 20} {
		t.Run(name, func(t *testing.T) {
			server, login := embedded(t, devswift.Options{})
			gate := newGate(t, login.AuthURL)
			login.AuthURL = gate.url + "/auth/v1.0"
			f := newFenced(t, swiftstore.Options{Login: login})
			data := storetest.Bytes(size, 1)
			sum := storetest.Sum(data)
			g := f.grant("first-key")
			g.Until = time.Now().Add(300 * time.Millisecond)
			f.fence.Set(g)
			gate.hold(1000) // the header and a part of the body
			err := f.writer.Put(t.Context(), "o", data, sum)
			var te *store.TransportError
			if !errors.As(err, &te) || !te.Sent || !errors.Is(err, store.ErrLapsed) {
				t.Errorf("put: %v", err)
			}
			gate.release()
			eventually(t, "the request has ended", func() bool { return server.Active() == 0 })
			if _, err := f.plain.Head(t.Context(), "o"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("it is there: %v", err)
			}
		})
	}
}

// gate is a way to a server on which requests can be held up.
type gate struct {
	url string

	mu   sync.Mutex
	left int // bytes that pass of each connection; negative: all
	open chan struct{}
}

func newGate(t *testing.T, to string) *gate {
	g := &gate{left: -1, open: make(chan struct{})}
	to = strings.TrimPrefix(to[:strings.Index(to, "/auth")], "http://")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.url = "http://" + l.Addr().String()
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		l.Close()
		cancel()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			// So that what is held up stays with whoever sends it.
			if err := in.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
				t.Error(err)
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
			wg.Go(func() {
				defer stop()
				g.pass(out, in)
				out.Close()
				in.Close()
			})
			wg.Go(func() {
				_, _ = io.Copy(in, out)
				in.Close()
			})
		}
	})
	return g
}

// pass copies, but for what is held up.
func (g *gate) pass(out, in net.Conn) {
	b := make([]byte, 500)
	for {
		n, err := in.Read(b)
		if n > 0 {
			g.mu.Lock()
			open, held := g.open, false
			if g.left >= 0 {
				if held = g.left < n; !held {
					g.left -= n
				}
			}
			g.mu.Unlock()
			if held {
				<-open
			}
			if _, err := out.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// hold lets n bytes pass and no more.
func (g *gate) hold(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = n
}

func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = -1
	close(g.open)
	g.open = make(chan struct{})
}

// TestFencedLate has a PUT be carried out after a later one of the same object
// was acknowledged: Ordered waits until the server refuses it. Without Ordered,
// or without signatures, the acknowledged one is lost.
func TestFencedLate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name            string
		ordered, signed bool
		late            time.Duration
		kept            bool
	}{
		{"ordered", true, true, 1500 * time.Millisecond, true},
		{"expired", true, true, 6 * time.Second, true},
		{"not ordered", false, true, 1500 * time.Millisecond, false},
		{"not signed", true, false, 1500 * time.Millisecond, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			server, login := embedded(t, devswift.Options{})
			f := newFenced(t, swiftstore.Options{Login: login})
			g := f.grant("first-key")
			g.SignedFor = 3 * time.Second
			if !c.signed {
				g.Key = ""
			}
			f.fence.Set(g)
			s := store.Retry(f.writer, store.Policy{Timeout: 30 * time.Second, Attempt: 200 * time.Millisecond})
			if c.ordered {
				s = store.Ordered(s, f.late)
			}
			server.SetFault(devswift.Rules(devswift.Rule{
				Method: http.MethodPut, Prefix: "/v1/AUTH_test/" + f.name + "/o", Times: 1, Action: devswift.Action{Delay: c.late},
			}))
			old, data := []byte("old"), []byte("new")
			ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
			defer cancel()
			begun := time.Now()
			if err := s.Put(ctx, "o", old, storetest.Sum(old)); err == nil {
				t.Fatal("the first was answered")
			}
			if err := s.Put(t.Context(), "o", data, storetest.Sum(data)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Until(begun.Add(c.late))) // what is late lands then
			eventually(t, "the late request has ended", func() bool { return server.Active() == 0 })
			info, err := f.plain.Head(t.Context(), "o")
			if err != nil {
				t.Fatal(err)
			}
			if kept := info.ETag == storetest.Sum(data); kept != c.kept {
				t.Errorf("what was acknowledged is kept: %t", kept)
			}
		})
	}
}

// TestFencedToken has the token be no use: a signed write needs none.
func TestFencedToken(t *testing.T) {
	server, login := embedded(t, devswift.Options{})
	f := newFenced(t, swiftstore.Options{Login: login})
	var mu sync.Mutex
	tokens := 0
	server.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == http.MethodPut && r.Object != "" {
			mu.Lock()
			defer mu.Unlock()
			if r.Header.Get("X-Auth-Token") != "" {
				tokens++
			}
		}
		return nil
	})
	if err := f.writer.Put(t.Context(), "o", []byte("x"), ""); err != nil {
		t.Fatal(err)
	}
	if tokens > 0 {
		t.Error("the token is sent along")
	}
}

// TestFencedBulk has bulk deletes, which nobody signs, made only while the right to write
// holds.
func TestFencedBulk(t *testing.T) {
	for name, login := range logins(t) {
		t.Run(name, func(t *testing.T) {
			f := newFenced(t, swiftstore.Options{Login: login})
			ctx, data := t.Context(), []byte("kept")
			if err := f.plain.Put(ctx, "o", data, storetest.Sum(data)); err != nil {
				t.Fatal(err)
			}
			lapsed, lost := new(store.Fence), new(store.Fence)
			g := f.grant("first-key")
			g.Until = time.Now()
			lapsed.Set(g)
			why := errors.New("another has it")
			lost.Lose(why)
			for fence, want := range map[*store.Fence]error{new(store.Fence): store.ErrLapsed, lapsed: store.ErrLapsed, lost: why} {
				err := f.client.Fenced(f.name, fence, f.late).BulkDelete(ctx, []string{"o"})
				if errors.Is(err, errors.ErrUnsupported) {
					t.Skip(err)
				}
				if !errors.Is(err, want) || store.Ambiguous(err) {
					t.Errorf("%v, want %v", err, want)
				}
			}
			if _, err := f.plain.Head(ctx, "o"); err != nil {
				t.Errorf("it is deleted: %v", err)
			}
			if err := f.writer.BulkDelete(ctx, []string{"o"}); err != nil {
				t.Error(err)
			}
			if _, err := f.plain.Head(ctx, "o"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("it is there: %v", err)
			}
		})
	}
}
