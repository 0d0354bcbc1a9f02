// SPDX-License-Identifier: MIT

package harness

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Wire is a relay on the way to a Swift. All traffic of one nbdkit goes through
// it. The test can read the traffic, and cut the network of this nbdkit while
// others keep theirs.
type Wire struct {
	Cloud *Cloud // the Swift, reached through the wire

	target   string
	listener net.Listener
	ended    sync.WaitGroup

	mu       sync.Mutex    // guards all below
	cut      chan struct{} // not nil: traffic waits until the channel is closed
	broken   bool          // connections are refused
	closed   bool
	conns    map[net.Conn]bool
	requests []*Request
	held     func(*Request) bool // asked once for each request; see CutAt
	heldAt   int64
}

// Request is a request that went over a wire, and how it was answered.
type Request struct {
	Method string
	Path   string // with the account, without the query
	Query  string
	Sent   time.Time // when its head was passed on
	Status int       // 0: not answered, or not yet
}

// Writes says whether the request would change an object of the container.
func (r Request) Writes(container string) bool {
	_, object, ok := strings.Cut(r.Path, "/"+container+"/")
	return ok && object != "" && (r.Method == http.MethodPut || r.Method == http.MethodDelete)
}

// NewWire returns a wire to a Swift with v1 authentication. Swift's answer to a
// login also leads over the wire, since Swift builds it from the Host header.
func NewWire(t testing.TB, c *Cloud) *Wire {
	t.Helper()
	address, _, _ := strings.Cut(strings.TrimPrefix(c.AuthURL, "http://"), "/")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{target: address, listener: l, conns: make(map[net.Conn]bool)}
	w.Cloud = &Cloud{AuthURL: strings.Replace(c.AuthURL, address, l.Addr().String(), 1), User: c.User, Key: c.Key}
	w.ended.Add(1)
	go w.accept()
	t.Cleanup(w.close)
	return w
}

func (w *Wire) close() {
	w.listener.Close()
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.Break()
	w.ended.Wait()
}

func (w *Wire) accept() {
	defer w.ended.Done()
	for {
		conn, err := w.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			w.ended.Add(1)
			go w.relay(conn)
		}
	}
}

// Cut works as if all packets were lost: nothing arrives in either direction,
// and neither side gets an error. After Mend, the bytes that were sent
// meanwhile arrive, if their sender still lives and has not reset the
// connection.
func (w *Wire) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut == nil {
		w.cut = make(chan struct{})
	}
}

// Break resets all connections and refuses new ones, until Mend.
func (w *Wire) Break() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = true
	for c := range w.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		c.Close()
	}
	w.mendLocked()
}

// Mend ends Cut and Break.
func (w *Wire) Mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = w.closed
	w.mendLocked()
}

func (w *Wire) mendLocked() {
	if w.cut != nil {
		close(w.cut)
		w.cut = nil
	}
}

// CutAt cuts the wire in the middle of the first request for which match is
// true, n bytes after its head or a little later.
func (w *Wire) CutAt(n int64, match func(*Request) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held, w.heldAt = match, n
}

// IsCut says whether the wire is cut.
func (w *Wire) IsCut() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut != nil
}

// Requests returns the requests that went over the wire so far.
func (w *Wire) Requests() []Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]Request, len(w.requests))
	for i, r := range w.requests {
		all[i] = *r
	}
	return all
}

// passable waits until the wire is not cut, and says whether it had to wait.
func (w *Wire) passable() (waited bool) {
	for {
		w.mu.Lock()
		cut := w.cut
		w.mu.Unlock()
		if cut == nil {
			return waited
		}
		<-cut
		waited = true
	}
}

// reset says whether the other side has reset a connection, even if there are
// still bytes to read from it.
func reset(c net.Conn) bool {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true
	}
	var info *unix.TCPInfo
	if failed := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); failed != nil || err != nil {
		return true
	}
	return info.State == unix.BPF_TCP_CLOSE
}

// keep remembers a connection for Break, which closes it. It returns false if
// the wire is broken.
func (w *Wire) keep(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.broken {
		w.conns[c] = true
	}
	return !w.broken
}

func (w *Wire) relay(client net.Conn) {
	defer w.ended.Done()
	defer client.Close()
	if !w.keep(client) {
		return
	}
	w.passable()
	server, err := net.Dial("tcp", w.target)
	if err != nil {
		return
	}
	defer server.Close()
	if !w.keep(server) {
		return
	}
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.conns, client)
		delete(w.conns, server)
	}()
	up, down := newTap(), newTap()
	var both sync.WaitGroup
	both.Add(3)
	go func() { defer both.Done(); w.copy(server, client, up) }()
	go func() { defer both.Done(); w.copy(client, server, down) }()
	go func() { defer both.Done(); w.readAlong(up, down) }()
	both.Wait()
}

// copy passes bytes on in one direction until its end.
func (w *Wire) copy(to, from net.Conn, t *tap) {
	defer t.w.Close()
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		for p := b[:n]; len(p) > 0; {
			if w.passable() && reset(from) {
				return // the bytes are lost, and no sender can send them again
			}
			k := t.next(len(p))
			_, _ = t.w.Write(p[:k])
			if _, err := to.Write(p[:k]); err != nil {
				return
			}
			if p = p[k:]; t.passed(k) {
				w.Cut()
			}
		}
		if err != nil {
			if tcp, ok := to.(*net.TCPConn); ok {
				_ = tcp.CloseWrite()
			}
			return
		}
	}
}

// tap copies the passing bytes to a reader, and knows where to cut.
type tap struct {
	r *io.PipeReader
	w *io.PipeWriter

	mu   sync.Mutex
	left int64 // bytes until the cut; negative: none
}

func newTap() *tap {
	r, w := io.Pipe()
	return &tap{r: r, w: w, left: -1}
}

// next returns how many of n bytes may pass at once.
func (t *tap) next(n int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left > 0 {
		return int(min(int64(n), t.left))
	}
	return n
}

// passed says whether this is the place to cut.
func (t *tap) passed(n int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left < 0 {
		return false
	}
	if t.left = max(t.left-int64(n), 0); t.left > 0 {
		return false
	}
	t.left = -1
	return true
}

// readAlong notes the requests of one connection and their answers.
func (w *Wire) readAlong(up, down *tap) {
	asked := make(chan *asking, 100)
	var both sync.WaitGroup
	both.Add(1)
	go func() {
		defer both.Done()
		defer close(asked)
		defer io.Copy(io.Discard, up.r) // the rest must not block the copy
		r := bufio.NewReader(up.r)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			asked <- &asking{req, w.note(req, up)}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
		}
	}()
	r := bufio.NewReader(down.r)
	for a := range asked {
		resp, err := http.ReadResponse(r, a.http)
		if err != nil {
			break
		}
		w.mu.Lock()
		a.noted.Status = resp.StatusCode
		w.mu.Unlock()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			break
		}
	}
	_, _ = io.Copy(io.Discard, down.r)
	for range asked {
	}
	both.Wait()
}

type asking struct {
	http  *http.Request
	noted *Request
}

func (w *Wire) note(req *http.Request, up *tap) *Request {
	r := &Request{Method: req.Method, Path: req.URL.Path, Query: req.URL.RawQuery, Sent: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests = append(w.requests, r)
	if w.held != nil && w.held(r) {
		w.held = nil
		up.mu.Lock()
		up.left = w.heldAt
		up.mu.Unlock()
	}
	return r
}
