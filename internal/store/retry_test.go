// SPDX-License-Identifier: MIT

package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/store/storetest"
)

// rig is a Retry around a faulty store in memory.
type rig struct {
	store.Store
	faulty  *faulty.Store
	mem     *mem.Container
	retries []store.Retrying
}

func newRig(t *testing.T, p store.Policy, driver faulty.Driver) *rig {
	t.Helper()
	r := &rig{mem: mem.New()}
	if _, err := r.mem.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	r.faulty = faulty.New(r.mem, driver)
	p.OnRetry = func(x store.Retrying) { r.retries = append(r.retries, x) }
	r.Store = store.Retry(r.faulty, p)
	return r
}

// script does faults one after the other, and nothing to what comes then.
func script(faults ...faulty.Fault) faulty.Driver {
	return func(op faulty.Op) faulty.Fault {
		if int(op.N) <= len(faults) {
			return faults[op.N-1]
		}
		return faulty.Fault{}
	}
}

func status(code int, err error) faulty.Fault {
	return faulty.Fault{Err: &store.StatusError{Op: "test", Code: code, Err: err}}
}

var (
	reset     = faulty.Fault{Err: faulty.Reset(store.Op{})}
	resetDone = faulty.Fault{Err: faulty.Reset(store.Op{}), After: true}
	refused   = faulty.Fault{Err: faulty.Refused(store.Op{})}
)

func (r *rig) put(t *testing.T, data string) error {
	t.Helper()
	return r.Put(t.Context(), "o", []byte(data), storetest.Sum([]byte(data)))
}

func (r *rig) content(t *testing.T) string {
	t.Helper()
	info, err := r.mem.Head(t.Context(), "o")
	if errors.Is(err, store.ErrNotFound) {
		return "absent"
	}
	p := make([]byte, info.Size)
	if _, err := r.mem.Get(t.Context(), "o", p, store.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	return string(p)
}

func TestRetryConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return store.Retry(mem.New(), store.Policy{}) })
}

// TestRetryConformanceUnderFaults is the suite on a store that fails now and
// then in every way that does not leave a late write behind.
func TestRetryConformanceUnderFaults(t *testing.T) {
	seed := uint64(0)
	rates := faulty.Rates{Refuse: 0.03, Fail: 0.03, Lose: 0.03, Ambiguous: 0.05, Short: 0.05}
	storetest.Run(t, func(t *testing.T) store.Store {
		seed++
		driver := faulty.Random(seed, rates)
		return store.Retry(faulty.New(mem.New(), func(op faulty.Op) faulty.Fault {
			switch op.Kind {
			case store.OpCreateContainer, store.OpDelete:
				// An ambiguous creation is not told from another's,
				// and an ambiguous deletion of what is absent is a success.
				return faulty.Fault{}
			}
			return driver(op)
		}), store.Policy{Base: time.Microsecond})
	})
}

// TestRetryTransient tries every status once before a success.
func TestRetryTransient(t *testing.T) {
	for _, c := range []struct {
		fault faulty.Fault
		again bool
	}{
		{status(408, nil), true}, {status(409, nil), true}, {status(429, nil), true}, {status(498, nil), true},
		{status(500, nil), true}, {status(502, nil), true}, {status(503, nil), true}, {status(504, nil), true},
		{status(507, store.ErrNoSpace), true}, {reset, true}, {refused, true},
		{status(400, nil), false}, {status(401, store.ErrUnauthorized), false}, {status(403, store.ErrForbidden), false},
		{status(404, store.ErrNotFound), false}, {status(412, store.ErrPrecondition), false}, {status(413, store.ErrNoSpace), false},
		{status(497, nil), false}, {faulty.Fault{Err: errors.New("what?")}, false}, {faulty.Fault{Err: errors.ErrUnsupported}, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			for _, do := range []func(s store.Store) error{
				func(s store.Store) error { _, err := s.Metadata(t.Context()); return err },
				func(s store.Store) error { _, err := s.List(t.Context(), store.ListOptions{}); return err },
				func(s store.Store) error { return s.SetMetadata(t.Context(), nil) },
				func(s store.Store) error { return s.BulkDelete(t.Context(), nil) },
				func(s store.Store) error { _, err := s.CreateContainer(t.Context(), nil); return err },
				func(s store.Store) error { return s.Put(t.Context(), "o", nil, storetest.Sum(nil)) },
				func(s store.Store) error {
					_, err := s.Get(t.Context(), "o", nil, store.GetOptions{})
					if errors.Is(err, store.ErrNotFound) && !c.again {
						return nil
					}
					return err
				},
			} {
				r := newRig(t, store.Policy{}, nil)
				if err := r.mem.Put(t.Context(), "o", nil, ""); err != nil {
					t.Fatal(err)
				}
				r.faulty.SetDriver(script(c.fault))
				err := do(r)
				if c.again && (err != nil || len(r.retries) != 1 || r.retries[0].Attempt != 1) {
					t.Errorf("%v: %v after retries %v, want one and success", c.fault.Err, err, r.retries)
				}
				if !c.again && len(r.retries) != 0 {
					t.Errorf("%v: tried again", c.fault.Err)
				}
				if !c.again && err != nil && err != c.fault.Err { //nolint:errorlint // the very same
					t.Errorf("%v: became %v", c.fault.Err, err)
				}
			}
		})
	}
}

