// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Ordered returns s with one more promise: writes of one object take effect in
// the order in which they are made. Put and Delete end only when no earlier
// request for the same object can take effect after them. A request that was
// sent and not answered may wait somewhere on its way. It may reach the server
// later, and get a newer timestamp than a write that was made meanwhile. For
// signed requests this lasts a few seconds: then the server refuses them. The
// store below reports each such request to late. A Put or Delete that succeeds
// after such a request waits for that moment and looks at the object. If the
// object is not what was written, it is written again.
//
// Put Ordered around the limiter: then a write that waits holds no slot. s must
// contain Retry.
func Ordered(s Store, late *Stragglers) Store {
	return &ordered{Store: s, late: late}
}

type ordered struct {
	Store
	late *Stragglers
}

// Stragglers are the requests to write that were sent and not answered, by
// object. A store reports them, and Ordered waits for them. The zero value is
// ready for use.
type Stragglers struct {
	mu    sync.Mutex
	until map[string]time.Time // by object: until when a request may take effect, by our clock
}

// MayLand reports that a request to write the object was sent and not answered.
// Until the given moment of our clock it may still reach the server and take
// effect. A nil *Stragglers ignores it.
func (l *Stragglers) MayLand(object string, until time.Time) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.until == nil {
		l.until = make(map[string]time.Time)
	}
	if until.After(l.until[object]) {
		l.until[object] = until
	}
}

// of returns the moment until which a request for the object may land. Zero: no
// request may.
func (l *Stragglers) of(object string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.until[object]
}

// forget removes the note that a request for the object may land until then.
func (l *Stragglers) forget(object string, then time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.until[object].After(then) {
		delete(l.until, object)
	}
}

// last makes write the last request that takes effect. right says whether the
// object is what was written.
func (s *ordered) last(ctx context.Context, name string, write func() error, right func(ObjectInfo, error) bool) error {
	for {
		begun := time.Now()
		err := write()
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		late := s.late.of(name)
		if late.IsZero() {
			return err
		}
		if begun.After(late) { // then the late request is no attempt of this write
			s.late.forget(name, late)
			return err
		}
		if !sleep(ctx, time.Until(late)) {
			return &TransportError{Op: "wait for a late write of " + OneLine(name), Err: context.Cause(ctx)}
		}
		info, herr := s.Store.Head(ctx, name)
		if herr != nil && !errors.Is(herr, ErrNotFound) {
			return fmt.Errorf("look at %s after a late write: %w", OneLine(name), herr)
		}
		if right(info, herr) {
			s.late.forget(name, late)
			return err
		}
	}
}

// Put implements Store; see Ordered.
func (s *ordered) Put(ctx context.Context, name string, data []byte, etag ETag) error {
	return s.last(ctx, name,
		func() error { return s.Store.Put(ctx, name, data, etag) },
		func(info ObjectInfo, err error) bool {
			return err == nil && info.Size == int64(len(data)) && (etag == "" || info.ETag == etag)
		})
}

// Delete implements Store; see Ordered.
func (s *ordered) Delete(ctx context.Context, name string) error {
	return s.last(ctx, name,
		func() error { return s.Store.Delete(ctx, name) },
		func(_ ObjectInfo, err error) bool { return err != nil })
}
