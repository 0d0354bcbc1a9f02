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

// maxEpochs bounds how many leases of others may follow each other. More are an
// error.
const maxEpochs = 100

// lookAgain is the pause before another look at a lease that another process is
// taking. After unfinished looks the lease counts as left behind. All programs
// that take volumes must have the same values.
const (
	lookAgain  = 250 * time.Millisecond
	unfinished = 40
)

// errAgain says that another process has come or gone meanwhile: look again.
var errAgain = errors.New("the volume has changed hands meanwhile")

// errLate says that a holder whose lease has run out was too slow to take the volume
// again: others may have counted that attempt as left behind. It tries once more.
var errLate = errors.New("taking the volume again took too long")

// create makes the first lease after number last that nobody has, or returns
// one that is in mine. While another process may be taking a lease, create
// calls held to find out whether it has taken the volume. errAgain says that
// the other process is gone. passed is what the leases keep that it goes past: a
// late request may have set a number before theirs.
func (o *Options) create(ctx context.Context, last int64, mine map[int64]bool, held func(context.Context) error) (n int64, passed Kept, err error) {
	for epoch := last + 1; epoch <= last+maxEpochs; epoch++ {
		if mine[epoch] {
			return epoch, passed, nil
		}
		created, err := o.createOne(ctx, epoch)
		if err != nil {
			return 0, nil, fmt.Errorf("create lease %d: %w", epoch, err)
		}
		if created {
			return epoch, passed, nil
		}
		r, err := o.await(ctx, epoch, held)
		if err != nil {
			return 0, nil, err
		}
		passed = passed.with(o.keptBy(r))
	}
	return 0, nil, fmt.Errorf("leases %d to %d all exist", last+1, last+maxEpochs)
}

// keyTry is the beginning of a key. Each process that tries to create a lease
// leaves such a key in it.
const keyTry = "Swiftnbd-Lease-Try-"

