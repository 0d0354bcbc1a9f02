// SPDX-License-Identifier: MIT

package lease

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// The keys of a lease's container, and of the volume's that belong to it.
const (
	// KeyEpoch, in the volume's container, is the number of the lease under
	// which Client was set.
	KeyEpoch = "Swiftnbd-Lease"
	// KeyFence, in the volume's container, is the key of the writers'
	// signatures. It is the second of Swift's TempURL keys. The first is left
	// to the user.
	KeyFence = "Temp-Url-Key-2"

	// keyHolder and keyUntil, in the lease's own container, are the holder's
	// mark, and the end by Swift's clock or "never".
	//
	// Renewals use slots keys for the end in turn, and the latest end counts. A
	// request of a renewal that arrives after later ones must not make the
	// lease end earlier than its holder knows.
	keyHolder = "Swiftnbd-Lease-Holder"
	keyUntil  = "Swiftnbd-Lease-Until"

	// keyStray, in a lease that is over, says that the request that sets its mark, which
	// was given up, may arrive once more. Then the lease shows that it is over. So
	// nobody deletes it.
	keyStray = "Swiftnbd-Lease-Stray"
)

// slots is how many ends a lease has.
const slots = 4

// turn gives the slots in turn, so many at a time. A slot is left out while a request
// for it may still be on its way, because its answer was lost: it must not replace the
// last one when all slots have been used again. Others are used in its place.
type turn struct {
	now  int
	late []bool // of each slot that there is
}

// next sets the next slot.
func (t *turn) next() {
	var free []int
	for slot, late := range t.late {
		if !late && len(free) < slots {
			free = append(free, slot)
		}
	}
	if len(free) == 0 {
		clear(t.late)
		free = []int{(t.now + 1) % len(t.late)}
	}
	for _, slot := range free {
		if slot > t.now {
			t.now = slot
			return
		}
	}
	t.now = free[0]
}

const (
	never      = "never"
	timeFormat = "2006-01-02T15:04:05.000Z07:00"
)

// ContainerName returns the name of the container of the volume's lease number
// epoch: CONTAINER.swiftnbd-lease.N. If CONTAINER is too long for that, its MD5
// replaces it.
func ContainerName(volume string, epoch int64) string {
	suffix := fmt.Sprintf(".swiftnbd-lease.%d", epoch)
	if len(volume)+len(suffix) > store.MaxContainerName {
		sum := md5.Sum([]byte(volume))
		volume = hex.EncodeToString(sum[:])
	}
	return volume + suffix
}

// record is a lease as it is stored in Swift.
type record struct {
	holder string    // the mark; empty: its creator has not written it yet
	until  time.Time // by Swift's clock; zero: never
	never  bool
	kept   Kept
	disk   string // of which volume that is true; empty: it is not said
	stray  bool   // its mark may still be set
}

