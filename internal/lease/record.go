// SPDX-License-Identifier: MIT

package lease

import (
	"cmp"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// The keys of a lease's container, and of the volume's that belong to it.
const (
	// KeyEpoch, in the volume's container: the number of the lease that
	// Client was set under.
	KeyEpoch = "Swiftnbd-Lease"
	// KeyFence, in the volume's container, is the key that its writers sign
	// with: the second of Swift's TempURL keys, so that the first is left to
	// the user.
	KeyFence = "Temp-Url-Key-2"

	// keyHolder and keyUntil, in the lease's own container: the mark of who
	// holds it, and when it ends by Swift's clock, or "never".
	keyHolder = "Swiftnbd-Lease-Holder"
	keyUntil  = "Swiftnbd-Lease-Until"
)

const (
	never      = "never"
	timeFormat = "2006-01-02T15:04:05.000Z07:00"
)

// ContainerName returns the name of the container that is lease number epoch
// of the volume: CONTAINER.swiftnbd-lease.N. A name that is too long for that
// is replaced by its MD5.
func ContainerName(volume string, epoch int64) string {
	suffix := fmt.Sprintf(".swiftnbd-lease.%d", epoch)
	if len(volume)+len(suffix) > store.MaxContainerName {
		sum := md5.Sum([]byte(volume))
		volume = hex.EncodeToString(sum[:])
	}
	return volume + suffix
}

// record is a lease as it stands in Swift.
type record struct {
	holder string    // the mark; empty: whoever made it has not said yet who they are
	until  time.Time // by Swift's clock; zero: never
	never  bool
}

// readRecord reads lease number epoch. It ends with store.ErrContainerNotFound
// where there is none.
func (o *Options) readRecord(ctx context.Context, epoch int64) (record, clock, error) {
	sent := time.Now()
	md, err := o.Sibling(ContainerName(o.Name, epoch)).Metadata(ctx)
	if err != nil {
		return record{}, clock{}, err
	}
	r := record{holder: md.Items[keyHolder]}
	switch v := md.Items[keyUntil]; v {
	case never:
		r.never = true
	case "":
		r.holder = "" // not complete
	default:
		if r.until, err = time.Parse(time.RFC3339Nano, v); err != nil {
			// Not ours to read: it does not end by itself.
			r.never = true
		}
	}
	return r, newClock(md, sent), nil
}

// writeRecord says who holds lease number epoch, and until when.
func (o *Options) writeRecord(ctx context.Context, epoch int64, mark string, until time.Time) error {
	items := map[string]string{keyHolder: mark, keyUntil: never}
	if !until.IsZero() {
		items[keyUntil] = until.UTC().Format(timeFormat)
	}
	return o.Sibling(ContainerName(o.Name, epoch)).SetMetadata(ctx, items)
}

// clock is what is known of the store's clock: it showed server at some moment
// from sent to got, cut to whole seconds.
type clock struct {
	server    time.Time
	sent, got time.Time
}

func newClock(md store.Metadata, sent time.Time) clock {
	c := clock{server: md.Date, sent: sent, got: time.Now()}
	if c.server.IsZero() {
		c.server = sent.Round(0)
	}
	return c
}

// latest returns the store's clock now, or up to a second before it: never
// after it by more than that. A lease is reckoned with it.
func (c clock) latest() time.Time { return c.server.Add(time.Since(c.sent)) }

// earliest returns a time that the store's clock has passed by now.
func (c clock) earliest() time.Time { return c.server.Add(time.Since(c.got)) }

// State is how a volume is held.
type State struct {
	Meta   volume.Meta
	Mark   string    // what stands in Client; empty: nobody holds it
	Holder string    // Mark's holder
	Since  time.Time // Mark's time
	Epoch  int64     // the newest lease's number; 0: there was none
	// Leased says that the mark belongs to a lease, which ends at Until by
	// Swift's clock unless it is renewed, or Never does.
	Leased  bool
	Until   time.Time
	Never   bool
	Expired bool // it has ended: whoever comes may take the volume over
	// Fenced says that the container has a key to sign writes with.
	Fenced bool
	Now    time.Time // Swift's clock

	items map[string]string
	clock clock
}

// Grant returns a grant with the container's key, for finding out whether
// signatures are checked; ok is false where there is no key.
func (s *State) Grant() (g store.Grant, ok bool) {
	key := s.items[KeyFence]
	return store.Grant{
		Key: key, Server: s.clock.server, Taken: s.clock.sent, UntilServer: s.clock.server.Add(time.Hour),
	}, key != ""
}

// Held returns a *LockedError where somebody holds the volume, nil otherwise.
func (s *State) Held() error {
	if s.Mark == "" || s.Leased && s.Expired {
		return nil
	}
	return &LockedError{Holder: s.Holder, Since: s.Since, Leased: s.Leased && !s.Never, Until: s.Until, Now: s.Now}
}

// Inspect finds out how the volume is held. It changes nothing. Errors are
// volume.Read's.
func Inspect(ctx context.Context, o Options) (State, error) {
	s, err := o.inspect(store.WithClass(ctx, store.Unlimited))
	return s, err
}

func (o *Options) inspect(ctx context.Context) (State, error) {
	o.fill()
	sent := time.Now()
	md, err := o.Store.Metadata(ctx)
	if err != nil {
		return State{}, err
	}
	meta, err := volume.ParseMeta(md.Items)
	if err != nil {
		return State{}, err
	}
	s := State{Meta: meta, Mark: meta.Client, Fenced: md.Items[KeyFence] != "", items: md.Items, clock: newClock(md, sent)}
	s.Holder, s.Since = ParseMark(s.Mark)
	s.Epoch, _ = strconv.ParseInt(md.Items[KeyEpoch], 10, 64)
	s.Epoch = max(s.Epoch, 0)
	s.Now = s.clock.latest()
	if s.Mark == "" || s.Epoch == 0 || o.Sibling == nil {
		return s, nil
	}
	r, c, err := o.readRecord(ctx, s.Epoch)
	switch {
	case errors.Is(err, store.ErrContainerNotFound):
		return s, nil // the mark is another's, or the lease was removed by hand
	case err != nil:
		return s, fmt.Errorf("look at the lease: %w", err)
	}
	if s.clock = c; r.holder == s.Mark {
		s.Leased, s.Until, s.Never = true, r.until, r.never
		s.Now = c.latest()
		s.Expired = !r.never && c.earliest().After(r.until.Add(o.grace()))
	}
	return s, nil
}

// margin is how long before its lease's end a holder stops: more than the
// second by which Swift's clock may be misread.
func (o *Options) margin() time.Duration { return min(2*time.Second, o.Term/3) }

// grace is how long after a lease's end it counts as over: the clocks of
// Swift's servers differ a little, and what was under way comes to its end.
func (o *Options) grace() time.Duration { return cmp.Or(o.Grace, 2*time.Second) }

// renewEvery is the pause between renewals: three fit before the holder stops.
func (o *Options) renewEvery() time.Duration { return (o.Term - o.margin()) / 3 }

// step bounds one request of a renewal.
func (o *Options) step() time.Duration { return max(o.Term/6, 50*time.Millisecond) }
