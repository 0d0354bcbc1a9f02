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
	// Name is the container's name: that of the leases is made of it.
	Name string
	// Sibling returns another container of the account, with retries. nil:
	// there is no lease, only the mark.
	Sibling func(name string) store.Store
	// Fence, when not nil, is what the writers ask: it is set as long as the
	// lease holds.
	Fence *store.Fence
	// CheckFence finds out whether the store refuses requests with a wrong
	// signature and takes those signed as the grant says. nil: writes are
	// not signed.
	CheckFence func(ctx context.Context, g store.Grant) error
	// Holder names who takes it (Holder).
	Holder string
	// Term is how long the lease lasts without being renewed; 0: no lease,
	// only the mark; Forever.
	Term time.Duration
	// SignedFor is store.Grant's.
	SignedFor time.Duration
	// Log takes one line for the operator. nil: it is dropped.
	Log func(format string, args ...any)
}

func (o *Options) fill() {
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if o.Fence == nil {
		o.Fence = new(store.Fence)
	}
}

// markWait is the pause before a mark is read once more: whoever sets theirs at
// the same moment, as 0.11 does, has done it by then.
const markWait = time.Second

// Held is a volume that this process holds.
type Held struct {
	o     Options
	store store.Store
	mark  string
	found volume.Meta // what the volume was when it was taken

	leased bool
	stop   context.CancelFunc // ends the renewals
	done   chan struct{}      // closed when they have ended

	mu      sync.Mutex // guards all below; held for a whole renewal
	epoch   int64
	numbers map[int64]bool // the leases that we have created, epoch among them
	old     map[int64]bool // the leases that are to be removed when they are not needed any more
	slot    int            // of the record, for the next renewal
	key     string         // what the writes are signed with; it stands in the container
	signed  bool           // they are, as far as is known
	checked bool           // the store has been seen to check it
	probes  int            // how often it was seen not to
	refused time.Time      // since when our good signatures are
}

