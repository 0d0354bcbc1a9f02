// SPDX-License-Identifier: MIT

package lease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// Forever is a Term without an end: an operator's lock.
const Forever time.Duration = -1

// Options say how a volume is taken.
type Options struct {
	// Store is the volume's container, with retries.
	Store store.Store
	// Name is the container's name. The names of the leases are made from it.
	Name string
	// Sibling returns another container of the account, with retries. nil:
	// there is no lease, only the mark.
	Sibling func(name string) store.Store
	// Fence, if not nil, is the fence that the writers ask. It has a grant as
	// long as the lease holds.
	Fence *store.Fence
	// CheckFence finds out whether the store refuses requests with a wrong
	// signature and accepts requests with the grant's. nil: writes are not
	// signed.
	CheckFence func(ctx context.Context, g store.Grant) error
	// Holder names who takes it (Holder).
	Holder string
	// Term is how long the lease lasts without being renewed; 0: no lease,
	// only the mark; Forever.
	Term time.Duration
	// SignedFor is store.Grant's.
	SignedFor time.Duration
	// Seen, if not nil, is called with the volume's metadata each time they are
	// read to find out whether we still hold the volume: at each renewal. It
	// must be quick and make no request. The metadata may come from a replica
	// that is behind.
	Seen func(store.Metadata)
	// Extra returns items that the holder wants to keep in the lease, in
	// addition to the lease's own: see Kept. It is called at each renewal, and
	// when the lease is taken. While it returns nothing, the lease keeps the
	// items of the one before. It must be quick, make no request and not call
	// the Held. nil: there are no items.
	Extra func() map[string]string
	// After is a lease number that was used: the lease gets a larger one. The
	// volume's metadata tell the last number too, but a late request may have set
	// an older one there, and version 2 of the format names objects by it.
	After int64
	// Log takes one line for the operator. nil: it is dropped.
	Log func(format string, args ...any)

	disk string // the volume's identity, once it is known; empty: it has none
}

func (o *Options) fill() {
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if o.Fence == nil {
		o.Fence = new(store.Fence)
	}
}

// markWait is the pause before a mark is read once more. Another program, such
// as 0.11, may set its mark at the same moment. It has done so after this
// pause.
const markWait = time.Second

// Held is a volume that this process holds.
type Held struct {
	o     Options
	store store.Store
	mark  string
	found volume.Meta // the volume's metadata when it was taken

	leased bool
	stop   context.CancelFunc // ends the renewals
	done   chan struct{}      // closed when they have ended

	former Kept              // what the lease that we came after kept
	was    map[string]string // the volume's metadata before our mark
	first  int64             // the number that was set with the mark

	tried  time.Time // the mark's; of the last attempt to take the volume
	stray  bool      // that attempt's mark may be set once more; it was given up
	strays int       // how many were

	epoch atomic.Int64 // changed under mu

	mu      sync.Mutex     // guards all below; held for a whole renewal
	numbers map[int64]bool // the numbers of the leases that we have created, with epoch
	old     map[int64]bool // the numbers of the leases to remove when they are not needed any more
	ends    turn           // of the record's end: the last renewal's
	values  turn           // of what is kept, in the same way
	key     string         // the key of the writes' signatures; it is in the container's metadata
	signed  bool           // writes are signed
	checked bool           // CheckFence has found that the store checks the key
	probes  int            // how often CheckFence has found that it does not
	refused time.Time      // since when our good signatures are refused
	unsure  bool           // the last renewal saw the volume as it was before us
}

