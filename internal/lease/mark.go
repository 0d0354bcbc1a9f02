// SPDX-License-Identifier: MIT

// Package lease is the right to write to a volume: who holds it, how it is
// taken, and how it is given back.
//
// Today it is swiftnbd 0.11's mark in the container's metadata: the item
// Client says who uses the volume, and is moved to Last when they leave. Swift
// has no compare-and-swap on metadata, so the mark is good manners and no
// fence; it is read back after it was set, which catches most of two who come
// at once. A killed holder's mark stays until somebody breaks it.
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
}

func (e *LockedError) Error() string {
	s := "locked by " + e.Holder
	if !e.Since.IsZero() {
		s += " since " + e.Since.UTC().Format("2006-01-02 15:04:05 UTC")
	}
	return s
}

// ErrNotLocked is Break's error where there is no mark.
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

// Held is a mark that this process has set.
type Held struct {
	store store.Store
	mark  string
	found volume.Meta // what the volume was when it was taken
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
	h := &Held{store: s, mark: FormatMark(holder, time.Now()), found: meta}
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

// Release gives the volume back: the mark moves to Last, as 0.11 does it. It
// ends with ErrLost, and changes nothing, when the mark is not ours any more.
func (h *Held) Release(ctx context.Context) error {
	return h.release(ctx, map[string]string{volume.KeyLast: h.mark})
}

// ReleaseMapped is Release for a session that has saved the map of the chunks
// under its mark.
func (h *Held) ReleaseMapped(ctx context.Context) error {
	return h.release(ctx, map[string]string{volume.KeyLast: h.mark, volume.KeyMap: h.mark})
}

// ReleaseUnchanged is Release for a session that has written nothing: all is
// as it was found, Last too.
func (h *Held) ReleaseUnchanged(ctx context.Context) error {
	items := map[string]string{}
	if h.found.Blank {
		items[volume.KeyBlank] = h.found.Last
	}
	if h.found.Map != "" {
		items[volume.KeyMap] = h.found.Map
	}
	return h.release(ctx, items)
}

// release removes the mark and sets items with it.
func (h *Held) release(ctx context.Context, items map[string]string) error {
	meta, err := h.store.Metadata(ctx)
	if err != nil {
		return fmt.Errorf("release the lock mark: %w", err)
	}
	if is := meta.Items[volume.KeyClient]; is != h.mark {
		return fmt.Errorf("release the lock mark: %w: it is %q", ErrLost, is)
	}
	items[volume.KeyClient] = ""
	if err := h.store.SetMetadata(ctx, items); err != nil {
		return fmt.Errorf("release the lock mark: %w", err)
	}
	return nil
}

// Break removes whatever mark there is and returns it: an operator's unlock.
// It ends with ErrNotLocked where there is none.
func Break(ctx context.Context, s store.Store) (mark string, err error) {
	meta, err := volume.Read(ctx, s)
	if err != nil {
		return "", err
	}
	if meta.Client == "" {
		return "", ErrNotLocked
	}
	err = s.SetMetadata(ctx, map[string]string{
		volume.KeyClient: "",
		volume.KeyLast:   meta.Client,
		volume.KeyBlank:  "",
		volume.KeyMap:    "",
	})
	if err != nil {
		return "", fmt.Errorf("remove the lock mark: %w", err)
	}
	return meta.Client, nil
}
