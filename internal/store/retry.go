// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Policy is how patiently Retry tries. A field that is zero stands for its
// default.
type Policy struct {
	// Timeout bounds the whole operation with its waits; default 60 s. A
	// failure of the store that is shorter is not seen by the caller.
	Timeout time.Duration
	// Attempt bounds one attempt; default a third of Timeout, so that a
	// request that hangs leaves time for another. Negative: not bounded.
	Attempt time.Duration
	// The wait before attempt n+1 is random between 0 and Base<<(n-1), at
	// most Max ("full jitter"); default 100 ms and 5 s.
	Base, Max time.Duration
	// RetryAfter bounds what the store may ask for with Retry-After;
	// default 30 s.
	RetryAfter time.Duration
	// Resend says that a Put whose answer was lost is sent once more before Head
	// counts as its answer; see Retry.
	Resend bool
	// OnRetry, if not nil, is called for each failed attempt that another one
	// follows. It must be quick.
	OnRetry func(Retrying)
}

// Retrying is a failed attempt that will be followed by another.
type Retrying struct {
	Op      Op
	Attempt int // 1 is the first
	Err     error
	Wait    time.Duration // before the next attempt
	// Ambiguous says that this attempt may still take effect, at any time: its
	// request was sent and not answered. A Put may do so after the whole
	// operation has ended, and replace the data of a later Put. See
	// docs/PROTOCOL.md, "Writing right".
	Ambiguous bool
}

// RetryError is the end of an operation that was tried more than once.
type RetryError struct {
	Err       error // the last attempt's
	Before    error // if the last attempt ran out of time, the error of an earlier one; or nil
	Cause     error // why the context ended, if this stopped the attempts; or nil
	Attempts  int
	Elapsed   time.Duration
	Ambiguous bool // any of the attempts may still take effect
}

func (e *RetryError) Error() string {
	s := fmt.Sprintf("%v (tried once", e.Err)
	if e.Attempts > 1 {
		s = fmt.Sprintf("%v (tried %d times in %v", e.Err, e.Attempts, e.Elapsed.Round(time.Millisecond))
	}
	if e.Cause != nil {
		s += ", until: " + e.Cause.Error()
	}
	if e.Before != nil {
		s += ", before: " + e.Before.Error()
	}
	return s + ")"
}

// Unwrap returns the last attempt's error, the earlier one's, and the cause of
// the context's end, as far as there are any.
func (e *RetryError) Unwrap() []error {
	all := []error{e.Err, e.Before, e.Cause}
	return slices.DeleteFunc(all, func(err error) bool { return err == nil })
}

// Retry returns s with every operation tried again while its errors are
// Transient or ErrSuperseded, as p says. All of Store's operations have the
// same effect when they are repeated. Retry takes care of these exceptions:
//
//   - Put. An attempt that ended ambiguously (sent, not answered) may have
//     stored the data. ErrSuperseded (202) may be about our own earlier
//     attempt, or about a proxy with a fast clock. Before the next attempt
//     Retry reads the object back with Head, which asks for the newest copy.
//     The same ETag and size are success. Otherwise the data is sent again: by
//     then, or some waits later, the clock is past the newer timestamp.
//     After an answer of 500, 503 or 507 the data is sent again in any case. A
//     proxy of Swift answers so when fewer than a majority of the replicas have
//     the data. Head would show what a single one has, which is not durable.
//     That holds for the next Put of the object, too, if this one fails, and
//     with WithFew.
//     An answer that was lost may have been such a one, or the proxy has died
//     before all replicas had the data. So with Policy.Resend the data is sent
//     again after the first lost answer. When a second one is lost, Head counts:
//     then answers are slow rather than proxies dead, and a proxy that has all of
//     the data goes on without its client.
//   - 422, the data did not match its ETag: it was damaged on the way. It is
//     sent twice more before this is final, since a wrong ETag would never fit.
//   - Delete, DeleteContainer. Not found is success if an earlier attempt may
//     have been the one that deleted.
//   - CreateContainer. If an earlier attempt may have created the container,
//     "not created" does not prove that somebody else did: look at the
//     metadata.
//
// A success after an ambiguous attempt is a success. But that attempt may still
// land, later than another Put of the same object. OnRetry reports it, and WithStrays.
func Retry(s Store, p Policy) Store {
	p.fill()
	r := &retrier{s: s, p: p}
	r.Store = Wrap(s, func(ctx context.Context, op Op, call func(context.Context) error) error {
		return r.run(ctx, op, func(ctx context.Context, _ history) error { return call(ctx) })
	})
	return r
}