// TestRetryGivesUp bounds the whole, keeps the last error, and makes an attempt
// shortly before the end.
func TestRetryGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last time.Duration
		start := time.Now()
		r := newRig(t, store.Policy{Timeout: time.Minute}, func(op faulty.Op) faulty.Fault {
			last = time.Since(start)
			return faulty.Fault{Err: &store.StatusError{Op: "HEAD o", Code: 503, RetryAfter: 25 * time.Second}}
		})
		_, err := r.Head(t.Context(), "o")
		var re *store.RetryError
		if !errors.As(err, &re) || re.Attempts != int(r.faulty.Ops()) || re.Elapsed != last || re.Ambiguous {
			t.Fatalf("%#v", err)
		}
		if last < 50*time.Second || time.Since(start) > time.Minute {
			t.Errorf("the last attempt came after %v, the end after %v", last, time.Since(start))
		}
		var se *store.StatusError
		if !errors.As(err, &se) || se.Code != 503 || !strings.Contains(err.Error(), fmt.Sprintf("tried %d times in 5", re.Attempts)) {
			t.Errorf("%v", err)
		}
		if re.Attempts != 4 { // at 0, 25, 50 and 55 seconds and a little
			t.Errorf("%d attempts: Retry-After is not honoured", re.Attempts)
		}
	})
}

// TestRetryRunsOutOfTime has an answer first and then none: what there was is
// said beside it.
func TestRetryRunsOutOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, store.Policy{Timeout: 10 * time.Second, Attempt: -1}, script(status(507, nil), faulty.Fault{Hang: true}))
		_, err := r.Head(t.Context(), "o")
		var se *store.StatusError
		if !errors.As(err, &se) || se.Code != 507 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%#v", err)
		}
		if s := err.Error(); !strings.Contains(s, "tried 2 times in 10s, before: test: 507") || strings.Contains(s, "\n") {
			t.Error(s)
		}
	})
}

// TestRetryOnce has time run out in the first attempt.
func TestRetryOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, store.Policy{Timeout: 10 * time.Second, Attempt: -1}, script(status(503, nil)))
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := r.Head(ctx, "o")
		if err == nil || !strings.Contains(err.Error(), "(tried once, until: ") {
			t.Error(err)
		}
	})
}

// TestRetrySeesTheStoreComeBack fails for most of the timeout.
func TestRetrySeesTheStoreComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := newRig(t, store.Policy{Timeout: time.Minute}, func(op faulty.Op) faulty.Fault {
			if time.Since(start) < 54*time.Second {
				return refused
			}
			return faulty.Fault{}
		})
		if err := r.put(t, "a"); err != nil {
			t.Error(err)
		}
	})
}