// Acquire takes the volume, and returns its metadata as it was read under the
// lease. If another process holds the volume, it returns a *LockedError. Its
// other errors are volume.Read's. A volume of version 2 needs a lease, so it is
// an error if there can be none.
//
// A lease is a container of its own with a number. Creating a container is
// atomic in Swift: one client gets 201 and all others 202. The client that
// creates the next number holds the volume when two things are true: the
// volume's own container names this number, and nobody has created the number
// after it. A lease that was released or has ended makes way for the next one.
// No number is used twice at the same time.
func Acquire(ctx context.Context, o Options) (*Held, volume.Meta, error) {
	o.fill()
	if o.Term == 0 || o.Sibling == nil {
		return acquireMark(ctx, o)
	}
	h := &Held{o: o, store: o.Store, leased: true}
	var over *State // from whom; an attempt that gives up has removed the mark
	for try := 0; ; try++ {
		s, err := o.inspect(ctx)
		if err != nil {
			return nil, s.Meta, err
		}
		if err := s.Held(); err != nil {
			// The former holder is giving the lease back, or will soon notice
			// the loss. Look again.
			if s.fading != nil && try < unfinished && sleep(ctx, lookAgain) == nil {
				continue
			}
			return nil, s.Meta, err
		}
		epoch, passed, err := o.create(ctx, max(s.Epoch, o.After), nil, func(ctx context.Context) error {
			now, err := o.inspect(ctx)
			if err != nil {
				return err
			}
			return now.Held()
		})
		if errors.Is(err, store.ErrForbidden) && s.Meta.Version != volume.Version1 {
			return nil, s.Meta, needsLease(s.Meta, fmt.Errorf("the account may not create containers: %w", err))
		}
		if errors.Is(err, store.ErrForbidden) {
			held, meta, markErr := acquireMark(ctx, o)
			if markErr == nil {
				o.Log("the lock is swiftnbd 0.11's mark only, without a lease: the account may not create containers (%v)", err)
			}
			return held, meta, markErr
		}
		if err == nil {
			switch {
			case s.Mark != "":
				over = &s
			case s.Epoch != h.epoch.Load():
				over = nil // others have had it since
			}
			s.Kept = s.Kept.with(passed)
			err = h.take(ctx, epoch, s, try > 0)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, errAgain) {
			return nil, s.Meta, err
		}
		if try == maxEpochs {
			return nil, s.Meta, errors.New("the volume changes hands all the time")
		}
		if err := sleep(ctx, mrand.N(lookAgain)); err != nil {
			return nil, s.Meta, err
		}
	}
	if over != nil {
		o.Log("took the volume over from %s: its lease ended at %s", over.Holder, over.Until.UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	h.begin()
	return h, h.found, nil
}

// acquireMark takes the volume with the mark only.
func acquireMark(ctx context.Context, o Options) (*Held, volume.Meta, error) {
	h, meta, err := Mark(ctx, o.Store, o.Holder)
	if err != nil {
		return nil, meta, err
	}
	h.o = o
	// Another program may have set its mark after we read ours back.
	err = sleep(ctx, markWait)
	if err == nil {
		err = h.look(ctx)
	}
	if err != nil {
		if !errors.Is(err, ErrLost) {
			h.takeBack(ctx)
		}
		return nil, meta, err
	}
	h.o.Fence.Set(store.Grant{})
	h.begin()
	return h, meta, nil
}

// take makes lease number epoch, which we have created, the volume's lease. s
// is the state of the volume before. contended says that others have tried to
// take the volume since we began. errAgain says that the volume has changed
// hands since.
func (h *Held) take(ctx context.Context, epoch int64, s State, contended bool) (err error) {
	o := &h.o
	o.disk = identity(s.Meta)
	begun := time.Now()
	// Each attempt has a mark of its own: one that is given up may leave a lease for it.
	if h.tried = h.tried.Add(time.Second); h.tried.Before(begun) {
		h.tried = begun
	}
	h.mark, h.key = FormatMark(o.Holder, h.tried), ""
	h.epoch.Store(epoch)
	h.numbers = map[int64]bool{epoch: true}
	h.ends, h.values = turn{late: make([]bool, slots)}, turn{late: make([]bool, keptSlots)}
	h.old = map[int64]bool{epoch: true}
	h.former = s.Kept
	h.signed, h.checked, h.probes, h.stray = false, false, 0, false
	marked := false
	defer func() {
		if err != nil {
			h.discard(ctx, s, marked, errors.Is(err, ErrNotOwner))
		}
	}()
	// A lease for ever is first made with an end. If this process dies half
	// way, the lease must not stay for ever.
	until := s.clock.latest().Add(lookAgain * unfinished)
	if o.Term != Forever {
		until = s.clock.latest().Add(o.Term)
	}
	if err := h.put(ctx, epoch, until, h.kept(true)); err != nil {
		// The request may still arrive. It must not change a lease of the same
		// number that another process has made.
		marked = store.Ambiguous(err)
		return fmt.Errorf("take lease %d: %w", epoch, err)
	}
	// A process that came after we looked at the volume cannot have taken it,
	// unless it had created an earlier number and is gone again.
	sent := time.Now()
	md, err := h.store.Metadata(ctx)
	if err != nil {
		return err
	}
	c := newClock(md, sent)
	if md.Items[volume.KeyClient] != s.Mark || md.Items[volume.KeyLast] != s.Meta.Last || md.Items[KeyEpoch] != s.items[KeyEpoch] {
		return errAgain
	}
	// If the whole process was stopped here, another one may have taken the
	// volume.
	if o.late(begun) {
		return errAgain
	}
	items := map[string]string{
		volume.KeyClient: h.mark, volume.KeyBlank: "", volume.KeyMap: "",
		KeyEpoch: strconv.FormatInt(epoch, 10),
	}
	if s.Mark != "" {
		items[volume.KeyLast] = s.Mark // the mark of a dead holder
	}
	if o.CheckFence != nil {
		// After a clean end the key may stay, since no process that has it is
		// left. A holder that did not end cleanly may be alive. The same is
		// true of others who were about to take the volume.
		h.key = md.Items[KeyFence]
		if h.key == "" || s.Mark != "" || s.left || contended || epoch != s.Epoch+1 {
			h.key = rand.Text()
		}
		// One that stays is set again, too: a replica that has missed it would
		// have our mark without it.
		items[KeyFence] = h.key
	}
	h.was, h.first, marked = md.Items, epoch, true
	var strays atomic.Bool
	if err := h.store.SetMetadata(store.WithStrays(ctx, &strays), items); err != nil {
		marked = store.Ambiguous(err)
		return fmt.Errorf("set the lock mark: %w", err)
	}
	if h.stray = strays.Load(); h.stray {
		// The same mark, number and key may be set once more, after others have had the
		// volume. We would take that for a proof that nobody has. They get others, unless
		// the network spoils them all.
		if h.strays++; h.strays <= maxStrays {
			return errAgain
		}
		h.stray = false
	}
	now, err := h.verify(ctx)
	switch {
	case errors.Is(err, ErrLost), errors.Is(err, errNumber), errors.Is(err, errBehind):
		return errAgain // another process was quicker, and may be gone again
	case err != nil:
		return err
	}
	// Others wait for longer than this before they go past our number, so
	// nobody has done that.
	if o.late(begun) {
		return errAgain
	}
	if o.Term == Forever {
		until = time.Time{}
		if err := o.writeRecord(ctx, epoch, h.mark, until, h.ends.now, nil); err != nil {
			return fmt.Errorf("take lease %d for ever: %w", epoch, err)
		}
	}
	if s.Mark == "" && !s.unclean && now.Last == s.Meta.Last {
		// These were true when we looked, and nobody else has had the volume
		// since.
		now.Blank, now.Map = s.Meta.Blank, s.Meta.Map
	}
	h.found = now
	h.grant(ctx, c, begun, until)
	if !s.stray { // else its mark may still come
		if s.Epoch > 0 && s.Epoch != epoch {
			h.old[s.Epoch] = true
		}
		for _, n := range s.same {
			if n != epoch {
				h.old[n] = true
			}
		}
	}
	if o.Term == Forever {
		// Who takes it for ever may end without giving it back, and nobody would
		// remove the lease before this one.
		h.remove(ctx, epoch)
	}
	return nil
}

// maxStrays is how many attempts to take a volume are given up because their mark may be
// set once more.
const maxStrays = 3

// late says whether an attempt to take the volume, begun at that moment, has
// taken too long. Others may soon count it as left behind.
func (o *Options) late(begun time.Time) bool {
	limit := lookAgain * unfinished / 2
	if o.Term > 0 {
		limit = min(limit, o.Term/2)
	}
	now := time.Now()
	return now.Sub(begun) > limit || now.Round(0).Sub(begun.Round(0)) > limit
}

// grant lets the writers write. A request that began at begun has set the
// lease's end to until, by the store's clock. c was read after it.
func (h *Held) grant(ctx context.Context, c clock, begun, until time.Time) {
	g := store.Grant{Server: c.server, Taken: c.sent, Slack: c.got.Sub(c.sent), SignedFor: h.o.SignedFor}
	if h.o.Term != Forever {
		// Use the last reading of the store's clock as well. until was computed
		// from an earlier reading, and our monotonic clock stands still while
		// the machine sleeps.
		g.Until = begun.Add(h.o.Term - h.o.margin())
		if end := c.sent.Add(until.Sub(c.server) - h.o.margin()); end.Before(g.Until) {
			g.Until = end
		}
		g.UntilServer = until
	} else {
		g.UntilServer = c.server.AddDate(1, 0, 0)
	}
	if h.signed {
		g.Key = h.key
	}
	h.o.Fence.Set(g)
	was := h.signed
	h.checkFence(ctx, g)
	if h.signed != was {
		if g.Key = ""; h.signed {
			g.Key = h.key
		}
		h.o.Fence.Set(g)
	}
}

// refusedFor is how long Swift may refuse good signatures before the writes go
// without one. It is longer than a proxy of Swift remembers an old key.
const refusedFor = 70 * time.Second

// checkFence finds out whether the store checks our signatures. If it does not,
// the writes go without. As long as this is not known, they are signed: a
// failed request must not make them unfenced. checkFence tries again at the
// next renewals, since a proxy may remember the container's older key for a
// minute.
func (h *Held) checkFence(ctx context.Context, g store.Grant) {
	const tries = 12
	if h.key == "" || h.checked || h.probes >= tries {
		return
	}
	ctx, cancel := h.bounded(ctx)
	defer cancel()
	g.Key = h.key
	err := h.o.CheckFence(ctx, g)
	refused := errors.Is(err, store.ErrFenced)
	if !refused {
		h.refused = time.Time{}
	} else if h.refused.IsZero() {
		h.refused = time.Now()
	}
	switch {
	case err == nil:
		h.signed, h.checked, h.probes = true, true, 0
	case refused && time.Since(h.refused) > refusedFor && h.look(ctx) == nil:
		if h.signed = false; h.probes == 0 {
			h.probes = 1
			h.o.Log("writes are not signed any more: Swift refuses the disk's key, although the disk is ours (%v); the disk works, but Swift could not refuse what this server sends late, after another has taken the disk over", err)
		}
	case store.Transient(err) || ctx.Err() != nil || h.look(ctx) != nil:
		// The result is not known, or the volume has another key now.
		h.signed = h.probes == 0
	default:
		h.signed = false
		if h.probes++; h.probes == 1 || h.probes == tries {
			h.o.Log("writes are not fenced by Swift (%v): the lease is only as good as the clocks of those who hold it", err)
		}
	}
}
