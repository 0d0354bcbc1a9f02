// SPDX-License-Identifier: MIT

package lease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// Release gives the volume back: the mark moves to Last, as 0.11 does it. It
// ends with ErrLost, and changes nothing, when the volume is not ours any more.
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

// release removes the mark, sets items with it, and removes the lease. After
// an error it is not renewed any more, and nothing is written under it: it
// runs out, unless it has been given back without our knowing.
func (h *Held) release(ctx context.Context, items map[string]string) error {
	ctx = store.WithClass(ctx, store.Unlimited)
	h.end()
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.giveBack(ctx, items); err != nil {
		return fmt.Errorf("release the lock mark: %w", err)
	}
	if h.leased {
		h.remove(ctx, 0)
	}
	return nil
}

// retakes is how often a lease that has run out is taken again to be given back.
const retakes = 4

// giveBack removes the mark and sets items, as long as the volume is ours: a
// request that takes longer than that would be against whoever took it over.
func (h *Held) giveBack(ctx context.Context, items map[string]string) error {
	for try := 1; h.leased && errors.Is(h.o.Fence.Check(), store.ErrLapsed); try++ {
		err := h.retake(ctx)
		if err != nil && (errors.Is(err, ErrLost) || try == retakes || sleep(ctx, settlePoll) != nil) {
			return err
		}
	}
	ctx, stop, err := h.o.Fence.Guard(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if _, err := h.certain(ctx); err != nil && !errors.Is(err, errNumber) {
		return err
	}
	// From here on it may come about at any time, whatever the answer is.
	h.o.Fence.Lose(errReleased)
	items[volume.KeyClient] = ""
	for {
		if err := h.store.SetMetadata(ctx, items); err != nil {
			return err
		}
		if !h.marked(ctx) {
			return nil
		}
		// A change that comes through a proxy whose clock is slow is
		// answered as if it had been made.
		if err := sleep(ctx, settlePoll); err != nil {
			return fmt.Errorf("Swift does not make the change: %w", err)
		}
	}
}

// marked says whether our mark is known to be in the volume's metadata.
func (h *Held) marked(ctx context.Context) bool {
	md, err := h.store.Metadata(store.WithHint(ctx))
	if err == nil && md.Items[volume.KeyClient] == h.mark {
		md, err = h.store.Metadata(ctx) // that copy may be behind
	}
	return err == nil && md.Items[volume.KeyClient] == h.mark
}

var errReleased = fmt.Errorf("%w: it was given back", ErrLost)

// Keep ends the renewals and leaves the volume held, for ever where that can
// still be said: whoever wants it has to look what has become of the data that
// we could not write.
func (h *Held) Keep(ctx context.Context) {
	h.end()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leased && h.o.Fence.Lost() == nil {
		_ = h.o.writeRecord(store.WithClass(ctx, store.Unlimited), h.epoch, h.mark, time.Time{}, h.slot)
	}
	h.o.Fence.Lose(errReleased)
}

// Break removes whatever mark there is and returns it, without a look at
// leases; see Unlock.
func Break(ctx context.Context, s store.Store) (mark string, err error) {
	state, err := Unlock(ctx, Options{Store: s})
	return state.Mark, err
}

// Unlock takes the volume from whoever holds it, and gives it to nobody: an
// operator's unlock. What they write from then on, signed with the old key, is
// refused by Swift. It returns how the volume was held, and ends with
// ErrNotLocked where it was not.
func Unlock(ctx context.Context, o Options) (State, error) {
	o.fill()
	ctx = store.WithClass(ctx, store.Unlimited)
	s, err := o.inspect(ctx)
	if err != nil {
		return s, err
	}
	if s.Mark == "" {
		return s, ErrNotLocked
	}
	items := map[string]string{
		volume.KeyClient: "", volume.KeyLast: s.Mark, volume.KeyBlank: "", volume.KeyMap: "",
	}
	old := []int64{s.Epoch}
	epoch := int64(0)
	if s.Epoch > 0 && o.Sibling != nil {
		// A number of our own: the former holder cannot have it to go on with.
		for epoch = s.Epoch + 1; epoch <= s.Epoch+maxEpochs; epoch++ {
			created, err := o.Sibling(ContainerName(o.Name, epoch)).CreateContainer(ctx, nil)
			if err != nil && !errors.Is(err, store.ErrForbidden) {
				return s, fmt.Errorf("create lease %d: %w", epoch, err)
			}
			if created {
				old = append(old, epoch)
			}
			if created || err != nil {
				break
			}
		}
		items[KeyEpoch] = strconv.FormatInt(epoch, 10)
		defer func() {
			for _, e := range old {
				_ = o.Sibling(ContainerName(o.Name, e)).DeleteContainer(ctx)
			}
		}()
	}
	if s.Fenced {
		items[KeyFence] = rand.Text()
	}
	if err := o.Store.SetMetadata(ctx, items); err != nil {
		old = old[1:] // all is as it was
		return s, fmt.Errorf("remove the lock mark: %w", err)
	}
	return s, nil
}

// Drop ends the lease of a volume that has been deleted, mark and all.
func (h *Held) Drop(ctx context.Context) error {
	h.end()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.o.Fence.Lose(errReleased)
	if !h.leased {
		return nil
	}
	ctx = store.WithClass(ctx, store.Unlimited)
	h.remove(ctx, h.epoch)
	err := h.o.Sibling(ContainerName(h.o.Name, h.epoch)).DeleteContainer(ctx)
	if err != nil && !errors.Is(err, store.ErrContainerNotFound) {
		return fmt.Errorf("delete lease %d: %w", h.epoch, err)
	}
	return nil
}