// TestRetryBackoff doubles up to Max, with jitter.
func TestRetryBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, store.Policy{Timeout: time.Hour, Base: 100 * time.Millisecond, Max: 2 * time.Second}, func(op faulty.Op) faulty.Fault {
			if op.N <= 200 {
				return refused
			}
			return faulty.Fault{}
		})
		if _, err := r.Metadata(t.Context()); err != nil {
			t.Fatal(err)
		}
		bound, sum := 100*time.Millisecond, time.Duration(0)
		for i, x := range r.retries {
			if x.Wait < 0 || x.Wait > bound {
				t.Errorf("wait %d is %v, want at most %v", i, x.Wait, bound)
			}
			bound = min(2*bound, 2*time.Second)
			sum += x.Wait
		}
		// The mean of 200 waits, mostly of 0 to 2 s.
		if mean := sum / 200; mean < 700*time.Millisecond || mean > 1300*time.Millisecond {
			t.Errorf("the mean wait is %v: no full jitter", mean)
		}
	})
}

// TestRetryAfterIsBounded by the policy.
func TestRetryAfterIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, store.Policy{Timeout: time.Hour, RetryAfter: 10 * time.Second}, script(
			faulty.Fault{Err: &store.StatusError{Code: 429, RetryAfter: 5 * time.Second}},
			faulty.Fault{Err: &store.StatusError{Code: 429, RetryAfter: 24 * time.Hour}},
		))
		if _, err := r.Metadata(t.Context()); err != nil || len(r.retries) != 2 {
			t.Fatal(err, r.retries)
		}
		for i, want := range []time.Duration{5 * time.Second, 10 * time.Second} {
			if w := r.retries[i].Wait; w < want || w > want+time.Second {
				t.Errorf("wait %d: %v, want %v and a little", i, w, want)
			}
		}
	})
}

// TestRetryAttempt ends a request that hangs and makes another.
func TestRetryAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := newRig(t, store.Policy{Timeout: time.Minute, Attempt: 7 * time.Second}, script(faulty.Fault{Hang: true}))
		if _, err := r.Metadata(t.Context()); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d < 7*time.Second || d > 8*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

func TestRetryCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := errors.New("the lease is lost")
		for name, fault := range map[string]faulty.Fault{
			"while it waits":  {Err: &store.StatusError{Code: 503, RetryAfter: time.Hour}},
			"while it is out": {Hang: true},
		} {
			r := newRig(t, store.Policy{Timeout: time.Hour, RetryAfter: time.Hour, Attempt: -1}, script(fault))
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(3*time.Second, func() { cancel(gone) })
			start := time.Now()
			err := r.Put(ctx, "o", nil, storetest.Sum(nil))
			if !errors.Is(err, gone) || time.Since(start) != 3*time.Second || r.faulty.Ops() != 1 {
				t.Errorf("%s: %v after %v and %d operations", name, err, time.Since(start), r.faulty.Ops())
			}
			if !store.Ambiguous(err) {
				t.Errorf("%s: %v is not ambiguous", name, err)
			}
		}
	})
}

// TestRetryPut goes through what becomes of a Put; ops are the operations that
// reach the store.
func TestRetryPut(t *testing.T) {
	superseded := status(202, store.ErrSuperseded)
	supersededByUs := faulty.Fault{Err: superseded.Err, After: true}
	for _, c := range []struct {
		name   string
		faults []faulty.Fault
		ops    int64
		err    error
	}{
		{"nothing", nil, 1, nil},
		{"refused: nothing to read back", []faulty.Fault{refused}, 2, nil},
		{"lost", []faulty.Fault{reset}, 3, nil},            // put, head, put
		{"answer lost", []faulty.Fault{resetDone}, 2, nil}, // put, head
		{"answer lost, then refused", []faulty.Fault{resetDone, refused}, 3, nil},
		{"503 and stored", []faulty.Fault{{Err: faulty.Unavailable(store.Op{}), After: true}}, 2, nil},
		{"superseded by our own", []faulty.Fault{supersededByUs}, 2, nil},
		{"superseded until the clock is past", []faulty.Fault{superseded, {}, superseded, {}, superseded}, 7, nil},
		{"superseded, read back fails for good", []faulty.Fault{superseded, status(403, store.ErrForbidden)}, 2, store.ErrForbidden},
		{"damaged on the way", []faulty.Fault{status(422, nil), status(422, nil)}, 3, nil},
		{"lost, then refused for good", []faulty.Fault{reset, {}, status(403, store.ErrForbidden)}, 3, store.ErrForbidden},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, store.Policy{}, nil)
				if err := r.mem.Put(t.Context(), "o", []byte("old"), ""); err != nil {
					t.Fatal(err)
				}
				r.faulty.SetDriver(script(c.faults...))
				err := r.put(t, "new")
				if !errors.Is(err, c.err) || r.faulty.Ops() != c.ops {
					t.Errorf("%v after %d operations, want %v after %d", err, r.faulty.Ops(), c.err, c.ops)
				}
				if err == nil && r.content(t) != "new" {
					t.Errorf("the store has %q", r.content(t))
				}
			})
		})
	}
}

