// SPDX-License-Identifier: MIT

package bridge

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/nbd"
)

const diskSize = 1 << 20

// host serves a disk as nbdkit with the plugin does: a write is in memory until a
// flush, and a server that is killed forgets any part of what is in memory.
type host struct {
	t *testing.T

	mu       sync.Mutex // guards all below
	durable  []byte     // what is in Swift
	memory   []byte     // what the server answers from
	last     string     // the mark of the last session
	runs     bool       // there is a server
	mark     string     // of its session, which begins with its first client; empty: none
	after    string
	sessions int
	conns    map[net.Conn]bool
	ending   bool  // every request gets ESHUTDOWN
	failing  bool  // flushes fail
	size     int64 // as it is told
	flushes  int   // that have succeeded
	failures int   // of flushes
	silent   bool  // the server says nothing of sessions
	// held, if not nil, gets a value when a flush is done, and its answer waits
	// until it can be sent again.
	held chan bool
	// late, if not nil, gets the connection of a write that was read, and the write
	// is done when it can be sent again: nbdkit does it also when the connection
	// has broken meanwhile.
	late chan net.Conn
}

func newHost(t *testing.T) *host {
	h := &host{t: t, durable: make([]byte, diskSize), last: "setup@1", conns: make(map[net.Conn]bool), size: diskSize}
	h.start()
	return h
}

// start starts a server.
func (h *host) start() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.runs, h.ending = true, false
}

// stop ends the server in good order: nothing is lost.
func (h *host) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	copy(h.durable, h.memory)
	h.gone()
}

// kill ends the server: of each block of 512 bytes that was not flushed, the old
// or the new bytes are found.
func (h *host) kill(r *rand.Rand) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for off := 0; h.mark != "" && off < diskSize; off += 512 {
		if r.IntN(2) == 0 {
			copy(h.durable[off:off+512], h.memory[off:off+512])
		}
	}
	h.gone()
}

// gone is called with mu held.
func (h *host) gone() {
	if h.mark != "" {
		h.last = h.mark
	}
	h.runs, h.mark, h.memory = false, "", nil
	for c := range h.conns {
		c.Close()
	}
	clear(h.conns)
}

func (h *host) dial(context.Context) (net.Conn, nbd.Export, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.runs {
		return nil, nbd.Export{}, errors.New("connection refused")
	}
	if h.mark == "" {
		h.sessions++
		h.mark, h.after = fmt.Sprintf("host:%d@%d", h.sessions, h.sessions), h.last
		h.memory = bytes.Clone(h.durable)
	}
	ours, theirs := net.Pipe()
	h.conns[theirs] = true
	go h.serve(theirs, h.mark)
	e := nbd.Export{Size: h.size, Flags: nbd.FlagHasFlags | nbd.FlagMultiConn}
	if !h.silent {
		e.Description = "1 MiB in objects of 64 KiB, session " + h.mark
		if h.after != "" {
			e.Description += " after " + h.after
		}
	}
	return ours, e, nil
}