// readRecord reads lease number epoch. If there is none, it returns
// store.ErrContainerNotFound.
func (o *Options) readRecord(ctx context.Context, epoch int64) (record, clock, error) {
	sent := time.Now()
	md, err := o.Sibling(ContainerName(o.Name, epoch)).Metadata(ctx)
	if err != nil {
		return record{}, clock{}, err
	}
	r := record{holder: md.Items[keyHolder], kept: keptIn(md.Items), disk: md.Items[keyDisk], stray: md.Items[keyStray] != ""}
	for slot := range slots {
		v := md.Items[slotKey(keyUntil, slot)]
		if v == "" {
			continue
		}
		until, err := time.Parse(time.RFC3339Nano, v)
		if err != nil {
			// The end is "never", or we cannot read it: the lease does not end
			// by itself.
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

// none says whether err, of reading a lease, says that there is none that we may read.
func none(err error) bool {
	return errors.Is(err, store.ErrContainerNotFound) || errors.Is(err, store.ErrForbidden)
}

// over says whether the lease ended at least grace ago.
func (r record) over(c clock) bool {
	return r.holder != "" && !r.never && c.earliest().After(r.until.Add(grace))
}

// running says whether the lease has a holder and an end, which is still to come.
func (r record) running(c clock) bool { return r.holder != "" && !r.never && !r.over(c) }

// locked returns the error for who meets the lease, which is running.
func (r record) locked(c clock) *LockedError {
	e := &LockedError{Leased: true, Until: r.until, Now: c.latest()}
	e.Holder, e.Since = ParseMark(r.holder)
	return e
}

// before says whether other, a record of the same holder, ends later than r.
func (r record) before(other record) bool {
	return r.holder == other.holder && !r.never && (other.never || r.until.Before(other.until))
}

// writeRecord writes who holds lease number epoch, and until when. A zero time
// means for ever. kept goes with it.
func (o *Options) writeRecord(ctx context.Context, epoch int64, mark string, until time.Time, slot int, kept map[string]string) error {
	items := map[string]string{keyHolder: mark, slotKey(keyUntil, slot): never}
	o.keep(items, kept)
	if !until.IsZero() {
		items[slotKey(keyUntil, slot)] = until.UTC().Format(timeFormat)
	}
	return o.Sibling(ContainerName(o.Name, epoch)).SetMetadata(ctx, items)
}

// keep adds to items, of a lease, what it is to keep.
func (o *Options) keep(items, kept map[string]string) {
	maps.Copy(items, kept)
	if len(kept) > 0 && o.disk != "" {
		items[keyDisk] = o.disk
	}
}

// endRecord writes that lease number epoch has ended. kept goes with it.
func (o *Options) endRecord(ctx context.Context, epoch int64, mark string, kept map[string]string) error {
	items := map[string]string{keyHolder: mark}
	o.keep(items, kept)
	for slot := range slots {
		items[slotKey(keyUntil, slot)] = ""
	}
	items[keyUntil] = time.Unix(1, 0).UTC().Format(timeFormat)
	return o.Sibling(ContainerName(o.Name, epoch)).SetMetadata(ctx, items)
}

// deleteLease deletes lease number epoch.
func (o *Options) deleteLease(ctx context.Context, epoch int64) error {
	return o.Sibling(ContainerName(o.Name, epoch)).DeleteContainer(ctx)
}

// clock is a reading of the store's clock. It showed server, cut to whole
// seconds, at some moment between sent and got.
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

// latest returns the latest time that the store's clock may show now, apart
// from the fraction of a second that Date cuts off. It is therefore at most a
// second before the clock. The end of a lease is computed from it.
func (c clock) latest() time.Time { return c.server.Add(time.Since(c.sent)) }

// earliest returns a time that the store's clock has passed by now.
func (c clock) earliest() time.Time { return c.server.Add(time.Since(c.got)) }

// lookAround is how many leases before and after the one that the volume names
// are read to find the lease of the mark.
const lookAround = 8

// State says how a volume is held.
type State struct {
	Meta   volume.Meta
	Mark   string    // the value of Client; empty: nobody holds the volume
	Holder string    // Mark's holder
	Since  time.Time // Mark's time
	Epoch  int64     // the newest lease's number; 0: there was none
	// Leased says that the mark belongs to a lease. It ends at Until by Swift's
	// clock unless it is renewed. With Never it has no end.
	Leased  bool
	Until   time.Time
	Never   bool
	Expired bool // it has ended: anybody may take the volume over
	// Kept has the items that the newest lease keeps for its holder, or for the
	// next one. After an end that was not in order those of others around it are
	// among them.
	Kept Kept
	// Fenced says that the container has a key to sign writes with.
	Fenced bool
	Now    time.Time // Swift's clock
	// Objects and Bytes are Swift's counts of the container, which are late.
	Objects, Bytes int64

	items map[string]string
	clock clock
	// same has the numbers of the leases that say they are of the newest one's holder,
	// as far as was looked.
	same []int64
	// left says that the newest lease exists although there is no mark. Its
	// holder did not give it back as we do, and may not know that the mark is
	// gone. unclean says that the holder did not leave its mark in Last either.
	// Then the volume's notes about its content may be old.
	left, unclean bool
	// stray says that the newest lease must stay: its mark may still come.
	stray bool
	// fading is an unclean lease that has not ended. Its holder will soon
	// notice that the mark is gone, or is another's that came late. Until then it
	// counts as the holder.
	fading *LockedError
}

// Grant returns a grant with the container's key, to find out whether
// signatures are checked. ok is false if there is no key.
func (s *State) Grant() (g store.Grant, ok bool) {
	key := s.items[KeyFence]
	return store.Grant{
		Key: key, Server: s.clock.server, Taken: s.clock.sent, UntilServer: s.clock.server.Add(time.Hour),
	}, key != ""
}

// Held returns a *LockedError if somebody holds the volume, and otherwise nil.
func (s *State) Held() error {
	if s.fading != nil {
		return s.fading
	}
	if s.Mark == "" || s.Leased && s.Expired {
		return nil
	}
	return &LockedError{Holder: s.Holder, Since: s.Since, Leased: s.Leased && !s.Never, Until: s.Until, Now: s.Now}
}

// Inspect finds out how the volume is held. It changes nothing. Its errors are
// volume.Read's, or those of requests.
func Inspect(ctx context.Context, o Options) (State, error) {
	return o.inspect(ctx)
}

func (o *Options) inspect(ctx context.Context) (State, error) {
	o.fill()
	sent := time.Now()
	md, err := o.Store.Metadata(ctx)
	if err != nil {
		return State{}, err
	}
	meta, err := volume.FromMetadata(md)
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
	o.disk = identity(meta)
	if s.Epoch == 0 || o.Sibling == nil {
		return s, nil
	}
	r, c, err := o.readRecord(ctx, s.Epoch)
	s.same = []int64{s.Epoch}
	if s.Mark != "" && (err == nil && (r.holder != s.Mark || r.over(c)) || errors.Is(err, store.ErrContainerNotFound)) {
		// A late request may have replaced the number of the mark's own lease, or the
		// mark and the number of one who has kept something since.
		own, at, lerr := o.ofMark(ctx, &s, r)
		if lerr != nil {
			return s, lerr
		}
		if own.holder != "" {
			r, c, err = own, at, nil
		}
	} else if s.Mark == "" && err == nil && o.disk != "" {
		// An unlock may have died before it could copy what the holder kept last.
		if err := o.lookBack(ctx, &s, r); err != nil {
			return s, err
		}
	}
	switch {
	case none(err):
		// The lease was given back, or the mark belongs to no lease, or
		// somebody has removed the lease by hand, or we may not read the lease.
		return s, nil
	case err != nil:
		return s, fmt.Errorf("look at the lease: %w", err)
	}
	s.clock, s.Now, s.stray = c, c.latest(), r.stray
	if (s.Mark == "" || r.holder == s.Mark) && (r.disk == "" || r.disk == o.disk) {
		s.Kept = s.Kept.with(r.kept)
	}
	switch {
	case s.Mark == "":
		s.left, s.unclean = true, r.holder != s.Meta.Last
		if s.unclean && r.running(c) {
			s.fading = r.locked(c)
		}
	case r.holder == s.Mark:
		s.Leased, s.Until, s.Never = true, r.until, r.never
		s.Expired = r.over(c)
	}
	return s, nil
}

// ofMark looks for the lease of the mark around the one that the volume names, which is
// r, and returns the one that ends last, unless r does; an empty one: there is none. It
// sets which leases are that holder's, and what is kept in those that count.
func (o *Options) ofMark(ctx context.Context, s *State, r record) (own record, at clock, err error) {
	s.same = nil
	var all Kept
	gap := false // between s.Epoch and n
	for n := max(1, s.Epoch-lookAround); n <= s.Epoch+lookAround; n++ {
		r2, c2, err := o.readRecord(ctx, n)
		if none(err) {
			gap = gap || n > s.Epoch
			continue
		}
		if err != nil {
			return own, at, fmt.Errorf("look at lease %d: %w", n, err)
		}
		found := len(s.same) > 0
		if gap && found && r2.running(c2) {
			// The mark came late, and this is the holder whose mark it has replaced.
			// Nobody would come past their number.
			s.fading = r2.locked(c2)
		}
		kept := o.keptBy(r2)
		all = all.with(kept)
		if r2.holder == s.Mark || found {
			s.Kept = s.Kept.with(kept)
		}
		if r2.holder != s.Mark {
			continue
		}
		s.same = append(s.same, n)
		if !r2.before(r) {
			r, own, at = r2, r2, c2
		}
	}
	if len(s.same) == 0 {
		s.Kept = all // somebody has removed it
	}
	return own, at, nil
}

// lookBack sets what is kept in the leases before the one that the volume names, which
// is r, and which of them are of its holder.
func (o *Options) lookBack(ctx context.Context, s *State, r record) error {
	for n := max(1, s.Epoch-lookAround); n < s.Epoch; n++ {
		r2, _, err := o.readRecord(ctx, n)
		if err != nil && !none(err) {
			return fmt.Errorf("look at lease %d: %w", n, err)
		}
		s.Kept = s.Kept.with(o.keptBy(r2))
		if r2.holder == r.holder && r.holder != "" {
			s.same = append(s.same, n)
		}
	}
	return nil
}

// margin is how long before the end of its lease a holder stops. It is more
// than the second by which Swift's clock may be misread.
func (o *Options) margin() time.Duration { return min(2*time.Second, o.Term/3) }

// grace is how long after its end a lease counts as over. The clocks of Swift's
// servers differ a little, and requests under way have time to end.
const grace = 2 * time.Second

// renewEvery is the pause between renewals. Three fit in before the holder
// stops.
func (o *Options) renewEvery() time.Duration { return (o.Term - o.margin()) / 3 }

// step bounds one request of a renewal.
func (o *Options) step() time.Duration { return max(o.Term/6, 50*time.Millisecond) }
