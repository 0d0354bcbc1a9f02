// SPDX-License-Identifier: MIT

package bridge

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"

	"swiftnbd/internal/nbd"
)

// TestLate has a connection break while the server lives and has read a write which it
// does later, as nbdkit does. What the client writes to the same place afterwards counts.
func TestLate(t *testing.T) {
	for _, tc := range []struct {
		name    string
		breaks  func(c, late net.Conn) bool // which connections break
		replay  bool                        // the write was acknowledged, and is made again
		restart bool                        // only another server can be trusted
	}{
		{name: "its connection", breaks: func(c, late net.Conn) bool { return c == late }, restart: true},
		{name: "another connection", breaks: func(c, late net.Conn) bool { return c != late }},
		{name: "all", breaks: func(net.Conn, net.Conn) bool { return true }, restart: true},
		{name: "while it is made again", breaks: func(net.Conn, net.Conn) bool { return true }, replay: true, restart: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t)
			waits := make(chan bool, 8)
			c, wait := begin(t, h, Options{Connections: 2, Log: func(format string, args ...any) {
				if strings.Contains(fmt.Sprintf(format, args...), "may still do changes") {
					waits <- true
				}
			}})
			late := make(chan net.Conn)
			set := func(ch chan net.Conn) {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.late = ch
			}
			older, newer := bytes.Repeat([]byte{1}, 512), bytes.Repeat([]byte{2}, 512)
			answered := make(chan error, 1)
			write := func(data []byte) {
				_, err := c.do(nbd.Write, 0, 0, 512, data)
				answered <- err
			}
			next := older
			if tc.replay {
				c.must(t, nbd.Write, 0, 0, 512, older)
				set(late)
				h.stop()
				h.start()
				next = newer
			} else {
				set(late)
			}
			go write(next)
			at := <-late
			set(nil)
			h.mu.Lock()
			for c := range h.conns {
				if tc.breaks(c, at) {
					c.Close()
				}
			}
			h.mu.Unlock()
			done := func() { late <- nil; <-late }
			trusted := false // the bridge does not wait for the late write
			select {
			case err := <-answered:
				if trusted = true; err != nil {
					t.Fatal(err)
				}
			case <-waits:
				done()
				if tc.restart {
					h.stop()
					h.start()
				}
				if err := <-answered; err != nil {
					t.Fatal(err)
				}
			}
			if !tc.replay {
				c.must(t, nbd.Write, 0, 0, 512, newer)
			}
			if trusted {
				done()
			}
			if got := c.must(t, nbd.Read, 0, 0, 512, nil); !bytes.Equal(got, newer) {
				t.Errorf("the newer write is lost: the disk has %d", got[0])
			}
			if !tc.restart && h.sessions != 1 {
				t.Errorf("%d sessions", h.sessions)
			}
			if err := wait(); err != nil {
				t.Error(err)
			}
		})
	}
}
