// SPDX-License-Identifier: MIT

package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"swiftnbd/internal/nbd"
	"swiftnbd/internal/words"
)

// How long the bridge pauses between two attempts to connect.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = time.Second
)

// errAnother says why the bridge does not go on with a server.
var errAnother = errors.New("somebody else has had the disk meanwhile, and may have written to it")

// resume connects again, and makes the journal's changes again. It returns a
// *LostError if it must not, or could not in time.
func (b *Bridge) resume(ctx context.Context, client io.Writer) error {
	b.mu.Lock()
	why := b.why
	waits := len(b.pending)
	b.mu.Unlock()
	if errors.Is(why, io.EOF) {
		why = errors.New("it has closed the connection")
	}
	b.o.Log("the server has gone (%v): %s until it is back", why, wait(waits))
	begun := time.Now()
	limited, cancel := context.WithTimeout(ctx, b.o.Wait)
	defer cancel()
	var last error
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		select {
		case <-b.settled: // the client has left, and nothing is to be saved
			return nil
		default:
		}
		err := b.tryResume(limited, client)
		if err == nil {
			b.o.Log("the server is back after %v, and nothing is lost", time.Since(begun).Round(time.Millisecond))
			return nil
		}
		var lost *LostError
		if errors.As(err, &lost) || ctx.Err() != nil {
			return err
		}
		if limited.Err() == nil {
			if last == nil || last.Error() != err.Error() {
				b.o.Log("the server is not back yet: %v", err)
			}
			last = err
		}
		select {
		case <-limited.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return &LostError{fmt.Errorf("the server has not come back within %v (%w)", b.o.Wait, last)}
		case <-time.After(pause):
		}
	}
}

func wait(n int) string {
	if n == 0 {
		return "requests wait"
	}
	if n == 1 {
		return "1 request waits, and those that come"
	}
	return fmt.Sprintf("%d requests wait, and those that come", n)
}

// tryResume is one attempt.
func (b *Bridge) tryResume(ctx context.Context, client io.Writer) error {
	conn, e, err := b.o.Dial(ctx)
	if err != nil {
		return err
	}
	if err := b.accept(e); err != nil {
		conn.Close()
		return &LostError{err}
	}
	// What we do now is done in this session.
	b.mu.Lock()
	if s := sessionOf(e); s != b.session {
		b.session = s
		b.tightenLocked()
	}
	loose := b.looseLocked()
	b.mu.Unlock()
	if loose {
		conn.Close()
		return errLoose
	}
	if err := b.replay(ctx, conn); err != nil {
		conn.Close()
		return err
	}
	conns, err := b.dialMore(ctx, conn)
	if err != nil {
		return err
	}
	b.up(conns)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.links {
		b.start(l, client)
	}
	return nil
}

// accept returns an error unless the export is the disk as we left it.
func (b *Bridge) accept(e nbd.Export) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	const readOnly = nbd.FlagReadOnly
	s := sessionOf(e)
	switch {
	case e.Size != b.export.Size:
		return fmt.Errorf("the disk has another size now: %d bytes, and not %d", e.Size, b.export.Size)
	case e.Flags&readOnly != b.export.Flags&readOnly:
		return errors.New("the disk was writable and is read-only now, or the other way round")
	case e.Flags&readOnly != 0:
		return nil // nothing of ours can be lost
	case s.mark == "" || b.session.mark == "":
		return errors.New("the server does not say which session of the disk it serves, so that nobody knows what was lost")
	case !s.follows(b.session):
		return fmt.Errorf("%w: the server goes on after session %q, ours was %q", errAnother, s.after, b.session.mark)
	case b.journal.missing > 0:
		return errors.New("more was written than is kept, while Swift failed and before the server ended")
	}
	return nil
}

// replay makes the journal's changes again, one after the other, and flushes.
// No link is up, so that nobody else changes the journal.
func (b *Bridge) replay(ctx context.Context, conn net.Conn) error {
	b.mu.Lock()
	changes, before, bytes := b.journal.changes, b.journal.last, b.journal.bytes
	b.mu.Unlock()
	if len(changes) == 0 {
		return nil
	}
	b.o.Log("writing again what was acknowledged and not flushed: %s, %s", words.Count(int64(len(changes)), "change"), words.Count(bytes, "byte"))
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	in := bufio.NewReader(conn)
	for _, c := range changes {
		if err := ask(conn, in, c.r.Request, c.r.data); err != nil {
			var refused *refusedError
			b.mu.Lock()
			b.loose = !errors.As(err, &refused)
			b.mu.Unlock()
			return err
		}
	}
	if err := ask(conn, in, nbd.Request{Command: nbd.Flush}, nil); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.journal.flushed(before)
	b.room.Broadcast()
	return nil
}

// ask sends one request and waits for the answer, which has no bytes.
func ask(conn net.Conn, in *bufio.Reader, h nbd.Request, data []byte) error {
	h.Cookie = 1
	bufs := net.Buffers{h.Append(nil)}
	if len(data) > 0 {
		bufs = append(bufs, data)
	}
	if _, err := bufs.WriteTo(conn); err != nil {
		return err
	}
	reply, err := nbd.ReadReply(in)
	switch {
	case err != nil:
		return err
	case reply.Cookie != h.Cookie:
		return errors.New("a reply to no request")
	case reply.Error != 0:
		return &refusedError{fmt.Errorf("the server answers a change with error %d", reply.Error)}
	}
	return nil
}

// refusedError is the server's answer that it has not made a change.
type refusedError struct{ error }
