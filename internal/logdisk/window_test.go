// SPDX-License-Identifier: MIT

package logdisk

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
)

// TestWindow has windows of random maps say which objects have all blocks that the map
// has in them, and compares that with a look at each block.
func TestWindow(t *testing.T) {
	rng := newRand(t)
	right, wrong, windows := 0, 0, 0
	for range 60 {
		records := map[layout.Position][]layout.Record{}
		var live []blockmap.Extent // of the map
		for n := range uint64(1 + rng.IntN(40)) {
			at := layout.Position{Epoch: 1 + uint32(rng.IntN(2)), N: 1 + n*n}
			place := uint32(0)
			damaged := rng.IntN(3) == 0
			for range rng.IntN(150) {
				r := layout.Record{First: rng.Uint64N(1 << 20), Count: 1 + rng.Uint32N(16), Kind: layout.Data, Place: place}
				r.Bytes = r.Count * layout.FrameSize
				if rng.IntN(2) == 0 {
					r.Kind, r.Bytes = layout.Zstd, 20+rng.Uint32N(4000)
				}
				place += r.Bytes
				records[at] = append(records[at], r)
				from := rng.Uint32N(r.Count + 1)
				e := part(extentOfRecord(at, r), r.First+uint64(from), r.First+uint64(from+rng.Uint32N(r.Count-from+1)))
				if e.Count == 0 {
					continue
				}
				if damaged && rng.IntN(20) == 0 {
					switch rng.IntN(4) {
					case 0:
						e.First++
					case 1:
						e.Place++
					case 2:
						e.Place += layout.FrameSize
					case 3:
						if e.Kind == layout.Zstd {
							e.Bytes++
						}
					}
				}
				live = append(live, e)
			}
		}
		rng.Shuffle(len(live), func(i, j int) { live[i], live[j] = live[j], live[i] })
		seen := map[layout.Position]bool{}
		for lo := uint64(0); lo < lastKey; windows++ {
			w := newWindow(lo, 1+rng.Int64N(5000), func(layout.Position) int64 { return rng.Int64N(1 << 20) })
			counted := map[layout.Position]int64{}
			for _, e := range live {
				w.saved(entryOf(e, false))
				w.add(e)
				if rng.IntN(10) == 0 {
					w.covered(e.At, 3)
					counted[e.At] += 3
				}
				counted[e.At] += int64(e.Count)
			}
			if w.hi <= lo || len(w.rows) > 1 && w.bytes > w.limit {
				t.Fatalf("%d rows from %#x to %#x, %d bytes of %d", len(w.rows), lo, w.hi, w.bytes, w.limit)
			}
			lo = w.hi
			for key, m := range w.rows {
				at := keyAt(key)
				if seen[at] {
					t.Fatalf("%v is in two windows", at)
				}
				seen[at] = true
				var blocks, still int64
				for _, e := range live {
					if e.At == at {
						blocks += int64(e.Count)
						for i := range e.Count {
							still += stillIn(records[at], part(e, e.First+i, e.First+i+1))
						}
					}
				}
				if m.live != blocks || m.counted != counted[at] || !m.saved {
					t.Fatalf("%v: %d blocks, want %d; %d counted, want %d", at, m.live, blocks, m.counted, counted[at])
				}
				if got := w.agrees(at, records[at]); got != (still == blocks) {
					t.Fatalf("%v: %v, and %d of %d blocks are there", at, got, still, blocks)
				}
				if still == blocks {
					right++
				} else {
					wrong++
				}
			}
		}
		for _, e := range live {
			if !seen[e.At] {
				t.Fatalf("%v is in no window", e.At)
			}
		}
	}
	t.Logf("%d objects were right and %d wrong, in %d windows", right, wrong, windows)
	if right < 100 || wrong < 100 || windows < 200 {
		t.Error("this test shows little")
	}
}

// TestPositions compares the set with a map.
func TestPositions(t *testing.T) {
	rng := newRand(t)
	var s positions
	want := map[layout.Position]bool{}
	for range 200_000 {
		at := layout.Position{Epoch: rng.Uint32N(3), N: rng.Uint64N(30_000)}
		if rng.IntN(4) == 0 {
			at.N = rng.Uint64N(layout.MaxN + 1)
		}
		if s.has(at) != want[at] {
			t.Fatalf("%v: %v", at, s.has(at))
		}
		s.add(at)
		want[at] = true
	}
	sorted := slices.SortedFunc(maps.Keys(want), layout.Position.Compare)
	if got := slices.Collect(s.from(0, lastKey)); !slices.Equal(got, sorted) || s.len() != len(sorted) {
		t.Errorf("%d positions, %d by len, want %d", len(got), s.len(), len(sorted))
	}
	for range 20 {
		i, j := rand.IntN(len(sorted)), rand.IntN(len(sorted))
		i, j = min(i, j), max(i, j)
		if got := slices.Collect(s.from(layout.ObjectKey(sorted[i]), layout.ObjectKey(sorted[j]))); !slices.Equal(got, sorted[i:j]) {
			t.Errorf("from %v to before %v: %d positions, want %d", sorted[i], sorted[j], len(got), j-i)
		}
	}
}