// TestRetryPutResends has the answer to a PUT lost, of which one replica has the data: its
// proxy has died. A HEAD shows the data, and only another PUT makes it durable. When more
// answers are lost, they are slow, and HEAD counts.
func TestRetryPutResends(t *testing.T) {
	superseded := status(202, store.ErrSuperseded)
	for _, c := range []struct {
		name      string
		faults    []faulty.Fault
		puts, ops int64
	}{
		{"nothing", nil, 1, 1},
		{"never sent", []faulty.Fault{refused}, 2, 2},
		{"the answer is lost", []faulty.Fault{resetDone}, 2, 2},
		{"the request is lost", []faulty.Fault{reset}, 2, 2},
		{"a gateway's 504", []faulty.Fault{{Err: status(504, nil).Err, After: true}}, 2, 2},
		{"two answers are lost", []faulty.Fault{resetDone, resetDone}, 2, 3},
		{"two requests are lost", []faulty.Fault{reset, reset}, 3, 4},
		{"and a slow clock", []faulty.Fault{resetDone, superseded}, 2, 3},
		{"and never sent", []faulty.Fault{resetDone, refused}, 3, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var puts int64
				faults := script(c.faults...)
				r := newRig(t, store.Policy{Resend: true}, func(op faulty.Op) faulty.Fault {
					if op.Kind == store.OpPut {
						puts++
					}
					return faults(op)
				})
				if err := r.put(t, "new"); err != nil || puts != c.puts || r.faulty.Ops() != c.ops || r.content(t) != "new" {
					t.Errorf("%v after %d PUTs of %d requests, want %d of %d; the store has %q", err, puts, r.faulty.Ops(), c.puts, c.ops, r.content(t))
				}
			})
		})
	}
}

// TestRetryPutOnFewReplicas has a PUT that one replica has stored, which is not enough:
// a HEAD shows the data, and only another PUT makes it durable.
func TestRetryPutOnFewReplicas(t *testing.T) {
	few := func(code int) faulty.Fault { f := status(code, nil); f.After = true; return f }
	superseded := status(202, store.ErrSuperseded)
	for _, c := range []struct {
		name   string
		faults []faulty.Fault
		puts   int
	}{
		{"500", []faulty.Fault{few(500)}, 2},
		{"503", []faulty.Fault{few(503)}, 2},
		{"507, three times", []faulty.Fault{few(507), few(507), few(507)}, 4},
		{"and then a lost request", []faulty.Fault{few(503), reset}, 3},
		{"and then a slow clock", []faulty.Fault{few(503), superseded, superseded}, 4},
		{"after a lost request", []faulty.Fault{reset, {}, few(503)}, 3},
		{"the load balancer's", []faulty.Fault{few(504)}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				puts, faults := 0, script(c.faults...)
				r := newRig(t, store.Policy{}, func(op faulty.Op) faulty.Fault {
					if op.Kind == store.OpPut {
						puts++
					}
					return faults(op)
				})
				if err := r.put(t, "new"); err != nil || puts != c.puts || r.content(t) != "new" {
					t.Errorf("%v after %d PUTs, want %d; the store has %q", err, puts, c.puts, r.content(t))
				}
			})
		})
	}
}