func (h *host) serve(c net.Conn, mark string) {
	defer func() {
		c.Close()
		h.mu.Lock()
		delete(h.conns, c)
		h.mu.Unlock()
	}()
	in := bufio.NewReader(c)
	for {
		r, err := nbd.ReadRequest(in)
		if err != nil || r.Command == nbd.Disconnect {
			return
		}
		var data []byte
		if r.Command == nbd.Write {
			data = make([]byte, r.Length)
			if _, err := io.ReadFull(in, data); err != nil {
				return
			}
		}
		late := h.isLate()
		if late != nil && r.Command == nbd.Write {
			late <- c
			<-late
		}
		answer, ok := h.do(r, data, mark)
		if late != nil && r.Command == nbd.Write {
			late <- c
		}
		if !ok {
			return
		}
		if held := h.holds(); held != nil && r.Command == nbd.Flush {
			held <- true
			<-held
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

func (h *host) holds() chan bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held
}

func (h *host) isLate() chan net.Conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.late
}

// do is one request of the session mark, or returns false when that has ended.
func (h *host) do(r nbd.Request, data []byte, mark string) (answer []byte, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mark != mark {
		return nil, false
	}
	reply := nbd.Reply{Cookie: r.Cookie}
	if h.ending {
		reply.Error = nbd.ErrShutdown
		return reply.Append(nil), true
	}
	var of []byte
	if r.Command != nbd.Flush {
		of = h.memory[r.Offset : r.Offset+uint64(r.Length)]
	}
	switch r.Command {
	case nbd.Read:
		return append(reply.Append(nil), of...), true
	case nbd.Write:
		copy(of, data)
	case nbd.Trim, nbd.Zero:
		clear(of)
	case nbd.Flush:
		if h.failing {
			reply.Error = nbd.ErrIO
			h.failures++
			break
		}
		copy(h.durable, h.memory)
		h.flushes++
	}
	if r.Flags&flagFUA != 0 {
		copy(h.durable[r.Offset:], of)
	}
	return reply.Append(nil), true
}

const flagFUA = 1

// client is the kernel.
type client struct {
	conn net.Conn
	in   *bufio.Reader
}

// do makes one request, and returns what was read.
func (c *client) do(cmd nbd.Command, flags uint16, off, n int, data []byte) ([]byte, error) {
	h := nbd.Request{Flags: flags, Command: cmd, Cookie: rand.Uint64(), Offset: uint64(off), Length: uint32(n)}
	if _, err := c.conn.Write(append(h.Append(nil), data...)); err != nil {
		return nil, err
	}
	reply, err := nbd.ReadReply(c.in)
	if err != nil {
		return nil, err
	}
	if reply.Cookie != h.Cookie {
		return nil, fmt.Errorf("the cookie is %d; want %d", reply.Cookie, h.Cookie)
	}
	if reply.Error != 0 {
		return nil, fmt.Errorf("error %d", reply.Error)
	}
	if cmd != nbd.Read {
		return nil, nil
	}
	out := make([]byte, n)
	_, err = io.ReadFull(c.in, out)
	return out, err
}

func (c *client) must(t *testing.T, cmd nbd.Command, flags uint16, off, n int, data []byte) []byte {
	t.Helper()
	out, err := c.do(cmd, flags, off, n, data)
	if err != nil {
		t.Fatalf("command %d at %d: %v", cmd, off, err)
	}
	return out
}

// begin starts a bridge with a client. wait is how Serve has ended.
func begin(t *testing.T, h *host, o Options) (c *client, wait func() error) {
	t.Helper()
	o.Dial = h.dial
	if o.Wait == 0 {
		o.Wait = time.Minute
	}
	if o.Connections == 0 {
		o.Connections = 3
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	b, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- b.Serve(t.Context(), theirs) }()
	return &client{ours, bufio.NewReader(ours)}, func() error {
		ours.Close()
		return <-served
	}
}

// TestModel lets a client write and read at random while the server is killed and
// restarted. No request fails, each read has what was written last, and at the
// end so does Swift.
func TestModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	h := newHost(t)
	c, wait := begin(t, h, Options{Keep: 64 << 10})
	want := make([]byte, diskSize)
	steps := 3000
	if testing.Short() {
		steps = 1000
	}
	for step := range steps {
		off, n := 512*r.IntN(diskSize/512-32), 512*(1+r.IntN(31))
		if r.IntN(2) == 0 {
			off = 512 * r.IntN(64) // changes often meet
		}
		switch x := r.IntN(100); {
		case x < 55:
			data := make([]byte, n)
			for i := range data {
				data[i] = byte(r.Uint32())
			}
			var fua uint16
			if x < 10 {
				fua = flagFUA
			}
			c.must(t, nbd.Write, fua, off, n, data)
			copy(want[off:], data)
		case x < 65:
			c.must(t, nbd.Trim, 0, off, n, nil)
			clear(want[off : off+n])
		case x < 90:
			if !bytes.Equal(c.must(t, nbd.Read, 0, off, n, nil), want[off:off+n]) {
				t.Fatalf("step %d: wrong bytes at %d", step, off)
			}
		case x < 95:
			c.must(t, nbd.Flush, 0, 0, 0, nil)
		case x < 98:
			h.kill(r)
			h.start()
		default:
			h.stop()
			h.start()
		}
	}
	c.must(t, nbd.Flush, 0, 0, 0, nil)
	if err := wait(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(h.durable, want) {
		t.Error("Swift does not have what was written")
	}
	t.Logf("%d sessions", h.sessions)
	if h.sessions < steps/50 {
		t.Errorf("only %d sessions", h.sessions)
	}
}

// TestAlongside is TestModel for several requests at once, each of its own part
// of the disk, while the server is killed at any moment and answers ESHUTDOWN
// before it ends.
func TestAlongside(t *testing.T) {
	h := newHost(t)
	o := Options{Keep: 64 << 10, Dial: h.dial, Wait: time.Minute, Connections: 3, Log: func(string, ...any) {}}
	b, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- b.Serve(t.Context(), theirs) }()

	const workers, rounds = 8, 150
	const part = diskSize / workers
	var mu sync.Mutex // guards writes to ours, and waiting
	waiting := make(map[uint64]chan nbd.Reply)
	reads := make(chan error, 1)
	go func() {
		in := bufio.NewReader(ours)
		for {
			reply, err := nbd.ReadReply(in)
			if err != nil {
				mu.Lock()
				for _, ch := range waiting {
					select {
					case ch <- nbd.Reply{Error: nbd.ErrIO}: // nobody answers any more
					default:
					}
				}
				mu.Unlock()
				reads <- err
				return
			}
			mu.Lock()
			ch := waiting[reply.Cookie]
			mu.Unlock()
			ch <- reply
		}
	}()
	stop := make(chan struct{})
	var answers atomic.Int64
	var killer sync.WaitGroup
	killer.Go(func() {
		r := rand.New(rand.NewPCG(1, 2))
		for n := 0; ; n++ {
			for had := answers.Load(); answers.Load() < had+20; {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(r.IntN(1000)) * time.Microsecond):
				}
			}
			if n%2 == 0 {
				h.mu.Lock()
				h.ending = true
				h.mu.Unlock()
				time.Sleep(2 * time.Millisecond)
				h.stop()
			} else {
				h.kill(r)
			}
			time.Sleep(time.Millisecond)
			h.start()
		}
	})
	want := make([]byte, diskSize)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 3))
			for i := range rounds {
				off, n := w*part+512*r.IntN(part/512-8), 512*(1+r.IntN(8))
				h := nbd.Request{Command: nbd.Write, Cookie: uint64(w*rounds + i), Offset: uint64(off), Length: uint32(n)}
				data := bytes.Repeat([]byte{byte(r.Uint32()), byte(i)}, n/2)
				if i%20 == 19 {
					h, data = nbd.Request{Command: nbd.Flush, Cookie: h.Cookie}, nil
				}
				ch := make(chan nbd.Reply, 1)
				mu.Lock()
				waiting[h.Cookie] = ch
				_, err := ours.Write(append(h.Append(nil), data...))
				mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
				if reply := <-ch; reply.Error != 0 {
					t.Errorf("error %d", reply.Error)
					return
				}
				answers.Add(1)
				copy(want[off:], data)
			}
		})
	}
	all.Wait()
	close(stop)
	killer.Wait()
	ours.Close()
	<-reads
	if err := <-served; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(h.durable, want) {
		t.Error("Swift does not have what was written")
	}
	if h.sessions < 5 {
		t.Errorf("only %d sessions", h.sessions)
	}
}

