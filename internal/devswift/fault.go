// SPDX-License-Identifier: MIT

package devswift

import (
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Request is a request as a FaultFunc sees it, before the body is read.
type Request struct {
	Method                     string
	Path                       string // unquoted
	Account, Container, Object string // a part that the path lacks is empty
	Query                      url.Values
	Header                     http.Header
}

// FaultFunc decides about one request. If it returns nil, the request passes
// unharmed. It is called from many goroutines at once.
type FaultFunc func(*Request) *Action

// Action is what goes wrong with a request. The fields combine. Delay and Skew
// come first. Then the request takes effect, unless Status, Drop or Hang is set
// without After. Then the client gets the answer that the fields describe.
type Action struct {
	// Delay passes before anything else.
	Delay time.Duration

	// Skew is added to the proxy's clock. With a negative one, an existing
	// object is newer than a PUT (202) or a DELETE (409).
	Skew time.Duration

	// After lets the request take effect before Status, Drop or Hang. The
	// client gets an error or no answer, although the request succeeded.
	After bool

	// Status is sent, if not 0, with Header and Body. An empty body is Swift's
	// page for the status.
	Status int
	Header http.Header
	Body   string

	// Drop cuts the connection without an answer.
	Drop bool

	// Hang answers nothing until the client goes away or the Server closes.
	Hang bool

	// ShortBody cuts the connection after this many bytes of the answer's
	// body; 0 means not at all, a negative number right after the headers.
	ShortBody int64

	// SlowBody limits the answer's body to this many bytes a second; 0 means no
	// limit.
	SlowBody int64

	// Corrupt inverts the first byte of the answer's body.
	Corrupt bool
}

// SetFault replaces Options.Fault for the requests to come; nil ends all faults.
func (s *Server) SetFault(f FaultFunc) { s.fault.Store(&f) }

// Rule is an Action for the requests that match. Empty fields match all.
type Rule struct {
	Method string
	Prefix string // of the unquoted path
	Skip   int    // how many matching requests pass first
	Times  int    // how many are harmed then; 0 means all
	Action Action
}

// Rules makes a FaultFunc from rules. The first one that matches and is not
// used up decides.
func Rules(rules ...Rule) FaultFunc {
	var mu sync.Mutex
	seen := make([]int, len(rules))
	return func(r *Request) *Action {
		mu.Lock()
		defer mu.Unlock()
		for i, rule := range rules {
			if rule.Method != "" && rule.Method != r.Method || !strings.HasPrefix(r.Path, rule.Prefix) {
				continue
			}
			n := seen[i]
			seen[i]++
			if n < rule.Skip || rule.Times > 0 && n >= rule.Skip+rule.Times {
				continue
			}
			return &rule.Action
		}
		return nil
	}
}

// serveFaulty answers a call, with the fault that a test has set for it.
func (s *Server) serveFaulty(c *call) {
	f := *s.fault.Load()
	if f == nil {
		c.route()
		return
	}
	a := f(&Request{
		Method: c.method, Path: c.r.URL.Path, Query: c.query, Header: c.r.Header,
		Account: c.accountName, Container: c.containerName, Object: c.objectName,
	})
	if a == nil {
		c.route()
		return
	}
	if a.Delay > 0 {
		select {
		case <-time.After(a.Delay):
		case <-s.closed:
		}
	}
	c.skew = timestamp(a.Skew / (time.Second / ticksPerSecond))
	if a.Status == 0 && !a.Drop && !a.Hang {
		c.w = &faultyWriter{ResponseWriter: c.w, call: c, action: a}
		c.route()
		return
	}
	if a.After {
		w := c.w
		c.w = discardWriter{}
		c.route()
		c.w, c.status, c.sent, c.drain = w, 0, 0, false
	}
	switch {
	case a.Hang:
		// net/http notices only after the body that the client has left.
		n, _ := io.Copy(io.Discard, c.r.Body)
		c.received += n
		select {
		case <-c.r.Context().Done():
		case <-s.closed:
		}
		panic(http.ErrAbortHandler)
	case a.Drop:
		panic(http.ErrAbortHandler)
	}
	c.w = &faultyWriter{ResponseWriter: c.w, call: c, action: a}
	maps.Copy(c.w.Header(), a.Header)
	if a.Body != "" {
		c.answerText(a.Status, first(a.Header.Get("Content-Type"), typePlain), a.Body)
		return
	}
	c.answer(a.Status)
}

// discardWriter takes an answer that the client must not see.
type discardWriter struct{}

func (discardWriter) Header() http.Header         { return http.Header{} }
func (discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (discardWriter) WriteHeader(int)             {}

// faultyWriter spoils the body of an answer.
type faultyWriter struct {
	http.ResponseWriter
	call    *call
	action  *Action
	written int64
}

// Unwrap is for http.ResponseController.
func (w *faultyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *faultyWriter) Write(p []byte) (int, error) {
	a := w.action
	if a.Corrupt && w.written == 0 && len(p) > 0 {
		p = append([]byte{^p[0]}, p[1:]...)
	}
	if left := max(a.ShortBody, 0) - w.written; a.ShortBody != 0 && int64(len(p)) > left {
		w.write(p[:left])
		_ = http.NewResponseController(w).Flush() // best effort before the cut
		panic(http.ErrAbortHandler)
	}
	return w.write(p)
}

// write passes on at the pace of SlowBody, ten times a second.
func (w *faultyWriter) write(p []byte) (int, error) {
	step := len(p)
	if w.action.SlowBody > 0 {
		step = int(max(1, w.action.SlowBody/10))
	}
	total := 0
	for total < len(p) {
		n, err := w.ResponseWriter.Write(p[total:min(len(p), total+step)])
		total += n
		w.written += int64(n)
		if err != nil {
			return total, err
		}
		if w.action.SlowBody == 0 {
			continue
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return total, err
		}
		select {
		case <-time.After(time.Duration(int64(n) * int64(time.Second) / w.action.SlowBody)):
		case <-w.call.r.Context().Done():
			return total, w.call.r.Context().Err()
		case <-w.call.s.closed:
		}
	}
	return total, nil
}
