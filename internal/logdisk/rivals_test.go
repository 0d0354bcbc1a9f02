// SPDX-License-Identifier: MIT

package logdisk

import (
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// TestRivals simulates hours of holders who follow one another. Each one stalls
// at some moment, and the next takes the disk over while it still runs. What the
// first has sent arrives within the next two hours: objects, checkpoints and
// deletes. What it sends after its end is refused.
func TestRivals(t *testing.T) {
	rng := newRand(t)
	n := 4
	if testing.Short() {
		n = 1
	}
	if *opsFlag > 0 {
		n = max(1, *opsFlag/5000)
	}
	for range n {
		seed := rng.Uint64()
		for _, paged := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) { rivals(t, rand.New(rand.NewPCG(seed, 3)), paged) })
		}
	}
}

func rivals(t *testing.T, rng *rand.Rand, paged bool) {
	const blocks = 192
	began := time.Now()
	v := (&opener{box: mem.New(), uuid: layout.UUID{1}, t: t}).create(t, blocks*blockSize)
	v.o = Options{
		Seal: 4 * layout.FrameSize, Tail: 64 * layout.FrameSize, Cache: 8 << 20, Connections: 8, Checkpoint: 15,
		Age: 2 * time.Second, FlushTime: -1, Timeout: 2 * time.Second, GC: 70, Every: 10 * time.Second,
	}
	if paged {
		v.o.littleMap()
	}
	w := newWitness(t, v.box, horizon)
	s := newScript(t, blocks)
	var ops, flushes, opened, late int
	var deleted, moved int64
	for range 12 {
		line := newWire(w)
		weather := rand.New(rand.NewPCG(rng.Uint64(), 4)) // guarded by line.mu: uploads ask beside each other
		line.late = func() time.Duration {
			line.mu.Lock()
			defer line.mu.Unlock()
			switch k := weather.IntN(100); {
			case k < 90:
				return time.Duration(weather.IntN(100)) * time.Millisecond
			case k < 98:
				return time.Duration(weather.IntN(25)) * time.Second
			default:
				late++
				return slow + time.Duration(weather.Int64N(int64(2*time.Hour)))
			}
		}
		d, err := v.open(t.Context(), line)
		if err != nil {
			if !errors.As(err, new(*store.TransportError)) {
				t.Fatal(err)
			}
			line.refuse(store.ErrLapsed)
			continue // its root may arrive yet
		}
		opened++
		s.check(d)
		for range 50 + rng.IntN(150) {
			ops++
			switch k := rng.IntN(40); {
			case k < 25:
				b := rng.Uint64N(blocks)
				err = s.write(d, b)
			case k < 28:
				first := rng.Uint64N(blocks)
				err = s.zero(d, first, 1+rng.Uint64N(min(20, blocks-first)))
			case k < 34:
				if s.flush(d) == nil {
					flushes++
				}
			case k < 35:
				_ = s.save(d)
			case k < 36:
				time.Sleep(time.Duration(rng.IntN(15)) * time.Minute)
			default:
				time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			}
			if err != nil && !errors.As(err, new(*store.TransportError)) {
				t.Fatal(err)
			}
		}
		deleted, moved = deleted+d.Stats().Deleted.Load(), moved+d.Stats().Moved.Load()
		// It stalls: what it sends now arrives late, and is not answered.
		line.mu.Lock()
		line.late = func() time.Duration {
			line.mu.Lock()
			defer line.mu.Unlock()
			late++
			return slow + time.Duration(weather.Int64N(int64(2*time.Hour)))
		}
		line.mu.Unlock()
		for range rng.IntN(8) {
			if s.write(d, rng.Uint64N(blocks)) != nil {
				break
			}
		}
		go func() { _ = d.Save(t.Context()) }()
		time.Sleep(time.Duration(rng.IntN(40)) * time.Second)
		line.refuse(store.ErrLapsed)
		time.AfterFunc(time.Duration(rng.Int64N(int64(4*time.Hour))), d.Close)
	}
	v.o.Every = time.Minute
	d, err := v.open(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	s.check(d)
	time.Sleep(52 * time.Hour) // it has looked for strays after the last has arrived
	s.same(d)
	list, err := v.box.List(t.Context(), store.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.mu.RLock()
	named := d.objects.len() + len(d.root.Runs.Blocks) + len(d.root.Runs.Objects) + 1
	d.mu.RUnlock()
	if len(list) != named {
		t.Errorf("%d objects are left, %d are named", len(list), named)
	}
	t.Logf("%v: %d holders, %d operations, %d flushes, %d late writes, %d blocks moved, %d objects deleted",
		time.Since(began).Round(time.Minute), opened, ops, flushes, late, moved, deleted)
	if opened < 3 || flushes == 0 || late == 0 || moved == 0 || deleted == 0 {
		t.Error("this simulation shows little")
	}
	d.Close()
	time.Sleep(5 * time.Hour)
}
