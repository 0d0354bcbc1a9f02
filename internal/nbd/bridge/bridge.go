// SPDX-License-Identifier: MIT

// Package bridge stands between an NBD client that must not see its server end
// (the kernel, with a mounted file system) and a server that may be restarted.
// It passes requests on. When the server ends or dies, it holds what is not
// answered, connects again, and sends it again.
//
// That alone would lose data. A server that dies has acknowledged writes that
// nobody has flushed, and forgets them. So the bridge keeps each change from its
// acknowledgement until a flush that came after it has succeeded (journal.go),
// and makes these changes again before anything else. The client's disk is then
// as if nothing had happened.
//
// This is right only while nobody else writes to the disk. The bridge therefore
// goes on only with a session that follows on its own (session.go). Otherwise it
// gives up, and says why.
//
// States of the bridge:
//
//	up      links is not nil: each request is sent at once
//	down    links is nil: requests wait in pending
//	replay  links is nil: the journal's changes are made on a new connection
//	ended   the client has left, or the bridge has given up
package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"swiftnbd/internal/nbd"
	"swiftnbd/internal/words"
)

// Options say how a bridge works.
type Options struct {
	// Dial connects to the server and does the handshake.
	Dial func(ctx context.Context) (net.Conn, nbd.Export, error)
	// Connections is how many connections are made to the server, if it allows
	// more than one.
	Connections int
	// Wait is how long the server may be away before the bridge gives up.
	Wait time.Duration
	// Keep is how many bytes of changes are kept before the bridge flushes by
	// itself; 0 is DefaultKeep. Four times as many are kept at most.
	Keep int64
	// Log takes one line for the operator.
	Log func(format string, args ...any)
}

// DefaultKeep is as much as the server's own cache holds dirty in a few seconds.
const DefaultKeep = 32 << 20

// maxPayload is the length of the largest request, bytes: the protocol's limit
// for clients that do not ask.
const maxPayload = 32 << 20

// Bridge passes the requests of one client on.
//
// LOCK ORDER: mu, then nothing. toClient is held for the write of one reply, and
// never with mu.
type Bridge struct {
	o      Options
	export nbd.Export

	toClient sync.Mutex

	mu      sync.Mutex // guards all below
	room    *sync.Cond // of mu: what take waits for may have come
	session session
	links   []*link             // nil: down
	broken  chan struct{}       // closed when links go down
	why     error               // why they did
	next    uint64              // the number of the next request
	left    []*link             // that were taken down since the server was last there
	loose   bool                // a change of the journal was sent again without an answer
	pending map[uint64]*request // not answered yet, by number
	journal journal
	flusher bool // a flush of our own is under way
	failed  bool // the last one failed
	gone    bool // the client has left
	// lastFlush says that the flush after the client's last change was sent.
	lastFlush bool
	settled   chan struct{} // closed when the client has left and all is answered
	ended     bool
}

// request is one request of the client, or of our own.
type request struct {
	nbd.Request
	number uint64 // its cookie on the way to the server
	data   []byte // of a write
	before uint64 // of a flush: it covers the journal's changes up to here
	own    bool   // nobody waits for the answer
	link   *link  // where the server may have it from, or be about to do so; guarded by Bridge.mu
}

// link is one connection to the server.
type link struct {
	conn    net.Conn
	queue   chan *request
	waiting int // requests without an answer; guarded by Bridge.mu
}

// maxPending is how many requests may be under way. The kernel has 128 on one
// connection.
const maxPending = 1024

// LostError says that the bridge has given up: from now on the disk is not what
// the client takes it for.
type LostError struct{ Err error }

func (e *LostError) Error() string { return e.Err.Error() }
func (e *LostError) Unwrap() error { return e.Err }

// New connects to the server.
func New(ctx context.Context, o Options) (*Bridge, error) {
	if o.Keep == 0 {
		o.Keep = DefaultKeep
	}
	b := &Bridge{o: o, pending: make(map[uint64]*request), settled: make(chan struct{})}
	b.room = sync.NewCond(&b.mu)
	b.journal.limit = 4 * o.Keep
	conn, e, err := o.Dial(ctx)
	if err != nil {
		return nil, err
	}
	b.export, b.session = e, sessionOf(e)
	conns, err := b.dialMore(ctx, conn)
	if err != nil {
		return nil, err
	}
	b.up(conns)
	return b, nil
}

// Export returns what the client is to be told of the export. It is one
// connection's, whatever the server allows.
func (b *Bridge) Export() nbd.Export {
	e := b.export
	e.Flags &^= nbd.FlagMultiConn
	return e
}

