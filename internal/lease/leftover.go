// SPDX-License-Identifier: MIT

package lease

import (
	"context"
	"fmt"
	mrand "math/rand/v2"
	"time"

	"swiftnbd/internal/volume"
)

// A lease that was left behind
//
// A process that takes a volume creates the lease's container, writes into it who it
// is and until when, and sets the mark. If it dies before the last, the volume has no
// mark, and nobody can have it until that lease ends: its process may be alive. So may
// the holder of the volume's own lease whose mark somebody has removed (State.fading).
//
// Nothing in Swift tells a dead process from a slow one. But a process that takes a
// volume gives up when that takes it longer than half of what await waits (late). So
// an unlock waits as await does. If nothing has happened by then, a process that was
// taking the volume gives up, also if its mark should still arrive. Then the unlock
// creates the number after all that exist, as one who takes the volume would, sets it
// in the volume, and lets its container stay, ended. One who has come meanwhile has a
// number before that, and gives up when they see the next one. So there are never
// two. A holder without a mark loses the volume when it looks at its lease, as after
// any unlock, and the key that signs its writes is another one then.
//
// The leases are not deleted but ended, if they say whose they are: a mark that
// arrives late is then one of a lease that is over, which anybody may take over.

// leftovers are the leases that keep others from a volume that has no mark.
type leftovers struct {
	records map[int64]record
	newest  int64
	mark    string // of the newest one that says whose it is
}

// leftovers finds the leases that were left behind, waits until nobody can be taking
// the volume, and sets in s who had the newest of them. It returns ErrNotLocked if
// there are none, or none any more, and a *TakenError if somebody is at work.
func (o *Options) leftovers(ctx context.Context, s *State) (left leftovers, err error) {
	if left, err = o.findLeft(ctx, *s); err != nil || len(left.records) == 0 {
		if err == nil {
			err = ErrNotLocked
		}
		return left, err
	}
	o.Log("there is no lock mark, but a lease of somebody who was taking the volume: waiting for up to %v whether they go on", 2*lookAgain*unfinished)
	for range unfinished {
		if err := sleep(ctx, lookAgain+mrand.N(lookAgain)); err != nil {
			return left, err
		}
		md, err := o.Store.Metadata(ctx)
		switch {
		case err != nil:
			return left, err
		case md.Items[volume.KeyClient] != "" || md.Items[KeyEpoch] != s.items[KeyEpoch] || md.Items[volume.KeyLast] != s.Meta.Last:
			e := &TakenError{}
			e.Holder, e.Since = ParseMark(md.Items[volume.KeyClient])
			return left, e
		}
	}
	now, err := o.findLeft(ctx, *s)
	switch {
	case err != nil:
		return left, err
	case len(now.records) == 0:
		return left, ErrNotLocked
	}
	for n, r := range now.records {
		if was, ok := left.records[n]; !ok || was.holder != r.holder || !was.until.Equal(r.until) || was.never != r.never {
			e := &TakenError{}
			e.Holder, e.Since = ParseMark(r.holder)
			return left, e
		}
	}
	if r := now.records[now.newest]; r.holder != "" {
		s.Leased, s.Until, s.Never = true, r.until, r.never
	}
	s.Holder, s.Since = ParseMark(now.mark)
	return now, nil
}

// findLeft returns the leases from the volume's own on that exist and are not over.
func (o *Options) findLeft(ctx context.Context, s State) (left leftovers, err error) {
	if o.Sibling == nil {
		return left, nil
	}
	left.records = map[int64]record{}
	first := s.Epoch + 1
	if s.fading != nil {
		first = s.Epoch
	}
	for n := first; n <= s.Epoch+maxEpochs; n++ {
		r, c, err := o.readRecord(ctx, n)
		if none(err) {
			break
		}
		if err != nil {
			return left, fmt.Errorf("look at lease %d: %w", n, err)
		}
		if r.over(c) {
			continue
		}
		left.records[n], left.newest = r, n
		if r.holder != "" {
			left.mark = r.holder
		}
	}
	return left, nil
}

// end ends what was left behind. What stays is over by its own time at the latest.
func (o *Options) end(ctx context.Context, left leftovers) {
	for n, r := range left.records {
		if r.holder == "" { // nobody has sent a mark under it
			_ = o.deleteLease(ctx, n)
		} else {
			_ = o.endRecord(ctx, n, r.holder, nil)
		}
	}
}

// TakenError is Unlock's error if somebody takes the volume at that moment. Nothing
// was changed.
type TakenError struct {
	Holder string // empty: not known
	Since  time.Time
}

func (e *TakenError) Error() string {
	if e.Holder == "" {
		return "somebody is taking it at this moment"
	}
	return fmt.Sprintf("%s is taking it at this moment", e.Holder)
}
