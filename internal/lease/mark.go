// SPDX-License-Identifier: MIT

// Package lease is the right to write to a volume: who holds it, how it is
// taken, renewed and given back, and how a former holder is kept from writing.
//
// A lease is a container of its own that exists for one holder at most
// (acquire.go), has an end that its holder puts off by renewing it (renew.go),
// and comes with a key that the holder's writes are signed with. With it goes
// swiftnbd 0.11's mark in the volume's metadata (mark.go), which 0.11 and
// people see: the item Client says who uses the volume, and is moved to Last
// when they leave. The mark alone, where there can be no lease, is good manners
// and no fence: it is read back after it was set, which catches most of two
// who come at once, and a killed holder's stays until somebody breaks it.
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

// LockedError is a volume that somebody else holds.
type LockedError struct {
	Holder string    // as it stands in the mark, without the time
	Since  time.Time // zero when the mark gives none
	// Leased says that it ends by itself, at Until by Swift's clock, which
	// shows Now, unless it is renewed.
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

// ErrNotLocked is Unlock's error where there is no mark.
var ErrNotLocked = errors.New("not locked")

// ErrLost is Release's error when the mark is not the holder's any more.
var ErrLost = errors.New("the lock is not ours any more")

// ParseMark splits a mark, "HOLDER@UNIX", into who and when. A mark without a
// time is all holder.
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

// Locked returns the error for a volume whose mark is mark, or nil when the
// mark is empty.
func Locked(mark string) error {
	if mark == "" {
		return nil
	}
	e := new(LockedError)
	e.Holder, e.Since = ParseMark(mark)
	return e
}

// Holder names this process in a mark: "HOST:PID", 0.11's "HOST:PORT" in shape.
func Holder() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	// Swift takes 256 bytes a value; the time needs some of them.
	if len(host) > 200 {
		host = host[:200]
	}
	return fmt.Sprintf("%s:%d", host, os.Getpid())
}

// Mark takes the volume in s's container for holder. It returns the volume's
// metadata as it was read under the mark. It ends with a *LockedError when
// somebody else has it, or as volume.Read does.
func Mark(ctx context.Context, s store.Store, holder string) (*Held, volume.Meta, error) {
	meta, err := volume.Read(ctx, s)
	if err != nil {
		return nil, meta, err
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
		// These were true of the volume that we found, and we now hold it;
		// unless somebody came and went before our mark was set.
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

// takeBack removes a mark of which it is not known whether it was set, as well
// as it can: if it cannot, the volume stays locked, and names us.
func (h *Held) takeBack(ctx context.Context) {
	_ = h.ReleaseUnchanged(context.WithoutCancel(ctx))
}

// Mark returns the mark's text.
func (h *Held) Mark() string { return h.mark }

// Fence returns what says whether the volume is held still.
func (h *Held) Fence() *store.Fence { return h.o.Fence }
