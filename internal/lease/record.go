// SPDX-License-Identifier: MIT

package lease

import (
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
	//
	// Renewals use slots keys for the end, in turn, and the latest counts: a
	// renewal's request that arrives when others have been made since must not
	// make the lease end earlier than its holder knows.
	keyHolder = "Swiftnbd-Lease-Holder"
	keyUntil  = "Swiftnbd-Lease-Until"
)

// slots is how many ends a lease has.
const slots = 4

// untilKey returns the key of a lease's end.
func untilKey(slot int) string {
	if slot %= slots; slot > 0 {
		return fmt.Sprintf("%s-%d", keyUntil, slot)
	}
	return keyUntil
}

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
	for slot := range slots {
		v := md.Items[untilKey(slot)]
		if v == "" {
			continue
		}
		until, err := time.Parse(time.RFC3339Nano, v)
		if err != nil {
			// never, or not ours to read: it does not end by itself.
			r.never = true
		} else if until.After(r.until) {
			r.until = until
		}
	}
	if r.until.IsZero() && !r.never {
		r.holder = "" // not complete
	}
	return r, newClock(md, sent), nil
}

// over says whether the lease has ended, grace ago.
func (r record) over(c clock) bool {
	return r.holder != "" && !r.never && c.earliest().After(r.until.Add(grace))
}

// before says whether another record of the same holder is more than r.
func (r record) before(other record) bool {
	return r.holder == other.holder && !r.never && (other.never || r.until.Before(other.until))
}

// writeRecord says who holds lease number epoch, and until when; zero is for
// ever.
func (o *Options) writeRecord(ctx context.Context, epoch int64, mark string, until time.Time, slot int) error {
	items := map[string]string{keyHolder: mark, untilKey(slot): never}
	if !until.IsZero() {
		items[untilKey(slot)] = until.UTC().Format(timeFormat)
	}
	return o.Sibling(ContainerName(o.Name, epoch)).SetMetadata(ctx, items)
}

// endRecord says that lease number epoch is over.
func (o *Options) endRecord(ctx context.Context, epoch int64, mark string) error {
	items := map[string]string{keyHolder: mark}
	for slot := range slots {
		items[untilKey(slot)] = ""
	}
	items[keyUntil] = time.Unix(1, 0).UTC().Format(timeFormat)
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

// lookAround is how many leases before and after the one that the volume names
// are looked at for that of the mark.
const lookAround = 8

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
	// Objects and Bytes are what Swift has counted in the container: late.
	Objects, Bytes int64

	items map[string]string
	clock clock
	// left says that the newest lease is there although nobody has the mark:
	// whoever had it did not give it back as we do, and may not know that it
	// is gone. unclean says so where they did not leave their mark in Last
	// either: then what the volume says of its content may be old.
	left, unclean bool
	// fading is an unclean lease that has not run out: whoever has it will
	// soon see that it is gone, and is told until then to be the holder.
	fading *LockedError
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
	if s.fading != nil {
		return s.fading
	}
	if s.Mark == "" || s.Leased && s.Expired {
		return nil
	}
	return &LockedError{Holder: s.Holder, Since: s.Since, Leased: s.Leased && !s.Never, Until: s.Until, Now: s.Now}
}

// Inspect finds out how the volume is held. It changes nothing. Errors are
// volume.Read's.
func Inspect(ctx context.Context, o Options) (State, error) {
	return o.inspect(store.WithClass(ctx, store.Unlimited))
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
	s := State{
		Meta: meta, Mark: meta.Client, Fenced: md.Items[KeyFence] != "", Objects: md.Objects, Bytes: md.Bytes,
		items: md.Items, clock: newClock(md, sent),
	}
	s.Holder, s.Since = ParseMark(s.Mark)
	s.Epoch, _ = strconv.ParseInt(md.Items[KeyEpoch], 10, 64)
	s.Epoch = max(s.Epoch, 0)
	s.Now = s.clock.latest()
	if s.Epoch == 0 || o.Sibling == nil {
		return s, nil
	}
	r, c, err := o.readRecord(ctx, s.Epoch)
	if s.Mark != "" && (err == nil && (r.holder != s.Mark || r.over(c)) || errors.Is(err, store.ErrContainerNotFound)) {
		// A number that was late on its way may stand in the place of the
		// mark's own.
		for n := max(1, s.Epoch-lookAround); n <= s.Epoch+lookAround; n++ {
			if r2, c2, err2 := o.readRecord(ctx, n); err2 == nil && r2.holder == s.Mark && !r2.before(r) {
				r, c, err = r2, c2, nil
			}
		}
	}
	switch {
	case errors.Is(err, store.ErrContainerNotFound), errors.Is(err, store.ErrForbidden):
		// It was given back; or the mark is another's, or the lease was
		// removed by hand; or the mark is all that we may see.
		return s, nil
	case err != nil:
		return s, fmt.Errorf("look at the lease: %w", err)
	}
	s.clock, s.Now = c, c.latest()
	switch {
	case s.Mark == "":
		s.left, s.unclean = true, r.holder != s.Meta.Last
		if s.unclean && r.holder != "" && !r.never && !r.over(c) {
			s.fading = &LockedError{Leased: true, Until: r.until, Now: s.Now}
			s.fading.Holder, s.fading.Since = ParseMark(r.holder)
		}
	case r.holder == s.Mark:
		s.Leased, s.Until, s.Never = true, r.until, r.never
		s.Expired = r.over(c)
	}
	return s, nil
}

// margin is how long before its lease's end a holder stops: more than the
// second by which Swift's clock may be misread.
func (o *Options) margin() time.Duration { return min(2*time.Second, o.Term/3) }

// grace is how long after a lease's end it counts as over: the clocks of
// Swift's servers differ a little, and what was under way comes to its end.
const grace = 2 * time.Second

// renewEvery is the pause between renewals: three fit before the holder stops.
func (o *Options) renewEvery() time.Duration { return (o.Term - o.margin()) / 3 }

// step bounds one request of a renewal.
func (o *Options) step() time.Duration { return max(o.Term/6, 50*time.Millisecond) }