// Acquire takes the volume, and returns its metadata as it was read under the
// lease. It ends with a *LockedError when somebody else has it, or as
// volume.Read does.
//
// A lease is a container of its own, numbered. Creating a container is atomic
// in Swift: one is told 201 and all others 202. Whoever creates the next number
// holds the volume once the volume's own container says so too, and nobody has
// created the number after it. A lease that was released or has run out makes
// way for the next; no number is used twice at the same time.
func Acquire(ctx context.Context, o Options) (*Held, volume.Meta, error) {
	o.fill()
	ctx = store.WithClass(ctx, store.Unlimited)
	if o.Term == 0 || o.Sibling == nil {
		return acquireMark(ctx, o)
	}
	h := &Held{o: o, store: o.Store, leased: true}
	for try := 0; ; try++ {
		s, err := o.inspect(ctx)
		if err != nil {
			return nil, s.Meta, err
		}
		if err := s.Held(); err != nil {
			// Whoever is just giving it back, or finding out, is soon gone.
			if s.fading != nil && try < unfinished && sleep(ctx, settlePoll) == nil {
				continue
			}
			return nil, s.Meta, err
		}
		epoch, err := o.create(ctx, s.Epoch, nil, func(ctx context.Context) error {
			now, err := o.inspect(ctx)
			if err != nil {
				return err
			}
			return now.Held()
		})
		if errors.Is(err, store.ErrForbidden) {
			o.Log("the lock is swiftnbd 0.11's mark only, without a lease: the account may not create containers (%v)", err)
			return acquireMark(ctx, o)
		}
		if err == nil {
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
		if err := sleep(ctx, mrand.N(settlePoll)); err != nil {
			return nil, s.Meta, err
		}
	}
	h.begin()
	return h, h.found, nil
}

// acquireMark takes the mark alone.
func acquireMark(ctx context.Context, o Options) (*Held, volume.Meta, error) {
	h, meta, err := Mark(ctx, o.Store, o.Holder)
	if err != nil {
		return nil, meta, err
	}
	h.o = o
	// Whoever set theirs at the same moment may have done so after we read
	// ours back.
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

// take makes lease number epoch, which we have created, the volume's. s is
// what the volume was before; contended, that others have been about since we
// came. errAgain says that the volume has changed hands since.
func (h *Held) take(ctx context.Context, epoch int64, s State, contended bool) (err error) {
	o := &h.o
	begun := time.Now()
	h.mark, h.epoch, h.key = FormatMark(o.Holder, begun), epoch, ""
	h.numbers, h.slot = map[int64]bool{epoch: true}, 0
	h.old = map[int64]bool{epoch: true}
	h.signed, h.checked, h.probes = false, false, 0
	marked := false
	defer func() {
		if err != nil {
			h.discard(ctx, s, marked)
		}
	}()
	// Whoever wants it for ever has it for a while first: what comes to its end
	// half way must not stay for ever.
	until := s.clock.latest().Add(settlePoll * unfinished)
	if o.Term != Forever {
		until = s.clock.latest().Add(o.Term)
	}
	if err := o.writeRecord(ctx, epoch, h.mark, until, h.slot); err != nil {
		// It may arrive yet, and must not find a lease of the same number
		// that is another's.
		marked = store.Ambiguous(err)
		return fmt.Errorf("take lease %d: %w", epoch, err)
	}
	// Nobody else can have the volume who came after we looked at it, unless
	// they had created an earlier number by then, and are gone again.
	sent := time.Now()
	md, err := h.store.Metadata(ctx)
	if err != nil {
		return err
	}
	c := newClock(md, sent)
	if md.Items[volume.KeyClient] != s.Mark || md.Items[volume.KeyLast] != s.Meta.Last || md.Items[KeyEpoch] != s.items[KeyEpoch] {
		return errAgain
	}
	// A pause here of the whole process, and the lease is another's again.
	if o.late(begun) {
		return errAgain
	}
	items := map[string]string{
		volume.KeyClient: h.mark, volume.KeyBlank: "", volume.KeyMap: "",
		KeyEpoch: strconv.FormatInt(epoch, 10),
	}
	if s.Mark != "" {
		items[volume.KeyLast] = s.Mark // a dead holder's
	}
	if o.CheckFence != nil {
		// After a clean end the key may stay: nobody is left who has it.
		// Whoever did not end cleanly may be alive, and so may be those who
		// were about to take it beside us.
		h.key = md.Items[KeyFence]
		if h.key == "" || s.Mark != "" || s.left || contended || epoch != s.Epoch+1 {
			h.key = rand.Text()
			items[KeyFence] = h.key
		}
	}
	marked = true
	if err := h.store.SetMetadata(ctx, items); err != nil {
		marked = store.Ambiguous(err)
		return fmt.Errorf("set the lock mark: %w", err)
	}
	now, err := h.verify(ctx)
	switch {
	case errors.Is(err, ErrLost), errors.Is(err, errNumber):
		return errAgain // somebody was quicker, and may be gone again
	case err != nil:
		return err
	}
	// Those who want the volume wait for longer than this before they pass
	// our number by, so nobody has.
	if o.late(begun) {
		return errAgain
	}
	if o.Term == Forever {
		until = time.Time{}
		if err := o.writeRecord(ctx, epoch, h.mark, until, h.slot); err != nil {
			return fmt.Errorf("take lease %d for ever: %w", epoch, err)
		}
	}
	if s.Mark == "" && !s.unclean && now.Last == s.Meta.Last {
		// These were true of the volume that we found, and we now hold it.
		now.Blank, now.Map = s.Meta.Blank, s.Meta.Map
	}
	h.found = now
	h.grant(ctx, c, begun, until)
	if s.Epoch > 0 && s.Epoch != epoch {
		h.old[s.Epoch] = true
	}
	if s.Mark != "" {
		o.Log("took the volume over from %s: its lease ended at %s", s.Holder, s.Until.UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	return nil
}

// late says whether what was begun at that moment has taken too long: others
// may count it as left behind soon.
func (o *Options) late(begun time.Time) bool {
	limit := settlePoll * unfinished / 2
	if o.Term > 0 {
		limit = min(limit, o.Term/2)
	}
	now := time.Now()
	return now.Sub(begun) > limit || now.Round(0).Sub(begun.Round(0)) > limit
}

// grant lets the writers write: a request that was begun at that moment made
// the lease end at until by the store's clock, and c was read after it.
func (h *Held) grant(ctx context.Context, c clock, begun, until time.Time) {
	g := store.Grant{Server: c.server, Taken: c.sent, Slack: c.got.Sub(c.sent), SignedFor: h.o.SignedFor}
	if h.o.Term != Forever {
		// By the clock that was read last, too: until was reckoned with an
		// earlier reading, and our clocks stand still while the machine sleeps.
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

// refusedFor is how long good signatures may be refused until the writes go
// without: longer than a proxy of Swift knows an old key.
const refusedFor = 70 * time.Second

// checkFence finds out whether the store checks our signatures; where it does
// not, the writes go without. As long as it cannot be told they are signed: a
// request that failed must not make them go unfenced. It is asked again at the
// next renewals: a proxy may know the container's older key for a minute.
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
			h.o.Log("writes are not signed any more: Swift refuses the disk's key, although the disk is ours (%v)", err)
		}
	case store.Transient(err) || ctx.Err() != nil || h.look(ctx) != nil:
		// Nothing can be told, or the key is not the volume's any more.
		h.signed = h.probes == 0
	default:
		h.signed = false
		if h.probes++; h.probes == 1 || h.probes == tries {
			h.o.Log("writes are not fenced by Swift (%v): the lease is only as good as the clocks of those who hold it", err)
		}
	}
}
