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
	// Grace is how long after its end a lease is left alone; 0 is 2 s.
	Grace time.Duration
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

const (
	// maxEpochs bounds how many leases, one after the other, turn out to be
	// others' before that is an error.
	maxEpochs = 100
	// settlePoll is the pause before another look at a lease that somebody
	// is just taking, unfinished how often that is done before it counts as
	// left behind.
	settlePoll = 250 * time.Millisecond
	unfinished = 40
	// markWait is the pause before a mark that is no lease is read once more.
	markWait = time.Second
)

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
	key     string         // what the writes are signed with; it stands in the container
	signed  bool           // the store has been seen to check it
	probes  int            // how often that was asked
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
		if err != nil {
			return nil, s.Meta, err
		}
		again, err := h.take(ctx, epoch, s)
		if err != nil || again {
			h.discard(ctx, epoch)
		}
		if err != nil {
			return nil, s.Meta, err
		}
		if !again {
			break
		}
		if try == maxEpochs {
			return nil, s.Meta, errors.New("the volume changes hands all the time")
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

// create makes the first lease after number last that nobody has, or returns
// one that is in mine. While somebody else may be taking one, held is asked
// whether they have.
func (o *Options) create(ctx context.Context, last int64, mine map[int64]bool, held func(context.Context) error) (int64, error) {
	for epoch := last + 1; epoch <= last+maxEpochs; epoch++ {
		if mine[epoch] {
			return epoch, nil
		}
		created, err := o.Sibling(ContainerName(o.Name, epoch)).CreateContainer(ctx, nil)
		if err != nil {
			return 0, fmt.Errorf("create lease %d: %w", epoch, err)
		}
		if created {
			return epoch, nil
		}
		if err := o.await(ctx, epoch, held); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("leases %d to %d all exist", last+1, last+maxEpochs)
}

// await looks at lease number epoch, which somebody else has created. It
// returns nil when that is over, or was left behind: whoever takes a volume is
// done with it, or gives up, in half the time that it waits here. held ends with
// an error when the volume is somebody's, and so is await's.
func (o *Options) await(ctx context.Context, epoch int64, held func(context.Context) error) error {
	for range unfinished {
		r, c, err := o.readRecord(ctx, epoch)
		switch {
		case errors.Is(err, store.ErrContainerNotFound):
			return nil
		case err != nil:
			return fmt.Errorf("look at lease %d: %w", epoch, err)
		}
		if err := held(ctx); err != nil {
			return err
		}
		if r.holder != "" && !r.never && c.earliest().After(r.until.Add(o.grace())) {
			return nil
		}
		// With jitter: where nobody was told 201, all wait here.
		if err := sleep(ctx, settlePoll+mrand.N(settlePoll)); err != nil {
			return err
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// take makes lease number epoch, which we have created, the volume's. s is
// what the volume was before. again says that it has changed hands since.
func (h *Held) take(ctx context.Context, epoch int64, s State) (again bool, err error) {
	o := &h.o
	begun := time.Now()
	h.mark, h.epoch, h.key = FormatMark(o.Holder, begun), epoch, ""
	h.numbers = map[int64]bool{epoch: true}
	until := h.until(s.clock)
	if err := o.writeRecord(ctx, epoch, h.mark, until); err != nil {
		return false, fmt.Errorf("take lease %d: %w", epoch, err)
	}
	// Nobody else can have the volume who came after we looked at it, unless
	// they had created an earlier number by then, and are gone again.
	sent := time.Now()
	md, err := h.store.Metadata(ctx)
	if err != nil {
		return false, err
	}
	c := newClock(md, sent)
	if md.Items[volume.KeyClient] != s.Mark || md.Items[volume.KeyLast] != s.Meta.Last || md.Items[KeyEpoch] != s.items[KeyEpoch] {
		return true, nil
	}
	// A pause here of the whole process, and the lease is another's again.
	if time.Since(begun.Round(0)) > settlePoll*unfinished/2 || time.Since(begun) > settlePoll*unfinished/2 {
		return true, nil
	}
	items := map[string]string{
		volume.KeyClient: h.mark, volume.KeyBlank: "", volume.KeyMap: "",
		KeyEpoch: strconv.FormatInt(epoch, 10),
	}
	if s.Mark != "" {
		items[volume.KeyLast] = s.Mark // a dead holder's
	}
	if o.CheckFence != nil {
		// After a clean end the key may stay: nobody is left who has it. A
		// dead one may be alive.
		if h.key = md.Items[KeyFence]; h.key == "" || s.Mark != "" {
			h.key = rand.Text()
			items[KeyFence] = h.key
		}
	}
	if err := h.store.SetMetadata(ctx, items); err != nil {
		return false, fmt.Errorf("set the lock mark: %w", err)
	}
	now, err := h.verify(ctx)
	if err != nil {
		return false, err
	}
	if s.Mark == "" && now.Last == s.Meta.Last {
		// These were true of the volume that we found, and we now hold it.
		now.Blank, now.Map = s.Meta.Blank, s.Meta.Map
	}
	h.found = now
	h.grant(ctx, c, begun, until)
	if s.Mark != "" {
		o.Log("took the volume over from %s: its lease ended at %s", s.Holder, s.Until.UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	if s.Epoch > 0 {
		// Whatever is left of the one before. It is garbage, no more.
		_ = o.Sibling(ContainerName(o.Name, s.Epoch)).DeleteContainer(ctx)
	}
	return false, nil
}

// until returns when a lease taken or renewed now ends by the store's clock.
func (h *Held) until(c clock) time.Time {
	if h.o.Term == Forever {
		return time.Time{}
	}
	return c.latest().Add(h.o.Term)
}

// grant lets the writers write: a request that was begun at that moment made
// the lease end at until by the store's clock c.
func (h *Held) grant(ctx context.Context, c clock, begun, until time.Time) {
	g := store.Grant{Server: c.server, Taken: c.sent, SignedFor: h.o.SignedFor}
	if h.o.Term != Forever {
		g.Until = begun.Add(h.o.Term - h.o.margin())
		g.UntilServer = until
	} else {
		g.UntilServer = c.server.AddDate(1, 0, 0)
	}
	h.checkFence(ctx, g)
	if h.signed {
		g.Key = h.key
	}
	h.o.Fence.Set(g)
}

// checkFence finds out whether the store checks our signatures; where it does
// not, the writes go without. It is asked again at the next renewals: a proxy
// may know the container's older key for a minute.
func (h *Held) checkFence(ctx context.Context, g store.Grant) {
	const tries = 12
	if h.key == "" || h.signed || h.probes >= tries {
		return
	}
	h.probes++
	g.Key = h.key
	err := h.o.CheckFence(ctx, g)
	if h.signed = err == nil; h.signed {
		return
	}
	if h.probes == 1 || h.probes == tries {
		h.o.Log("writes are not fenced by Swift (%v): the lease is only as good as the clocks of those who hold it", err)
	}
}

// verify reads the volume's metadata and ends with a *LostError or
// *LockedError unless it is ours: by mark and number, by the key, and with
// nobody after us.
func (h *Held) verify(ctx context.Context) (volume.Meta, error) {
	md, err := h.store.Metadata(ctx)
	if err != nil {
		return volume.Meta{}, fmt.Errorf("read the lock mark back: %w", err)
	}
	if err := h.ours(md); err != nil {
		return volume.Meta{}, err
	}
	_, err = h.o.Sibling(ContainerName(h.o.Name, h.epoch+1)).Metadata(ctx)
	if err == nil {
		return volume.Meta{}, fmt.Errorf("%w: somebody has lease %d", ErrLost, h.epoch+1)
	}
	if !errors.Is(err, store.ErrContainerNotFound) {
		return volume.Meta{}, fmt.Errorf("look at lease %d: %w", h.epoch+1, err)
	}
	return volume.ParseMeta(md.Items)
}

// ours ends with ErrLost, and whose it is, unless md says that the volume is
// ours.
func (h *Held) ours(md store.Metadata) error {
	is := md.Items[volume.KeyClient]
	switch {
	case is == "":
		return fmt.Errorf("%w: the mark was removed, and is nobody's", ErrLost)
	case is != h.mark:
		return fmt.Errorf("%w: %w", ErrLost, Locked(is))
	case h.leased && !h.numbered(md.Items[KeyEpoch]):
		return fmt.Errorf("%w: it is under lease %s, not %d", ErrLost, md.Items[KeyEpoch], h.epoch)
	case h.key != "" && md.Items[KeyFence] != h.key:
		return fmt.Errorf("%w: the key that fences the writes has been changed", ErrLost)
	}
	return nil
}

// numbered says whether epoch, as it stands in the volume's metadata, is a
// lease of ours.
func (h *Held) numbered(epoch string) bool {
	n, err := strconv.ParseInt(epoch, 10, 64)
	return err == nil && h.numbers[n]
}

// discard removes a lease that we have created and do not want. What cannot be
// removed ends by itself, or counts as left behind.
func (h *Held) discard(ctx context.Context, epoch int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if md, err := h.store.Metadata(ctx); err == nil && h.ours(md) == nil {
		items := map[string]string{volume.KeyClient: ""}
		_ = h.store.SetMetadata(ctx, items)
	}
	_ = h.o.Sibling(ContainerName(h.o.Name, epoch)).DeleteContainer(ctx)
}
