// SPDX-License-Identifier: MIT

package bridge

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"swiftnbd/internal/nbd"
)

// TestDuringFlush: what is acknowledged while a flush is under way is not covered
// by it.
func TestDuringFlush(t *testing.T) {
	h := newHost(t)
	c, wait := begin(t, h, Options{})
	c.must(t, nbd.Write, 0, 0, 512, make([]byte, 512))
	h.mu.Lock()
	h.held = make(chan bool)
	held := h.held
	h.mu.Unlock()
	flush := nbd.Request{Command: nbd.Flush, Cookie: 77}
	if _, err := c.conn.Write(flush.Append(nil)); err != nil {
		t.Fatal(err)
	}
	<-held
	data := bytes.Repeat([]byte{5}, 32<<9)
	c.must(t, nbd.Write, 0, 0, len(data), data)
	held <- true
	if reply, err := nbd.ReadReply(c.in); err != nil || reply.Cookie != 77 || reply.Error != 0 {
		t.Fatalf("the flush is answered with %+v, %v", reply, err)
	}
	h.mu.Lock()
	h.held = nil
	h.mu.Unlock()
	h.kill(rand.New(rand.NewPCG(1, 1)))
	h.start()
	if got := c.must(t, nbd.Read, 0, 0, len(data), nil); !bytes.Equal(got, data) {
		t.Error("a write that was acknowledged during a flush is lost")
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
}

// TestIdle: a server that is ending waits for its clients to leave. The bridge
// does so although its own client asks for nothing.
func TestIdle(t *testing.T) {
	h := newHost(t)
	c, wait := begin(t, h, Options{})
	c.must(t, nbd.Write, 0, 0, 512, bytes.Repeat([]byte{3}, 512))
	c.must(t, nbd.Flush, 0, 0, 0, nil)
	h.mu.Lock()
	h.ending = true
	h.mu.Unlock()
	for left := false; !left; time.Sleep(10 * time.Millisecond) {
		h.mu.Lock()
		// It has left, and may try again meanwhile.
		h.runs, left = false, len(h.conns) == 0
		h.mu.Unlock()
	}
	h.stop()
	h.start()
	if got := c.must(t, nbd.Read, 0, 0, 512, nil); got[0] != 3 {
		t.Error("the write is lost")
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
}

// TestFlushesItself: a client that never flushes does not make the journal grow
// without end, and what it leaves is flushed when it leaves.
func TestFlushesItself(t *testing.T) {
	h := newHost(t)
	c, wait := begin(t, h, Options{Keep: 64 << 10})
	data := bytes.Repeat([]byte{7}, 4096)
	for i := range 256 {
		c.must(t, nbd.Write, 0, 4096*i, 4096, data)
	}
	h.mu.Lock()
	flushes := h.flushes
	h.mu.Unlock()
	if flushes < 3 {
		t.Errorf("1 MiB was written with 64 KiB kept, and flushed %d times", flushes)
	}
	c.must(t, nbd.Write, 0, 0, 4096, bytes.Repeat([]byte{8}, 4096))
	if err := wait(); err != nil {
		t.Error(err)
	}
	if h.durable[0] != 8 {
		t.Error("what was written last is not in Swift")
	}
}

// TestLeavesBesideFlush lets the client leave while a flush of the bridge's own
// is under way that does not cover the last write: that is flushed, too.
func TestLeavesBesideFlush(t *testing.T) {
	h := newHost(t)
	h.held = make(chan bool)
	held := h.held
	c, wait := begin(t, h, Options{Keep: 64 << 10})
	data := bytes.Repeat([]byte{7}, 4096)
	for i := range 16 { // with what is noted of each, above what is kept
		c.must(t, nbd.Write, 0, 4096*i, 4096, data)
	}
	<-held
	h.mu.Lock()
	h.held = nil
	h.mu.Unlock()
	c.must(t, nbd.Write, 0, 0, 4096, bytes.Repeat([]byte{8}, 4096))
	ended := make(chan error, 1)
	go func() { ended <- wait() }()
	time.Sleep(50 * time.Millisecond) // the bridge has seen it leave; or the test is weaker
	held <- true
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if h.durable[0] != 8 {
		t.Error("what was written last is not in Swift")
	}
}

// TestFollows is the rule of sessions by itself.
func TestFollows(t *testing.T) {
	ours := session{"a:1@10", "z:1@1"}
	for _, tc := range []struct {
		now  session
		want bool
	}{
		{ours, true},
		{session{"b:1@20", "a:1@10"}, true},
		{session{"b:1@20", "z:1@1"}, true},
		{session{"b:1@20", "c:1@15"}, false},
		{session{"a:1@10", "c:1@15"}, false},
		{session{"b:1@20", ""}, false},
		{session{}, false},
	} {
		if got := tc.now.follows(ours); got != tc.want {
			t.Errorf("%v after %v: %v", tc.now, ours, got)
		}
	}
	if (session{"b:1@20", ""}).follows(session{"a:1@10", ""}) {
		t.Error("two sessions after nothing follow on each other")
	}
	got := sessionOf(nbd.Export{Description: "1 GiB in objects of 1 MiB, session host.example:77@1764 after 127.0.0.1:5@1763"})
	if got != (session{"host.example:77@1764", "127.0.0.1:5@1763"}) {
		t.Errorf("read %v", got)
	}
	if got := sessionOf(nbd.Export{Description: "1 GiB in version 2 of the format, session h:1@2"}); got != (session{"h:1@2", ""}) {
		t.Errorf("read %v", got)
	}
	if got := sessionOf(nbd.Export{Description: "1 GiB in objects of 1 MiB, read-only"}); got != (session{}) {
		t.Errorf("read %v", got)
	}
}

// TestPingFails: Swift is away for so long that the bridge's look at an idle server
// fails, with nothing to flush. When it is back, the bridge flushes again by itself, and
// a client that writes much and never flushes loses nothing with the server.
func TestPingFails(t *testing.T) {
	h := newHost(t)
	c, wait := begin(t, h, Options{Keep: 64 << 10})
	h.mu.Lock()
	h.failing = true
	h.mu.Unlock()
	until := func(what string, is func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			h.mu.Lock()
			yes := is()
			h.mu.Unlock()
			if yes {
				return
			}
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	until("the bridge does not look at the server", func() bool { return h.failures > 0 })
	h.mu.Lock()
	h.failing = false
	h.mu.Unlock()
	until("the bridge never flushes again", func() bool { return h.flushes > 0 })
	data := bytes.Repeat([]byte{7}, 4096)
	for i := range 200 { // more than four times what is kept
		c.must(t, nbd.Write, 0, 4096*i, 4096, data)
	}
	h.kill(rand.New(rand.NewPCG(1, 1)))
	h.start()
	for i := range 200 {
		if got := c.must(t, nbd.Read, 0, 4096*i, 4096, nil); !bytes.Equal(got, data) {
			t.Fatalf("write %d is lost", i)
		}
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
}
