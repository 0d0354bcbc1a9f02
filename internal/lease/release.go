// SPDX-License-Identifier: MIT

package lease

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// Release gives the volume back: the mark moves to Last, as with 0.11. If we do
// not hold the volume any more, it changes nothing and returns ErrLost. It is for a
// session that could not write down how it ended: what it keeps in the lease
// (Options.Extra) stays there for who comes next, in a lease that is over.
func (h *Held) Release(ctx context.Context) error {
	return h.release(ctx, map[string]string{volume.KeyLast: h.mark}, h.own(), true)
}

// ReleaseWith is Release for a session that has items to set in the volume's
// metadata, in the same request: of version 1, that its map holds, and of version 2
// its last root. Nothing stays in the lease then.
func (h *Held) ReleaseWith(ctx context.Context, items map[string]string) error {
	all := map[string]string{volume.KeyLast: h.mark}
	maps.Copy(all, items)
	return h.release(ctx, all, nil, false)
}

// ReleaseUnchanged is Release for a session that has written nothing. It leaves
// everything as it was before, Last too, and what the lease before it kept, unless
// this one has kept something in its place.
func (h *Held) ReleaseUnchanged(ctx context.Context) error {
	items := map[string]string{}
	if h.found.Blank {
		items[volume.KeyBlank] = h.found.Last
	}
	if h.found.Map != "" {
		items[volume.KeyMap] = h.found.Map
	}
	var kept map[string]string
	if len(h.own()) == 0 {
		kept = h.former.items()
	}
	return h.release(ctx, items, kept, false)
}

// own returns what the holder wants to keep in the lease.
func (h *Held) own() map[string]string {
	if h.o.Extra == nil {
		return nil
	}
	return h.o.Extra()
}

// release removes the mark, sets items in the same request, and removes the
// lease, or ends it if kept is not empty, which whoever comes next is to find there.
// With own, that is the holder's own, and may be newer than the last renewal.
// After an error the lease is not renewed any more, and nothing is written under it.
// It ends by itself, unless it was given back and only the answer was lost.
func (h *Held) release(ctx context.Context, items, kept map[string]string, own bool) error {
	h.end()
	h.mu.Lock()
	defer h.mu.Unlock()
	var before map[string]string
	if own && h.leased {
		h.nextSlot()
		kept = inSlot(kept, h.values.now)
		before = kept
	}
	if err := h.giveBack(ctx, items, before); err != nil {
		return fmt.Errorf("release the lock mark: %w", err)
	}
	if !h.leased {
		return nil
	}
	stays := int64(0)
	if len(kept) > 0 {
		stays = h.epoch.Load()
		// If this fails, the lease ends by itself. The renewals have written the like.
		_ = h.o.endRecord(ctx, stays, h.mark, kept)
	}
	h.remove(ctx, stays)
	return nil
}

// retakes is how often a lease that has ended is taken again to be given back.
const retakes = 4

// giveBack removes the mark and sets items, as long as we hold the volume. A
// request that takes longer could harm a process that has taken the volume
// over. Before that the lease keeps kept: who comes as soon as the mark is removed is
// to find it.
func (h *Held) giveBack(ctx context.Context, items, kept map[string]string) error {
	for try := 1; h.leased && errors.Is(h.o.Fence.Check(), store.ErrLapsed); try++ {
		err := h.retake(ctx)
		if err != nil && (errors.Is(err, ErrLost) || try == retakes || sleep(ctx, lookAgain) != nil) {
			return err
		}
	}
	ctx, stop, err := h.o.Fence.Guard(ctx)
	if err != nil {
		return err
	}
	defer stop()
	_, err = h.certain(ctx)
	if errors.Is(err, errNumber) {
		err = h.number(ctx) // marked looks at it
	}
	if err != nil {
		return err
	}
	if len(kept) > 0 {
		// If this fails, the last renewal has the like.
		lasting := make(map[string]string)
		h.o.keep(lasting, kept)
		_ = h.o.Sibling(ContainerName(h.o.Name, h.epoch.Load())).SetMetadata(ctx, lasting)
	}
	// From here on the request may take effect at any time, with any answer.
	h.o.Fence.Lose(errReleased)
	items[volume.KeyClient] = ""
	for stayed := false; ; stayed = true {
		if err := h.store.SetMetadata(ctx, items); err != nil {
			return err
		}
		marked, err := h.marked(ctx)
		if err != nil && stayed {
			return fmt.Errorf("whether the change is made by Swift: %w", err)
		}
		if !marked {
			return nil // or it cannot be told: then the answer is believed
		}
		// If a proxy's clock is slow, it answers as if the change had been
		// made.
		if err := sleep(ctx, lookAgain); err != nil {
			return fmt.Errorf("the change is not made by Swift: %w", err)
		}
	}
}

// marked says whether our mark is in the volume's metadata. Who takes the volume in the
// second in which we did may have the same mark, and another number.
func (h *Held) marked(ctx context.Context) (bool, error) {
	ours := func(md store.Metadata) bool {
		n, err := strconv.ParseInt(md.Items[KeyEpoch], 10, 64)
		return md.Items[volume.KeyClient] == h.mark && (!h.leased || err == nil && h.numbers[n])
	}
	md, err := h.store.MetadataHint(ctx)
	if err == nil && ours(md) {
		md, err = h.store.Metadata(ctx) // the first copy may be behind
	}
	return err == nil && ours(md), err
}

var errReleased = fmt.Errorf("%w: it was given back", ErrLost)

