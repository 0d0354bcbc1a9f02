// SPDX-License-Identifier: MIT

package lease_test

import (
	"context"
	"fmt"
	"strings"

	"swiftnbd/internal/volume"
)

// position is one of a log: a number under the number of the lease at which its holder
// began.
type position struct{ epoch, n int64 }

func (p position) String() string { return fmt.Sprintf("%08d/%08d", p.epoch, p.n) }

func (p position) less(q position) bool {
	return p.epoch < q.epoch || p.epoch == q.epoch && p.n < q.n
}

// newest returns the last position among the values.
func newest(values []string) (p position) {
	for _, v := range values {
		var q position
		if _, err := fmt.Sscanf(v, "%d/%d", &q.epoch, &q.n); err == nil && p.less(q) {
			p = q
		}
	}
	return p
}

// finds says that the session, which has just been given the volume, has found what
// was kept of the log and is in no root.
func (m *sim) finds(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.logged, m.marked() != s.held.Mark():
		return // another one has it meanwhile
	case !m.rooted.less(m.kept):
		return // a root has all
	case m.rooted.epoch >= s.held.Epoch():
		return // they cannot open it with that number, and give it back
	}
	m.found++
	if got := newest(s.held.Former()[keyDurable]); got.less(m.kept) {
		m.t.Errorf("%s is given the volume under number %d and finds %v, and %v was kept: %v", s.p.name, s.held.Epoch(), got, m.kept, m.leases())
	}
}

// marked returns the mark that the volume has.
func (m *sim) marked() string {
	md, err := m.volume().Metadata(context.Background())
	if err != nil {
		m.t.Error(err)
	}
	return md.Items[volume.KeyClient]
}

// opens writes the first root of the session, which has all of the log before. It
// cannot if there is a root of that number or a later one.
func (m *sim) opens(s *session) bool {
	m.mu.Lock()
	taken := m.rooted.epoch >= s.held.Epoch()
	m.mu.Unlock()
	if s.at.epoch = s.held.Epoch(); taken || !m.write(s) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rooted = position{s.at.epoch, 0} // and what is kept from now on is after it
	return true
}

// roots writes the last root of the session.
func (m *sim) roots(s *session) bool {
	if !m.write(s) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rooted = s.at
	return true
}

// keeps notes what p keeps in the lease, which it has just written, if p holds the
// volume at this moment.
func (m *sim) keeps(p *party, name string) {
	if held := p.has(); held == nil || !p.holds() || m.marked() != held.Mark() {
		return
	}
	p.mu.Lock()
	own := newest([]string{p.extra[keyDurable]})
	dead := p.dead
	p.mu.Unlock()
	md, err := m.cluster.Container(name).Metadata(context.Background())
	if err != nil || dead {
		return
	}
	var values []string
	for key, value := range md.Items {
		if strings.HasPrefix(key, keyDurable) {
			values = append(values, value)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if at := newest(values); at.epoch == own.epoch && m.kept.less(at) {
		m.kept = at
	}
}
