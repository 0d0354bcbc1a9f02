// SPDX-License-Identifier: MIT

package bridge

import (
	"errors"
	"slices"
)

// What a server may still do for a link that is down.
//
// A server does not forget the requests of a connection that breaks. Linux gives it
// what has arrived before it tells of the end, and nbdkit does what it has read,
// which may take long where requests are slow. If such a change is sent again on
// another connection, and the client then writes something newer to the same place,
// the first one may come last. A flush, or multi-conn, promises nothing here: it
// covers what is answered.
//
// So a link that is taken down is not closed: it takes its leave with NBD_CMD_DISC,
// upon which the server does all that came before, answers, and closes. A change
// is sent again to the same session only if it was never written to the link, or if
// its answer came after all. On a link that is broken none comes. Then the bridge
// waits for another session. The plugin begins one when its last client has left, and
// nbdkit lets a client leave when its requests are done; and a restarted server has one.
// A server that never notices the end, or that has other clients, has to be restarted.

// errLoose says why the bridge does not go on with a session.
var errLoose = errors.New("it still runs, and may still do changes of a connection that broke; if this stays, restart it")

// looseLocked says whether the server may still do a change that has no answer.
func (b *Bridge) looseLocked() bool {
	for _, r := range b.pending {
		if r.Command.Changes() && r.link != nil {
			return true
		}
	}
	return b.loose
}

// tightenLocked notes that another session has begun: what the last one was sent, it
// does not do any more.
func (b *Bridge) tightenLocked() {
	for _, r := range b.pending {
		r.link = nil
	}
	b.loose = false
}

// down is called when a link has come to its end.
func (b *Bridge) down(l *link, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Contains(b.links, l) {
		b.takeDown(err)
	}
}

// takeDown ends all links. Each takes its leave, and its connection stays until the
// server has closed it or is there again. mu is held.
func (b *Bridge) takeDown(err error) {
	if b.links == nil {
		return
	}
	for _, l := range b.links {
		for len(l.queue) > 0 {
			select {
			case r := <-l.queue:
				r.link = nil // it was never written
			default:
			}
		}
		close(l.queue)
	}
	b.left = append(b.left, b.links...)
	b.links, b.why = nil, err
	close(b.broken)
}

// forgetLinks closes the connections of the links that are down. mu is held.
func (b *Bridge) forgetLinks() {
	for _, l := range b.left {
		l.conn.Close()
	}
	b.left = nil
}
