// SPDX-License-Identifier: MIT

// Package lease is the right to write to a volume: who holds it, how it is taken,
// renewed and given back, and what keeps a former holder from writing.
//
// A lease is a container of its own, which one holder at most can create
// (acquire.go). It has an end, and its holder puts the end off by renewing the
// lease (renew.go). With it comes a key, which signs the holder's writes.
//
// Together with the lease goes swiftnbd 0.11's mark in the volume's metadata
// (mark.go), which 0.11 and people see. The item Client says who uses the volume.
// Its value moves to Last when they leave. Where there can be no lease, the mark
// is alone. It is a convention then, and Swift does not enforce it. It is read
// back after it was set, which finds most cases of two that come at once. The
// mark of a holder that was killed stays until somebody breaks it.
package lease

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// LockedError says that another process or an operator holds the volume.
type LockedError struct {
	Holder string    // the mark without its time
	Since  time.Time // zero when the mark gives none
	// Leased says that the lock ends by itself at Until, unless it is renewed.
	// Until and Now are times of Swift's clock.
	Leased     bool
	Until, Now time.Time
}

func (e *LockedError) Error() string {
	s := "locked by " + e.Holder
	if !e.Since.IsZero() {
		s += " since " + e.Since.UTC().Format("2006-01-02 15:04:05 UTC")
	}
	if e.Leased {
		if left := e.Until.Sub(e.Now).Round(time.Second); left > 0 {
			s += fmt.Sprintf(", for %v more unless the lease is renewed", left)
		} else {
			s += ", whose lease is running out"
		}
	}
	return s
}

// ErrNotLocked is Unlock's error if there is no mark.
var ErrNotLocked = errors.New("not locked")

// ErrLost is Release's error if the holder does not have the mark any more.
var ErrLost = errors.New("the lock is not ours any more")

// ParseMark splits a mark, "HOLDER@UNIX", into holder and time. In a mark
// without a time, all of it is the holder.
func ParseMark(mark string) (holder string, since time.Time) {
	if at := strings.LastIndexByte(mark, '@'); at >= 0 {
		if sec, err := strconv.ParseInt(mark[at+1:], 10, 64); err == nil && sec > 0 {
			return mark[:at], time.Unix(sec, 0)
		}
	}
	return mark, time.Time{}
}

// FormatMark is ParseMark's inverse.
func FormatMark(holder string, since time.Time) string {
	return fmt.Sprintf("%s@%d", holder, since.Unix())
}

// Locked returns the error for a volume with this mark, or nil if the mark is
// empty.
func Locked(mark string) error {
	if mark == "" {
		return nil
	}
	e := new(LockedError)
	e.Holder, e.Since = ParseMark(mark)
	return e
}

// Holder returns the name of this process for a mark: "HOST:PID". It has the
// form of 0.11's "HOST:PORT".
func Holder() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	// Swift takes 256 bytes for a value. The time needs some of them.
	if len(host) > 200 {
		host = host[:200]
	}
	return fmt.Sprintf("%s:%d", host, os.Getpid())
}

// needsLease says why a volume of another version than 1 cannot be taken.
func needsLease(meta volume.Meta, why error) error {
	return fmt.Errorf("a disk of version %d of the format needs a lease: %w", meta.Version, why)
}

// Mark takes the volume in s's container for holder, with the mark only. Only
// version 1 of the format allows that. Mark returns the volume's metadata as it
// was read under the mark. If another process holds the volume, it returns a
// *LockedError. Its other errors are volume.Read's.
func Mark(ctx context.Context, s store.Store, holder string) (*Held, volume.Meta, error) {
	meta, err := volume.Read(ctx, s)
	if err != nil {
		return nil, meta, err
	}
	if meta.Version != volume.Version1 {
		return nil, meta, needsLease(meta, errors.New("there is swiftnbd 0.11's mark only"))
	}
	if err := Locked(meta.Client); err != nil {
		return nil, meta, err
	}
	h := &Held{o: Options{Store: s, Holder: holder}, store: s, mark: FormatMark(holder, time.Now()), found: meta}
	h.o.fill()
	h.o.Fence.Set(store.Grant{})
	items := map[string]string{volume.KeyClient: h.mark, volume.KeyBlank: "", volume.KeyMap: ""}
	if err := s.SetMetadata(ctx, items); err != nil {
		if store.Ambiguous(err) {
			h.takeBack(ctx)
		}
		return nil, meta, fmt.Errorf("set the lock mark: %w", err)
	}
	now, err := volume.Read(ctx, s)
	if err == nil && now.Client == h.mark {
		// These were true when we looked, and nobody has had the volume since:
		// a process that came and went before our mark was set would have left
		// another Last.
		if now.Last == meta.Last {
			now.Blank, now.Map = meta.Blank, meta.Map
		}
		h.found = now
		return h, now, nil
	}
	if err == nil {
		err = Locked(now.Client)
		if err == nil {
			err = errors.New("the lock mark was removed while it was being set")
		}
		return nil, now, err
	}
	h.takeBack(ctx)
	return nil, now, fmt.Errorf("read the lock mark back: %w", err)
}

// takeBack tries to remove a mark that may or may not have been set. If it
// fails, the volume stays locked, with our name.
func (h *Held) takeBack(ctx context.Context) {
	_ = h.ReleaseUnchanged(context.WithoutCancel(ctx))
}

// Mark returns the mark's text.
func (h *Held) Mark() string { return h.mark }

// Look returns ErrLost unless we hold the volume, as far as Swift can tell. It is for
// who has it for ever: nothing renews that lease. An answer that proves nothing is an
// error that is store.Transient.
func (h *Held) Look(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.look(ctx)
	if errors.Is(err, errBehind) {
		err = &store.TransportError{Op: "look at the lock mark", Err: err}
	}
	return err
}

// Epoch returns the number of the lease; 0 where there is only the mark. A lease
// that ran out while nobody else came goes on under a larger number.
func (h *Held) Epoch() int64 { return h.epoch.Load() }

// Former returns what the lease before this one kept (Options.Extra).
func (h *Held) Former() Kept { return h.former }

// Fence returns the fence, which says whether we still hold the volume.
func (h *Held) Fence() *store.Fence { return h.o.Fence }
