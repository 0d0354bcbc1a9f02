// SPDX-License-Identifier: MIT

package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"swiftnbd/internal/store"
)

const (
	maxWaiting   = 16               // requests that wait at once; others are seen again later
	maxKnown     = 1000             // requests whose numbers are remembered after their answer
	answerTries  = 20               // a second apart
	answerLife   = 10 * time.Minute // after which an answer is removed that nobody has taken
	requestLimit = time.Minute      // for one request
)

// Server does what is asked of the holder of a lease.
type Server struct {
	// Store is the volume's container, as its holder writes it.
	Store store.Store
	// Lease returns the number of the lease. It may rise while it is held.
	Lease func() int64
	// Do does a request, and calls answered with its result before it gives up
	// what makes it safe that we still hold the volume. It returns answered's
	// error, or why it could not do that: the request has no answer then.
	Do func(ctx context.Context, r Request, answered func(ctx context.Context, err error) error) error
	// Log takes one line for the operator.
	Log func(format string, args ...any)

	first int64 // the number of the lease at the beginning
	wake  chan struct{}
	ended chan struct{}

	mu    sync.Mutex        // guards all below
	known map[string]*asked // by number
	queue []*asked          // those to be done, the oldest first
	stray map[string]string // items to remove
}

// asked is a request that was seen.
type asked struct {
	Request
	number   string
	answered time.Time // when it was; zero: not yet
}

// Start begins to do what Seen finds, until ctx is done.
func (s *Server) Start(ctx context.Context) {
	s.mu.Lock()
	s.first = s.Lease()
	s.known, s.stray = make(map[string]*asked), make(map[string]string)
	s.wake, s.ended = make(chan struct{}, 1), make(chan struct{})
	s.mu.Unlock()
	go s.loop(ctx)
}

// Wait waits until nothing is being done any more. The context of Start must have
// ended.
func (s *Server) Wait() {
	if s.ended != nil {
		<-s.ended
	}
}

// Seen looks for requests in the volume's metadata. It is quick, and may be
// called before Start.
func (s *Server) Seen(md store.Metadata) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		return
	}
	for key, value := range md.Items {
		if strings.HasPrefix(key, keyAnswer) { // before a request that was withdrawn
			s.seeAnswerLocked(key, value)
		}
	}
	for key, value := range md.Items {
		if strings.HasPrefix(key, keyAsk) {
			s.seeAskLocked(key, value)
		}
	}
	if len(s.queue) > 0 || len(s.stray) > 0 {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

func (s *Server) seeAskLocked(key, value string) {
	number := strings.TrimPrefix(key, keyAsk)
	if a := s.known[number]; a != nil {
		if a.old() { // it arrived once more, or late
			s.stray[key] = ""
		}
		return
	}
	if len(s.queue) >= maxWaiting {
		return
	}
	r, ok := parseRequest(value)
	if !ok || r.Lease < s.first {
		s.stray[key] = "" // for one who was before us
		return
	}
	if r.Lease > s.Lease() {
		return // for one who comes after us
	}
	a := &asked{Request: r, number: number}
	s.knowLocked(a)
	s.queue = append(s.queue, a)
}

// seeAnswerLocked has answers removed that nobody takes, and gives requests up that
// were withdrawn: also those that have not arrived yet.
func (s *Server) seeAnswerLocked(key, value string) {
	number := strings.TrimPrefix(key, keyAnswer)
	lease, text, _ := strings.Cut(value, " ")
	a := s.known[number]
	if a != nil {
		if a.old() {
			s.stray[key] = ""
		}
		if i := slices.Index(s.queue, a); i >= 0 && text == withdrawn {
			a.answered, s.queue = time.Now(), slices.Delete(s.queue, i, i+1)
		}
		return
	}
	switch n, err := strconv.ParseInt(lease, 10, 64); {
	case err != nil || n < s.first:
		s.stray[key] = ""
	case text == withdrawn && n <= s.Lease():
		s.knowLocked(&asked{number: number, answered: time.Now()})
	}
}

// knowLocked remembers a request: its number is not done again.
func (s *Server) knowLocked(a *asked) {
	if len(s.known) >= maxKnown {
		s.forgetLocked()
	}
	s.known[a.number] = a
}

// old says that the request has its answer for so long that nobody takes that any more.
func (a *asked) old() bool { return !a.answered.IsZero() && time.Since(a.answered) > answerLife }

// forgetLocked forgets the numbers of the requests whose answers are the oldest. No
// replica is behind for so long that they are seen again.
func (s *Server) forgetLocked() {
	for number, a := range s.known {
		if !a.answered.IsZero() && time.Since(a.answered) > 2*answerLife {
			delete(s.known, number)
		}
	}
}

func (s *Server) loop(ctx context.Context) {
	defer close(s.ended)
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		for ctx.Err() == nil {
			a, stray := s.next()
			if len(stray) > 0 {
				// They are seen again if this fails.
				_ = s.Store.SetMetadata(ctx, stray)
			}
			if a == nil {
				break
			}
			if err := s.do(ctx, a); err != nil && ctx.Err() == nil {
				s.Log("request of swiftnbd-ctl, %s %s: %v", a.Verb, store.OneLine(a.Argument), err)
			}
		}
	}
}

// next takes the next request and the stray items.
func (s *Server) next() (a *asked, stray map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) > 0 {
		a, s.queue = s.queue[0], s.queue[1:]
	}
	stray, s.stray = s.stray, make(map[string]string)
	return a, stray
}

func (s *Server) do(ctx context.Context, a *asked) (err error) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("internal error: %v", p)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		a.answered = time.Now()
	}()
	return s.Do(ctx, a.Request, func(ctx context.Context, result error) error {
		s.Log("%s %s, as swiftnbd-ctl asked: %s", a.Verb, store.OneLine(a.Argument), outcome(result))
		items := map[string]string{keyAsk + a.number: "", keyAnswer + a.number: answerValue(a.Lease, result)}
		var err error
		for range answerTries {
			if err = s.Store.SetMetadata(ctx, items); err == nil {
				return nil
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return errors.Join(err, context.Cause(ctx))
			}
		}
		return fmt.Errorf("answer: %w", err)
	})
}

func outcome(err error) string {
	if err == nil {
		return done
	}
	return store.OneLine(err.Error())
}