// createOne creates lease number epoch, and says whether this call has created
// it. The answer to the request that created it may be lost, and the next
// answer says that the lease exists. Then it is ours if nobody else has tried:
// the metadata of the request that creates a container are there together with
// the container.
func (o *Options) createOne(ctx context.Context, epoch int64) (bool, error) {
	s := o.Sibling(ContainerName(o.Name, epoch))
	// If the lease exists already, we must not leave our key in it: a container
	// has room for some keys only.
	if _, err := s.Metadata(ctx); !none(err) {
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

// await looks at lease number epoch, which another process has created. It
// returns it if the lease was left behind or has ended. Then anybody may
// create the next number: a process that takes a volume finishes or gives up in
// half of the time that await waits. If the lease is gone, await returns
// errAgain, since no process may go past a number that another one could still
// get. If another process holds the lease for longer, await returns a
// *LockedError. If another process holds the volume, held returns an error, and
// await returns it.
func (o *Options) await(ctx context.Context, epoch int64, held func(context.Context) error) (r record, err error) {
	var c clock
	for range unfinished {
		r, c, err = o.readRecord(ctx, epoch)
		switch {
		case errors.Is(err, store.ErrContainerNotFound):
			return r, errAgain
		case err != nil:
			return r, fmt.Errorf("look at lease %d: %w", epoch, err)
		}
		if err := held(ctx); err != nil {
			return r, err
		}
		if r.over(c) {
			return r, nil
		}
		// The pause is random: if Swift has told 201 to nobody, all processes
		// wait here.
		if err := sleep(ctx, lookAgain+mrand.N(lookAgain)); err != nil {
			return r, err
		}
	}
	if r.holder == "" || r.never {
		return r, nil
	}
	// The other process may have the right to write, although the volume does
	// not name it any more.
	return r, r.locked(c)
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

// verify returns an error unless we hold the volume: nobody may have the next number,
// and mark, number and key must be ours. errAgain says that another process may be
// about to take the volume.
//
// The metadata are read last. An unlock creates the next number, removes the mark and
// deletes the number. So does another process that takes the volume and gives it back.
// If we are stopped between the two requests, the one that comes last must see that.
func (h *Held) verify(ctx context.Context) (volume.Meta, error) {
	next := h.epoch.Load() + 1
	_, err := h.o.Sibling(ContainerName(h.o.Name, next)).Metadata(ctx)
	switch {
	case err == nil:
		err = fmt.Errorf("somebody has lease %d: %w", next, errAgain)
	case errors.Is(err, store.ErrContainerNotFound):
		err = nil
	default:
		err = fmt.Errorf("look at lease %d: %w", next, err)
	}
	md, merr := h.store.Metadata(ctx)
	if merr != nil {
		return volume.Meta{}, fmt.Errorf("read the lock mark back: %w", merr)
	}
	if merr := h.checkMark(md); merr != nil {
		if h.key != "" && md.Items[KeyFence] == "" && md.Items[volume.KeyClient] == h.mark && md.Items[KeyEpoch] == strconv.FormatInt(h.epoch.Load(), 10) {
			return volume.Meta{}, ErrNotOwner
		}
		return volume.Meta{}, merr
	}
	if err != nil {
		return volume.Meta{}, err
	}
	return volume.FromMetadata(md)
}

// ErrNotOwner is Acquire's error if Swift has set the mark but not the key,
// which is in the same request. If the credentials are not those of the
// account's owner, Swift drops a TempURL key without an error, and does not
// show one, even if the account's ACL allows everything else
// (swift_owner_headers of swift/proxy/server.py; read-write in tempauth's
// X-Account-Access-Control).
var ErrNotOwner = errors.New("these credentials may write in this account and do not own it: " +
	"Swift does not let them set the key that its writes are signed with " +
	"(use the owner's, or an account ACL that gives \"admin\", or lease=0 for swiftnbd 0.11's mark alone)")

// errNumber says that we hold the volume, but it names another number: a late
// request, ours or another's, has changed it.
var errNumber = errors.New("the volume names another lease")

// checkMark returns ErrLost and the holder, unless md says that we hold the
// volume. It returns errNumber if only the number has to be set again.
func (h *Held) checkMark(md store.Metadata) error {
	if h.o.Seen != nil {
		h.o.Seen(md)
	}
	is := md.Items[volume.KeyClient]
	if h.leased && is != h.mark && h.before(md) {
		return errBehind
	}
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
	case err == nil && n == h.epoch.Load():
		return nil
	case err == nil && h.numbers[n] || h.key != "":
		// Mark, key and number are set together. A process that had taken the
		// volume would have left its own mark and key.
		return errNumber
	}
	return fmt.Errorf("%w: it is under lease %s, not %d", ErrLost, md.Items[KeyEpoch], h.epoch.Load())
}

// errBehind says that Swift has shown the volume as it was before we took it.
// The replica that answered has missed our mark, and those that have it were
// away or slow. This proves nothing.
var errBehind = errors.New("only a replica that is behind has answered: it shows the volume as it was before this session")

// before says whether md shows the volume as it was before we took it. Only the
// number may be one that a renewal has set: a replica that has missed the mark
// may have got this. Nobody writes meanwhile for longer than the lease lasts.
func (h *Held) before(md store.Metadata) bool {
	if h.was == nil || md.Items[volume.KeyClient] != h.was[volume.KeyClient] || md.Items[KeyFence] != h.was[KeyFence] {
		return false
	}
	if md.Items[KeyEpoch] == h.was[KeyEpoch] {
		return true
	}
	// The first number was set with the mark. Where it is without the mark,
	// somebody has removed that.
	n, err := strconv.ParseInt(md.Items[KeyEpoch], 10, 64)
	return err == nil && h.numbers[n] && n != h.first
}

// discard gives up a volume that we could not take. s is its state before.
// marked says that our mark or the lease's end was sent and may have arrived,
// or may still arrive. Then the lease is ended and not removed, so that a
// process that finds the mark can take the volume over. With arrived, nothing
// is still on its way, and the lease stays only if the one before it kept something.
func (h *Held) discard(ctx context.Context, s State, marked, arrived bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if !marked {
		_ = h.o.deleteLease(ctx, h.epoch.Load())
		return
	}
	md, err := h.store.Metadata(ctx)
	if err != nil {
		return // the lease ends by itself
	}
	if md.Items[volume.KeyClient] == h.mark && md.Items[KeyEpoch] == strconv.FormatInt(h.epoch.Load(), 10) {
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
		if arrived && len(s.Kept) == 0 {
			_ = h.o.deleteLease(ctx, h.epoch.Load())
			return
		}
		if arrived { // and ours takes the place of the one before
			defer func() { _ = h.o.deleteLease(ctx, s.Epoch) }()
		}
	}
	kept := s.Kept.items()
	if h.stray {
		kept[keyStray] = "1"
	}
	_ = h.o.endRecord(ctx, h.epoch.Load(), h.mark, kept)
}

// remove removes our leases, and those of the holder from whom we took the
// volume over, except number keep. A lease that cannot be removed is garbage.
// Leases of others who came in between stay, and are garbage too: if such a
// mark arrives late, its lease shows that it has ended.
func (h *Held) remove(ctx context.Context, keep int64) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for n := range h.old {
		if n == keep {
			continue
		}
		err := h.o.deleteLease(ctx, n)
		if err == nil || errors.Is(err, store.ErrContainerNotFound) {
			delete(h.old, n)
		}
	}
}