// Again makes a request that is no method of Store. Like Retry, it repeats the
// request while its errors are Transient. Policy.OnRetry gets op. The request
// must have the same effect when it is repeated.
func Again(ctx context.Context, p Policy, op Op, call func(context.Context) error) error {
	p.fill()
	r := &retrier{p: p}
	return r.run(ctx, op, func(ctx context.Context, _ history) error { return call(ctx) })
}

// fill gives the fields that are zero their defaults.
func (p *Policy) fill() {
	if p.Timeout == 0 {
		p.Timeout = 60 * time.Second
	}
	if p.Attempt == 0 {
		p.Attempt = p.Timeout / 3
	}
	if p.Base <= 0 {
		p.Base = 100 * time.Millisecond
	}
	if p.Max <= 0 {
		p.Max = 5 * time.Second
	}
	if p.RetryAfter <= 0 {
		p.RetryAfter = 30 * time.Second
	}
}

// retrier is a Store whose operations are tried again. The embedded Store has
// the operations that need nothing special.
type retrier struct {
	Store
	s Store
	p Policy

	mu  sync.Mutex          // guards all below
	few map[string]struct{} // objects of which Puts that failed may have left few replicas
}

// history is what an attempt knows of the earlier ones.
type history struct {
	ambiguous  bool // one of them may have taken effect
	superseded bool // one of them was refused for a newer version
	damaged    int  // how many were answered 422
}

// maxDamaged is how often data that does not match its ETag is sent.
const maxDamaged = 3

// run calls attempt until it succeeds, fails for good, or time is up.
func (r *retrier) run(ctx context.Context, op Op, attempt func(context.Context, history) error) error {
	var (
		h       history
		start   = time.Now()
		backoff = r.p.Base
		before  error // the last error that was not a lack of time
	)
	for n := 1; ; n++ {
		err := r.attempt(ctx, start, func(ctx context.Context) error { return attempt(ctx, h) })
		if err == nil {
			return nil
		}
		ambiguous := op.Kind.Writes() && Ambiguous(err)
		h.ambiguous = h.ambiguous || ambiguous
		if op.Kind.Writes() && OnItsWay(err) {
			Stray(ctx)
		}
		h.superseded = h.superseded || errors.Is(err, ErrSuperseded)
		var se *StatusError
		if errors.As(err, &se) && se.Code == http.StatusUnprocessableEntity {
			h.damaged++
		}
		wait, again := r.wait(err, h, start, backoff)
		if ctx.Err() != nil {
			again = false
		}
		if again {
			if r.p.OnRetry != nil {
				r.p.OnRetry(Retrying{Op: op, Attempt: n, Err: err, Wait: wait, Ambiguous: ambiguous})
			}
			again = sleep(ctx, wait)
			backoff = min(2*backoff, r.p.Max)
		}
		if !again {
			if n == 1 && ctx.Err() == nil {
				return err
			}
			late := &RetryError{
				Err: err, Cause: context.Cause(ctx), Attempts: n, Elapsed: time.Since(start), Ambiguous: h.ambiguous,
			}
			if errors.Is(err, context.DeadlineExceeded) {
				late.Before = before
			}
			return late
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			before = err
		}
	}
}

// attempt makes one attempt within its own time and what is left of the whole.
func (r *retrier) attempt(ctx context.Context, start time.Time, attempt func(context.Context) error) error {
	left := r.p.Timeout - time.Since(start)
	if r.p.Attempt > 0 {
		left = min(left, r.p.Attempt)
	}
	within, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	err := attempt(within)
	if err != nil && ctx.Err() == nil && within.Err() != nil && !Transient(err) && errors.Is(err, context.DeadlineExceeded) {
		// The attempt's own time has run out, and not the caller's.
		err = &TransportError{Op: "attempt", Sent: true, Err: err}
	}
	return err
}

