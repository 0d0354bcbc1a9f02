// SPDX-License-Identifier: MIT

package lease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"strconv"
	"strings"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// maxEpochs bounds how many leases, one after the other, turn out to be
// others' before that is an error.
const maxEpochs = 100

// settlePoll is the pause before another look at a lease that somebody is just
// taking, unfinished how often that is done before it counts as left behind.
// All who take volumes have to have the same.
const (
	settlePoll = 250 * time.Millisecond
	unfinished = 40
)

// errAgain says that somebody has come or gone meanwhile: look again.
var errAgain = errors.New("the volume has changed hands meanwhile")

// create makes the first lease after number last that nobody has, or returns
// one that is in mine. While somebody else may be taking one, held is asked
// whether they have. errAgain says that they have gone.
func (o *Options) create(ctx context.Context, last int64, mine map[int64]bool, held func(context.Context) error) (int64, error) {
	for epoch := last + 1; epoch <= last+maxEpochs; epoch++ {
		if mine[epoch] {
			return epoch, nil
		}
		created, err := o.createOne(ctx, epoch)
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

// keyTry begins a key that each who tries to create a lease leaves in it.
const keyTry = "Swiftnbd-Lease-Try-"

// createOne creates lease number epoch, and says whether it was us who did.
// Where the answer to the request that did it was lost, and the next was told
// that the lease exists, it is ours if nobody else has tried: what comes with
// the request that creates a container is there with it.
func (o *Options) createOne(ctx context.Context, epoch int64) (bool, error) {
	s := o.Sibling(ContainerName(o.Name, epoch))
	// Whoever finds it leaves no trace in it: there is room for some only.
	if _, err := s.Metadata(ctx); !errors.Is(err, store.ErrContainerNotFound) && !errors.Is(err, store.ErrForbidden) {
		return false, err
	}
	own := store.MetaKey(keyTry + rand.Text()[:10])
	created, err := s.CreateContainer(ctx, map[string]string{own: "1"})
	if created || err != nil {
		return created, err
	}
	md, err := s.Metadata(ctx)
	if errors.Is(err, store.ErrContainerNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for key := range md.Items {
		if key != own && (strings.HasPrefix(key, keyTry) || key == keyHolder) {
			return false, nil
		}
	}
	return md.Items[own] != "", nil
}

// await looks at lease number epoch, which somebody else has created. It
// returns nil when it was left behind, or has run out, so that the next number
// is anybody's: whoever takes a volume is done with it, or gives up, in half
// the time that it waits here. It ends with errAgain when the lease is gone,
// since nobody may pass by a number that another might be given, and with a
// *LockedError when it is somebody's for longer. held ends with an error when
// the volume is somebody's, and so is await's.
func (o *Options) await(ctx context.Context, epoch int64, held func(context.Context) error) error {
	var (
		r   record
		c   clock
		err error
	)
	for range unfinished {
		r, c, err = o.readRecord(ctx, epoch)
		switch {
		case errors.Is(err, store.ErrContainerNotFound):
			return errAgain
		case err != nil:
			return fmt.Errorf("look at lease %d: %w", epoch, err)
		}
		if err := held(ctx); err != nil {
			return err
		}
		if r.over(c) {
			return nil
		}
		// With jitter: where nobody was told 201, all wait here.
		if err := sleep(ctx, settlePoll+mrand.N(settlePoll)); err != nil {
			return err
		}
	}
	if r.holder == "" || r.never {
		return nil
	}
	// They may have been given the right to write, although the volume does
	// not say so any more.
	e := &LockedError{Leased: true, Until: r.until, Now: c.latest()}
	e.Holder, e.Since = ParseMark(r.holder)
	return e
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

// verify reads the volume's metadata and ends with an error unless it is ours:
// by mark and number, by the key, and with nobody after us. errAgain says that
// somebody may be about to take it.
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
		return volume.Meta{}, fmt.Errorf("somebody has lease %d: %w", h.epoch+1, errAgain)
	}
	if !errors.Is(err, store.ErrContainerNotFound) {
		return volume.Meta{}, fmt.Errorf("look at lease %d: %w", h.epoch+1, err)
	}
	return volume.ParseMeta(md.Items)
}

// errNumber says that the volume is ours, but not the number that it names: a
// request of another, or of our own, was late on its way.
var errNumber = errors.New("the volume names another lease")

// ours ends with ErrLost, and whose it is, unless md says that the volume is
// ours; with errNumber where it has only to be told the number again.
func (h *Held) ours(md store.Metadata) error {
	is := md.Items[volume.KeyClient]
	switch {
	case is == "":
		return fmt.Errorf("%w: the mark was removed, and is nobody's", ErrLost)
	case is != h.mark:
		return fmt.Errorf("%w: %w", ErrLost, Locked(is))
	case h.key != "" && md.Items[KeyFence] != h.key:
		return fmt.Errorf("%w: the key that fences the writes has been changed", ErrLost)
	case !h.leased:
		return nil
	}
	n, err := strconv.ParseInt(md.Items[KeyEpoch], 10, 64)
	switch {
	case err == nil && n == h.epoch:
		return nil
	case err == nil && h.numbers[n] || h.key != "":
		// The mark and the key are set with the number, so whoever had taken
		// the volume would have left theirs.
		return errNumber
	}
	return fmt.Errorf("%w: it is under lease %s, not %d", ErrLost, md.Items[KeyEpoch], h.epoch)
}

// discard gives up a volume that we could not take; s is what it was before.
// marked says that our mark, or the lease's end, was sent and may arrive yet:
// then the lease is not removed but ended, so that whoever finds the mark can
// take it over.
func (h *Held) discard(ctx context.Context, s State, marked bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if !marked {
		_ = h.o.Sibling(ContainerName(h.o.Name, h.epoch)).DeleteContainer(ctx)
		return
	}
	md, err := h.store.Metadata(ctx)
	if err != nil {
		return // it runs out
	}
	if md.Items[volume.KeyClient] == h.mark && md.Items[KeyEpoch] == strconv.FormatInt(h.epoch, 10) {
		items := map[string]string{volume.KeyClient: ""}
		if s.Mark == "" && !s.unclean && md.Items[volume.KeyLast] == s.Meta.Last {
			if s.Meta.Blank {
				items[volume.KeyBlank] = s.Meta.Last
			}
			items[volume.KeyMap] = s.Meta.Map
		}
		if err := h.store.SetMetadata(ctx, items); err != nil {
			return
		}
	}
	_ = h.o.endRecord(ctx, h.epoch, h.mark)
}

// remove removes the leases that are ours, or were those of whom we took the
// volume over from, but for number keep. What cannot be removed is garbage, and
// so are those of others who came between: where their mark arrives late, it
// is their lease by which it is seen to be over.
func (h *Held) remove(ctx context.Context, keep int64) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for n := range h.old {
		if n == keep {
			continue
		}
		err := h.o.Sibling(ContainerName(h.o.Name, n)).DeleteContainer(ctx)
		if err == nil || errors.Is(err, store.ErrContainerNotFound) {
			delete(h.old, n)
		}
	}
}