// CanResume returns an error if the server says nothing by which the bridge
// could know its disk again.
func (b *Bridge) CanResume() error {
	if b.export.Flags&nbd.FlagReadOnly != 0 || b.session.mark != "" {
		return nil
	}
	return errors.New("the server does not say which session of the disk it serves: it is not nbdkit with the swift plugin, or an older one")
}

// Close ends a bridge that serves no client yet.
func (b *Bridge) Close() error { return b.end(nil) }

// dialMore returns first and the further connections that the server allows.
func (b *Bridge) dialMore(ctx context.Context, first net.Conn) ([]net.Conn, error) {
	conns := []net.Conn{first}
	for len(conns) < b.o.Connections && b.export.Flags&nbd.FlagMultiConn != 0 {
		c, e, err := b.o.Dial(ctx)
		if err == nil && sessionOf(e) != b.session {
			c.Close()
			err = errors.New("the server has changed between two connections")
		}
		if err != nil {
			closeAll(conns)
			return nil, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}

// Serve serves the client until it leaves. After a *LostError, or any other
// error, the client is to be told that the disk has gone.
func (b *Bridge) Serve(ctx context.Context, client net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer client.Close()
	b.mu.Lock()
	for _, l := range b.links {
		b.start(l, client)
	}
	b.mu.Unlock()
	go b.read(client)
	go b.ping(ctx)
	for {
		b.mu.Lock()
		broken := b.broken
		b.mu.Unlock()
		select {
		case <-b.settled:
			return b.end(nil)
		case <-ctx.Done():
			return b.end(context.Cause(ctx))
		case <-broken:
		}
		if err := b.resume(ctx, client); err != nil {
			return b.end(err)
		}
	}
}

// end ends the bridge, whose client has left or has to be given up.
func (b *Bridge) end(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.room.Broadcast()
	for _, l := range b.links {
		_, _ = l.conn.Write(nbd.Request{Command: nbd.Disconnect}.Append(nil))
	}
	b.takeDown(nil)
	b.forgetLinks()
	if err == nil && b.journal.len() > 0 {
		err = fmt.Errorf("the last flush failed: %s may not be in Swift", words.Count(b.journal.bytes, "written byte"))
	}
	return err
}

// read takes the client's requests until the client leaves.
func (b *Bridge) read(client io.Reader) {
	in := bufio.NewReaderSize(client, 256<<10)
	for {
		h, err := nbd.ReadRequest(in)
		if err != nil || h.Command == nbd.Disconnect {
			break
		}
		r := &request{Request: h}
		if h.Command == nbd.Write {
			if h.Length > maxPayload {
				break
			}
			r.data = make([]byte, h.Length)
			if _, err := io.ReadFull(in, r.data); err != nil {
				break
			}
		}
		if !b.take(r) {
			return
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = true
	b.settleLocked()
}

// take takes a request of the client, and returns false when the bridge has
// ended. It waits while the journal is full, unless a flush has failed: the
// client would wait for as long as Swift is away.
func (b *Bridge) take(r *request) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.ended && (len(b.pending) >= maxPending || r.Command.Changes() && b.journal.full() && !b.failed) {
		b.room.Wait()
	}
	if b.ended {
		return false
	}
	b.sendLocked(r)
	return true
}

// sendLocked gives the request a number, and sends it if the bridge is up.
func (b *Bridge) sendLocked(r *request) {
	b.next++
	r.number = b.next
	if r.Command == nbd.Flush {
		r.before = b.journal.last
	}
	b.pending[r.number] = r
	if len(b.links) > 0 {
		b.passLocked(r)
	}
}

// passLocked gives the request to the link with the shortest queue.
func (b *Bridge) passLocked(r *request) {
	l := slices.MinFunc(b.links, func(a, c *link) int { return a.waiting - c.waiting })
	l.waiting++
	r.link = l
	l.queue <- r // it has room for all that can be under way
}

// flushLocked sends a flush of our own.
func (b *Bridge) flushLocked() {
	b.flusher = true
	b.sendLocked(&request{Request: nbd.Request{Command: nbd.Flush}, own: true})
}

// up makes conns the links.
func (b *Bridge) up(conns []net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forgetLinks()
	b.links, b.broken = nil, make(chan struct{})
	for _, c := range conns {
		b.links = append(b.links, &link{conn: c, queue: make(chan *request, maxPending+1)})
	}
	for _, n := range b.numbersLocked() {
		b.passLocked(b.pending[n])
	}
}

// numbersLocked returns the numbers of the requests without an answer, in their
// order.
func (b *Bridge) numbersLocked() []uint64 {
	numbers := make([]uint64, 0, len(b.pending))
	for n := range b.pending {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers
}

// start starts the two goroutines of a link. They end with its connection.
func (b *Bridge) start(l *link, client io.Writer) {
	go func() {
		for r := range l.queue {
			h := r.Request
			h.Cookie = r.number
			bufs := net.Buffers{h.Append(nil)}
			if len(r.data) > 0 {
				bufs = append(bufs, r.data)
			}
			if _, err := bufs.WriteTo(l.conn); err != nil {
				b.down(l, err)
				return
			}
		}
		_, _ = l.conn.Write(nbd.Request{Command: nbd.Disconnect}.Append(nil))
	}()
	go func() {
		b.down(l, b.receive(l, client))
		l.conn.Close()
	}()
}

// errEnding is why the bridge leaves a server that is ending.
var errEnding = errors.New("the server is ending")

// receive passes the server's replies to the client, until the connection ends. When
// the link is down, a reply says only that the request is done.
func (b *Bridge) receive(l *link, client io.Writer) error {
	in := bufio.NewReaderSize(l.conn, 256<<10)
	for {
		reply, err := nbd.ReadReply(in)
		if err != nil {
			return err
		}
		b.mu.Lock()
		r := b.pending[reply.Cookie]
		b.mu.Unlock()
		if r == nil {
			return fmt.Errorf("a reply to no request (%d)", reply.Cookie)
		}
		if reply.Error == nbd.ErrShutdown {
			b.down(l, errEnding) // the request is for the next server
			b.answered(l, r, reply.Error)
			continue
		}
		answer := nbd.Reply{Error: reply.Error, Cookie: r.Cookie}.Append(nil)
		if r.Command == nbd.Read && reply.Error == 0 {
			answer = append(make([]byte, 0, len(answer)+int(r.Length)), answer...)
			answer = answer[:len(answer)+int(r.Length)]
			if _, err := io.ReadFull(in, answer[nbd.ReplySize:]); err != nil {
				return err
			}
		}
		if !b.answered(l, r, reply.Error) {
			continue
		}
		if r.own {
			continue
		}
		b.toClient.Lock()
		_, err = client.Write(answer)
		b.toClient.Unlock()
		if err != nil {
			b.down(l, nil) // the client has left
		}
	}
}

// answered notes the answer to a request, before the client gets it. It returns
// false if the link is down: the request is sent again then.
func (b *Bridge) answered(l *link, r *request, errno uint32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.links, l) {
		if r.link == l {
			r.link = nil
		}
		return false
	}
	l.waiting--
	r.link = nil
	delete(b.pending, r.number)
	b.room.Broadcast()
	switch {
	case r.Command == nbd.Flush && errno == 0:
		b.journal.flushed(r.before)
		b.failed = false
	case r.Command.Changes() && errno == 0:
		b.journal.add(r)
	}
	if r.own {
		b.flusher = false
		if b.failed = errno != 0; b.failed {
			time.AfterFunc(time.Second, b.flushAgain)
		}
	}
	if b.journal.bytes > b.o.Keep && !b.flusher && !b.failed {
		b.flushLocked()
	}
	b.settleLocked()
	return true
}

// How often the bridge looks whether the client is idle, and how long it has to
// be before changes that were not flushed are flushed.
const (
	pingEvery = time.Second
	idleFlush = 5 * time.Second
)

// ping sends a flush of ours every second while the client is idle, until ctx
// ends. nbdkit ends only when its clients have left, and tells them that it is
// ending only in its answers. With nothing to flush it costs no request to Swift;
// otherwise it waits for as long as the server itself lets data be dirty.
func (b *Bridge) ping(ctx context.Context) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	var idle time.Duration
	for last := uint64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b.mu.Lock()
		if idle += pingEvery; b.next != last || len(b.pending) > 0 {
			idle = 0
		}
		if idle > 0 && len(b.links) > 0 && !b.gone && !b.failed && (b.journal.len() == 0 || idle >= idleFlush) {
			b.flushLocked()
		}
		last = b.next
		b.mu.Unlock()
	}
}

// flushAgain flushes after a flush of ours that failed, also where nothing is to be
// flushed: as long as the last one has failed, nothing else does, and what the client
// writes may not be kept.
func (b *Bridge) flushAgain() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended && !b.gone && !b.flusher && b.failed {
		b.flushLocked()
	}
}

// settleLocked ends the bridge when the client has left, nothing is under way,
// and what was not flushed has been, or the last flush has failed.
func (b *Bridge) settleLocked() {
	if !b.gone || len(b.pending) > 0 {
		return
	}
	if b.journal.len() > 0 && !b.lastFlush {
		b.lastFlush = true
		b.flushLocked()
		return
	}
	select {
	case <-b.settled:
	default:
		close(b.settled)
	}
}
