// SPDX-License-Identifier: MIT

package devswift

import (
	"slices"
	"sync"
	"time"
)

// Record is a request that was answered, or whose connection was cut.
type Record struct {
	Method, Path, Query string        // the path unquoted
	Status              int           // 0 when no status was sent
	Received, Sent      int64         // bytes of bodies
	Start               time.Time     // when it came
	Duration            time.Duration // until it was answered
	TransID             string        // its X-Trans-Id
}

// Kind counts requests: by method, and by the status that was sent, which is 0
// when none was.
type Kind struct {
	Method string
	Status int
}

type journal struct {
	limit int // how many records; fixed

	mu      sync.Mutex
	records []Record
	counts  map[Kind]int64
}

func (j *journal) add(r Record) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.counts == nil {
		j.counts = map[Kind]int64{}
	}
	j.counts[Kind{r.Method, r.Status}]++
	if len(j.records) < j.limit {
		j.records = append(j.records, r)
	}
}

// Requests returns the requests that have ended since the start or the last
// ResetRequests, in the order of their end, up to Options.Journal.
func (s *Server) Requests() []Record {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return slices.Clone(s.journal.records)
}

// ResetRequests empties the log and sets all counts to zero.
func (s *Server) ResetRequests() {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	s.journal.records, s.journal.counts = nil, nil
}

// Count returns the number of ended requests that match. An empty method
// matches all, and so does no status.
func (s *Server) Count(method string, status ...int) int64 {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	var n int64
	for kind, count := range s.journal.counts {
		if (method == "" || kind.Method == method) && (len(status) == 0 || slices.Contains(status, kind.Status)) {
			n += count
		}
	}
	return n
}