// TestRetryPutOnFewReplicasBefore has a Put that fails, and leaves the data on one
// replica. The next Put does not take that for its own, whose request was lost.
func TestRetryPutOnFewReplicasBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, store.Policy{}, func(faulty.Op) faulty.Fault {
			return faulty.Fault{Err: faulty.Unavailable(store.Op{}), After: true}
		})
		if err := r.put(t, "new"); err == nil {
			t.Fatal("503 for ever, and no error")
		}
		for _, c := range []struct{ lost, puts int }{{2, 3}, {1, 1}} { // a success ends it
			puts := 0
			r.faulty.SetDriver(func(op faulty.Op) faulty.Fault {
				if op.Kind != store.OpPut {
					return faulty.Fault{}
				}
				if puts++; puts <= c.lost {
					return reset
				}
				return faulty.Fault{}
			})
			if err := r.put(t, "new"); err != nil || puts != c.puts {
				t.Errorf("%d lost: %v after %d PUTs, want %d", c.lost, err, puts, c.puts)
			}
		}
	})
}

func TestRetryPutEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Superseded for ever: the data is not in the store and nobody may
		// believe that it is.
		r := newRig(t, store.Policy{}, func(op faulty.Op) faulty.Fault {
			if op.Kind == store.OpPut {
				return status(202, store.ErrSuperseded)
			}
			return faulty.Fault{}
		})
		if err := r.put(t, "a"); !errors.Is(err, store.ErrSuperseded) || store.Ambiguous(err) {
			t.Errorf("%v", err)
		}
		// A wrong ETag: three times is enough.
		r = newRig(t, store.Policy{}, nil)
		if err := r.Put(t.Context(), "o", []byte("a"), storetest.Sum([]byte("b"))); err == nil || r.faulty.Ops() != 3 {
			t.Errorf("%v after %d operations", err, r.faulty.Ops())
		}
		// Ambiguous at first, refused ever after: still ambiguous.
		r = newRig(t, store.Policy{}, func(op faulty.Op) faulty.Fault {
			if op.N == 1 {
				return reset
			}
			return refused
		})
		if err := r.put(t, "a"); err == nil || !store.Ambiguous(err) {
			t.Errorf("%v: not ambiguous", err)
		}
		if !r.retries[0].Ambiguous || r.retries[1].Ambiguous || r.retries[0].Op.Name != "o" {
			t.Errorf("OnRetry was told %+v", r.retries[:2])
		}
		// Never sent: not ambiguous.
		r = newRig(t, store.Policy{}, func(faulty.Op) faulty.Fault { return refused })
		if err := r.put(t, "a"); err == nil || store.Ambiguous(err) {
			t.Errorf("%v: ambiguous", err)
		}
	})
}

func TestRetryDelete(t *testing.T) {
	for _, c := range []struct {
		name   string
		faults []faulty.Fault
		exists bool
		err    error
	}{
		{"there", nil, true, nil},
		{"absent", nil, false, store.ErrNotFound},
		{"absent, refused first", []faulty.Fault{refused}, false, store.ErrNotFound},
		{"answer lost", []faulty.Fault{resetDone}, true, nil},
		{"answer lost, then refused", []faulty.Fault{resetDone, refused}, true, nil},
		{"lost", []faulty.Fault{reset}, true, nil},
		{"superseded for a while", []faulty.Fault{status(409, store.ErrSuperseded), status(409, store.ErrSuperseded)}, true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, store.Policy{}, nil)
				if c.exists {
					if err := r.mem.Put(t.Context(), "o", nil, ""); err != nil {
						t.Fatal(err)
					}
				}
				r.faulty.SetDriver(script(c.faults...))
				if err := r.Delete(t.Context(), "o"); !errors.Is(err, c.err) {
					t.Errorf("%v, want %v", err, c.err)
				}
				if got := r.content(t); got != "absent" {
					t.Errorf("the store has %q", got)
				}
			})
		})
	}
}

func TestRetryDeleteContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, store.Policy{}, script(resetDone))
		if err := r.DeleteContainer(t.Context()); err != nil {
			t.Errorf("the answer was lost: %v", err)
		}
		if err := r.DeleteContainer(t.Context()); !errors.Is(err, store.ErrContainerNotFound) {
			t.Errorf("absent: %v", err)
		}
		r = newRig(t, store.Policy{}, nil)
		if err := r.put(t, "a"); err != nil {
			t.Fatal(err)
		}
		if err := r.DeleteContainer(t.Context()); !errors.Is(err, store.ErrNotEmpty) || len(r.retries) != 0 {
			t.Errorf("not empty: %v after %v", err, r.retries)
		}
	})
}
