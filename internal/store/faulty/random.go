// SPDX-License-Identifier: MIT

package faulty

import (
	"math/rand/v2"
	"time"

	"swiftnbd/internal/store"
)

// Rates are the probabilities, from 0 to 1, of the faults that Random makes.
// They are tried in this order, and the first that comes true is the fault.
type Rates struct {
	Refuse    float64 // no connection
	Fail      float64 // 503 without effect
	Lose      float64 // reset without effect
	Ambiguous float64 // reset or 503 after the effect
	Hang      float64 // until the context ends; half of them after the effect
	Short     float64 // a Get cut short
	Late      float64 // a reset write that lands within the next 10 operations
	Twice     float64 // a write that lands again within the next 10 operations
	Stale     float64 // a read of an earlier version, if it may be stale
	// Delay bounds the random delay of every operation.
	Delay time.Duration
}

// Random returns a driver of random faults. The fault of operation number n
// depends only on the seed, n and the kind of operation.
func Random(seed uint64, r Rates) Driver {
	return func(op Op) (f Fault) {
		rng := rand.New(rand.NewPCG(seed, uint64(op.N)))
		if r.Delay > 0 {
			f.Delay = time.Duration(rng.Int64N(int64(r.Delay)))
		}
		coin := rng.IntN(2) == 0
		some := 1 + rng.Int64N(10)
		at := rng.Float64()
		chance := func(rate float64) bool {
			at -= rate
			return at < 0
		}
		object := op.Kind == store.OpPut || op.Kind == store.OpDelete
		get := op.Kind == store.OpGet
		switch {
		case chance(r.Refuse):
			f.Err = Refused(op.Op)
		case chance(r.Fail):
			f.Err = Unavailable(op.Op)
		case chance(r.Lose):
			f.Err = Reset(op.Op)
		case chance(r.Ambiguous):
			f.After = true
			if f.Err = Reset(op.Op); coin {
				f.Err = Unavailable(op.Op)
			}
		case chance(r.Hang):
			f.Hang, f.After = true, coin
		case get && chance(r.Short):
			f.Short = 1 + rng.IntN(max(1, op.Bytes))
		case object && chance(r.Late):
			f.Err, f.Late = Reset(op.Op), some
		case object && chance(r.Twice):
			f.Late = some
		case chance(r.Stale):
			f.Stale = int(1 + some%3)
		}
		return f
	}
}