// TestRefuse is what must not go on.
func TestRefuse(t *testing.T) {
	write := func(t *testing.T, c *client) { c.must(t, nbd.Write, 0, 0, 512, bytes.Repeat([]byte{1}, 512)) }
	for _, tc := range []struct {
		name    string
		keep    int64
		between func(t *testing.T, h *host, c *client)
		want    string // empty: it goes on
	}{
		{name: "our session was the last", between: func(t *testing.T, h *host, c *client) { write(t, c); h.stop(); h.start() }},
		{name: "somebody else has written", want: "somebody else has had the disk", between: func(t *testing.T, h *host, c *client) {
			write(t, c)
			h.stop()
			h.last = "other:1@2"
			h.start()
		}},
		{name: "neither has written", between: func(t *testing.T, h *host, c *client) {
			h.stop()
			h.last = "setup@1"
			h.start()
		}},
		{name: "set up anew", want: "somebody else has had the disk", between: func(t *testing.T, h *host, c *client) {
			write(t, c)
			h.stop()
			h.last = ""
			h.start()
		}},
		{name: "another size", want: "another size", between: func(t *testing.T, h *host, c *client) {
			h.stop()
			h.size *= 2
			h.start()
		}},
		{name: "no word of sessions", want: "does not say which session", between: func(t *testing.T, h *host, c *client) {
			h.stop()
			h.silent = true
			h.start()
		}},
		{name: "not back in time", want: "has not come back within", between: func(t *testing.T, h *host, c *client) { h.stop() }},
		{name: "more than is kept", keep: 2 * (512 + overhead) / 4, want: "more was written than is kept", between: func(t *testing.T, h *host, c *client) {
			h.mu.Lock()
			h.failing = true
			h.mu.Unlock()
			for range 5 {
				write(t, c)
			}
			h.kill(rand.New(rand.NewPCG(1, 1)))
			h.start()
		}},
		{name: "as much as is kept", keep: 1 << 20, between: func(t *testing.T, h *host, c *client) {
			h.mu.Lock()
			h.failing = true
			h.mu.Unlock()
			for range 5 {
				write(t, c)
			}
			h.kill(rand.New(rand.NewPCG(1, 1)))
			h.mu.Lock()
			h.failing = false
			h.mu.Unlock()
			h.start()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			o := Options{Keep: tc.keep}
			if strings.Contains(tc.want, "back within") {
				o.Wait = 300 * time.Millisecond
			}
			c, wait := begin(t, h, o)
			tc.between(t, h, c)
			_, err := c.do(nbd.Read, 0, 0, 512, nil)
			if (err != nil) != (tc.want != "") {
				t.Errorf("the next read ends with %v", err)
			}
			err = wait()
			var lost *LostError
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (!errors.As(err, &lost) || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("the bridge ends with %v; want a LostError with %q", err, tc.want)
			}
		})
	}
}