// Keep ends the renewals and leaves the volume held. If it still can, it makes
// the lease last for ever. Somebody then has to look at the data that we could
// not write.
func (h *Held) Keep(ctx context.Context) {
	h.end()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leased && h.o.Fence.Lost() == nil {
		h.nextSlot() // the last renewal may arrive late
		_ = h.o.writeRecord(ctx, h.epoch.Load(), h.mark, time.Time{}, h.ends.now, h.kept(false))
	}
	h.o.Fence.Lose(errReleased)
}

// Break removes any mark and returns it. It does not look at leases; see
// Unlock.
func Break(ctx context.Context, s store.Store) (mark string, err error) {
	state, err := Unlock(ctx, Options{Store: s})
	return state.Mark, err
}

// Unlock is an operator's unlock: it takes the volume from its holder and gives
// it to nobody. Swift refuses what the former holder writes from then on, since
// it is signed with the old key. Unlock returns how the volume was held. If it
// was not, it returns ErrNotLocked.
//
// A process that died while it took the volume has left a lease and no mark
// (leftover.go). Unlock ends that, too. The State has no Mark then.
func Unlock(ctx context.Context, o Options) (State, error) {
	o.fill()
	s, err := o.inspect(ctx)
	if err != nil {
		return s, err
	}
	var left leftovers
	if s.Mark == "" {
		if left, err = o.leftovers(ctx, &s); err != nil {
			return s, err
		}
	}
	items := map[string]string{volume.KeyClient: ""}
	if last := cmp.Or(s.Mark, left.mark); last != "" { // or nobody can have written
		items[volume.KeyLast], items[volume.KeyBlank], items[volume.KeyMap] = last, "", ""
	}
	var old []int64
	if s.Mark != "" {
		if old = slices.Clone(s.same); !slices.Contains(old, s.Epoch) {
			old = append(old, s.Epoch)
		}
	}
	former := old
	epoch, stays := int64(0), int64(0) // the second is not deleted
	own, mark := false, cmp.Or(s.Mark, left.mark, s.Meta.Last, FormatMark("unlock", time.Now()))
	if (s.Epoch > 0 || len(left.records) > 0) && o.Sibling != nil {
		// Take a number of our own. The former holder cannot create it, and
		// cannot go on with it.
		for epoch = s.Epoch + 1; epoch <= s.Epoch+maxEpochs; epoch++ {
			created, err := o.Sibling(ContainerName(o.Name, epoch)).CreateContainer(ctx, nil)
			if err != nil && !errors.Is(err, store.ErrForbidden) {
				return s, fmt.Errorf("create lease %d: %w", epoch, err)
			}
			if own = created; created {
				old = append(slices.Clone(old), epoch)
			}
			if created || err != nil {
				break
			}
			// Whoever comes next looks at no number before ours.
			r, _, err := o.readRecord(ctx, epoch)
			if err != nil && !errors.Is(err, store.ErrContainerNotFound) {
				return s, fmt.Errorf("look at lease %d: %w", epoch, err)
			}
			s.Kept = s.Kept.with(o.keptBy(r))
		}
		items[KeyEpoch] = strconv.FormatInt(epoch, 10)
		if len(left.records) > 0 && !own {
			return s, fmt.Errorf("end the lease that was left behind: %w", store.ErrForbidden)
		}
		if len(s.Kept) > 0 && !own {
			return s, fmt.Errorf("keep what lease %d says: %w", s.Epoch, store.ErrForbidden)
		}
		if (len(s.Kept) > 0 || len(left.records) > 0) && own {
			// Whoever comes next is to find what the holder has kept: in a lease
			// that is over, which they remove. And who has the number before is
			// to find this one.
			if err := o.endRecord(ctx, epoch, mark, s.Kept.items()); err != nil {
				if !store.Ambiguous(err) { // else it must not end a lease that another makes there
					_ = o.deleteLease(ctx, epoch)
				}
				return s, fmt.Errorf("keep what lease %d says: %w", s.Epoch, err)
			}
			stays = epoch
		}
		defer func() {
			for _, e := range old {
				if e == stays {
					continue
				}
				_ = o.deleteLease(ctx, e)
			}
		}()
	}
	if s.Fenced {
		items[KeyFence] = rand.Text()
	}
	if err := o.Store.SetMetadata(ctx, items); err != nil {
		old, stays = slices.DeleteFunc(old, func(n int64) bool { return n != epoch }), 0 // nothing has changed
		if store.Ambiguous(err) && (len(s.Kept) > 0 || o.disk != "") {
			old = nil // or it will: either lease may be the one that the next holder looks at
		}
		return s, fmt.Errorf("remove the lock mark: %w", err)
	}
	if s.Mark != "" && own && o.disk != "" {
		// The holder may have renewed the lease until now. From now on it has no right
		// to write any more.
		kept := s.Kept
		for _, n := range former {
			r, _, err := o.readRecord(ctx, n)
			if err != nil && !errors.Is(err, store.ErrContainerNotFound) {
				old = nil // whoever comes next looks at both
				return s, nil
			}
			kept = kept.with(o.keptBy(r))
		}
		if !s.Kept.has(kept) {
			stays = epoch
			if err := o.endRecord(ctx, epoch, mark, kept.items()); err != nil {
				old = nil
			}
		}
	}
	if len(left.records) > 0 {
		o.end(ctx, left)
		s.Epoch = left.newest
	}
	return s, nil
}

// Drop ends the lease of a volume that has been deleted with its mark.
func (h *Held) Drop(ctx context.Context) error {
	h.end()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.o.Fence.Lose(errReleased)
	if !h.leased {
		return nil
	}
	h.remove(ctx, h.epoch.Load())
	err := h.o.deleteLease(ctx, h.epoch.Load())
	if err != nil && !errors.Is(err, store.ErrContainerNotFound) {
		return fmt.Errorf("delete lease %d: %w", h.epoch.Load(), err)
	}
	return nil
}
