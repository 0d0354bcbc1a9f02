// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Settle returns s whose Put and Delete end only when no earlier request of the
// same object can come after them. A request that was sent and not answered
// may stand somewhere on its way and reach the server later, with a newer
// timestamp than whatever was written meanwhile. Signed requests do so for a
// few seconds only (MayLand): then the server refuses them. A Put or Delete
// that succeeds after such a one waits for that moment and looks at the object;
// where it is not what was written, it is written again.
//
// Put it around the limiter: then those who wait hold no slot. s must have
// Retry in it.
func Settle(s Store) Store {
	return &settler{Store: s, late: make(map[string]time.Time)}
}

type settler struct {
	Store

	mu   sync.Mutex
	late map[string]time.Time // by object: until when an earlier request may land
}

// before returns until when an earlier request of the object may land.
func (s *settler) before(name string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.late[name]
}

// note remembers that a request of the object may land until then; zero: none
// may that was not known.
func (s *settler) note(name string, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if until.After(s.late[name]) {
		s.late[name] = until
	}
}

// forget says that no request of the object may land any more that was known
// to do so until late.
func (s *settler) forget(name string, late time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.late[name].After(late) {
		delete(s.late, name)
	}
}

// settle makes write last. right says whether the object is what was written.
func (s *settler) settle(ctx context.Context, name string, write func(context.Context) error, right func(ObjectInfo, error) bool) error {
	for {
		begun := time.Now()
		m := new(mayLand)
		err := write(context.WithValue(ctx, mayLandKey{}, m))
		m.mu.Lock()
		s.note(name, m.until)
		m.mu.Unlock()
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		late := s.before(name)
		if late.IsZero() {
			return err
		}
		if m.until.IsZero() && begun.After(late) {
			s.forget(name, late)
			return err
		}
		if !sleep(ctx, time.Until(late)) {
			return &TransportError{Op: "settle " + OneLine(name), Err: context.Cause(ctx)}
		}
		info, herr := s.Store.Head(ctx, name)
		if herr != nil && !errors.Is(herr, ErrNotFound) {
			return fmt.Errorf("settle %s: %w", OneLine(name), herr)
		}
		if right(info, herr) {
			s.forget(name, late)
			return err
		}
	}
}

// Put implements Store; see Settle.
func (s *settler) Put(ctx context.Context, name string, data []byte, etag ETag) error {
	return s.settle(ctx, name,
		func(ctx context.Context) error { return s.Store.Put(ctx, name, data, etag) },
		func(info ObjectInfo, err error) bool {
			return err == nil && info.Size == int64(len(data)) && (etag == "" || info.ETag == etag)
		})
}

// Delete implements Store; see Settle.
func (s *settler) Delete(ctx context.Context, name string) error {
	return s.settle(ctx, name,
		func(ctx context.Context) error { return s.Store.Delete(ctx, name) },
		func(_ ObjectInfo, err error) bool { return err != nil })
}

// mayLand is where a request leaves word that it may yet take effect.
type mayLand struct {
	mu    sync.Mutex
	until time.Time // by our clock; zero: no request of this operation may
}

type mayLandKey struct{}

// MayLand is called by a store whose request to write was sent and not
// answered: until that moment, by our clock, it may still reach the server and
// take effect. Settle makes use of it.
func MayLand(ctx context.Context, until time.Time) {
	if m, ok := ctx.Value(mayLandKey{}).(*mayLand); ok {
		m.mu.Lock()
		defer m.mu.Unlock()
		if until.After(m.until) {
			m.until = until
		}
	}
}