// wait says whether there is another attempt after err, and when.
func (r *retrier) wait(err error, h history, start time.Time, backoff time.Duration) (time.Duration, bool) {
	damaged := h.damaged > 0 && h.damaged < maxDamaged
	if !Transient(err) && !errors.Is(err, ErrSuperseded) && !damaged {
		return 0, false
	}
	wait := rand.N(min(backoff, r.p.Max) + 1)
	var se *StatusError
	if errors.As(err, &se) {
		// The jitter is added to it: all clients were given the same time.
		wait += min(se.RetryAfter, r.p.RetryAfter)
	}
	// The last attempt comes shortly before the end, even if the wait would
	// have been longer. Then a store that came back meanwhile is not missed.
	last := r.p.Timeout - min(r.p.Max, r.p.Timeout/8)
	elapsed := time.Since(start)
	if elapsed >= last {
		return 0, false
	}
	return min(wait, last-elapsed), true
}

// sleep waits for d. It returns false if the context ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// Put implements Store; see Retry.
func (r *retrier) Put(ctx context.Context, name string, data []byte, etag ETag) error {
	op := Op{Kind: OpPut, Name: name, Bytes: len(data)}
	// An attempt, also one of a Put before, may have stored the data on few replicas only.
	few := r.leftFew(ctx, name)
	lost := 0 // attempts that may have stored the data, of which we do not know
	enough := 1
	if r.p.Resend {
		enough = 2
	}
	err := r.run(ctx, op, func(ctx context.Context, h history) error {
		if etag != "" && !few && (lost >= enough || h.superseded) {
			info, err := r.s.Head(ctx, name)
			switch {
			case err == nil && info.ETag == etag && info.Size == int64(len(data)):
				return nil
			case err != nil && !errors.Is(err, ErrNotFound):
				return fmt.Errorf("PUT %s: reading back: %w", name, err)
			}
		}
		err := r.s.Put(ctx, name, data, etag)
		if Ambiguous(err) {
			lost++
		}
		few = few || tooFew(err)
		return err
	})
	if few {
		r.noteFew(name, err != nil)
	}
	return err
}

// fewKey marks the context of WithFew.
type fewKey struct{}

// WithFew returns a context for the Put of an object that may be there on few replicas,
// with the same data. If that is not answered, Head would show the object that was there
// before: only an answer to a Put counts then, and ErrSuperseded may be how it ends.
func WithFew(ctx context.Context) context.Context { return context.WithValue(ctx, fewKey{}, true) }

// leftFew says whether Puts of the object that failed may have left few replicas.
func (r *retrier) leftFew(ctx context.Context, name string) bool {
	if ctx.Value(fewKey{}) != nil {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.few[name]
	return ok
}

func (r *retrier) noteFew(name string, few bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !few {
		delete(r.few, name)
		return
	}
	if r.few == nil {
		r.few = make(map[string]struct{})
	}
	r.few[name] = struct{}{}
}

// tooFew says whether err may be the answer to a PUT of which fewer replicas than a
// majority have the data. 502 and 504 are not: they come from a load balancer.
func tooFew(err error) bool {
	var se *StatusError
	if !errors.As(err, &se) || se.Unsent {
		return false
	}
	switch se.Code {
	case http.StatusInternalServerError, http.StatusServiceUnavailable, http.StatusInsufficientStorage:
		return true
	}
	return false
}

// Delete implements Store; see Retry.
func (r *retrier) Delete(ctx context.Context, name string) error {
	return r.run(ctx, Op{Kind: OpDelete, Name: name}, func(ctx context.Context, h history) error {
		err := r.s.Delete(ctx, name)
		if h.ambiguous && errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	})
}

// DeleteContainer implements Store; see Retry.
func (r *retrier) DeleteContainer(ctx context.Context) error {
	return r.run(ctx, Op{Kind: OpDeleteContainer}, func(ctx context.Context, h history) error {
		err := r.s.DeleteContainer(ctx)
		if h.ambiguous && errors.Is(err, ErrContainerNotFound) {
			return nil
		}
		return err
	})
}
