// SPDX-License-Identifier: MIT

package logdisk

import (
	"errors"
	"testing"

	"swiftnbd/internal/logdisk/layout"
)

// cutPiece is an object of the log with one block, all of whose bytes are the same.
type cutPiece struct {
	n, first uint64 // its number, and that of its cut's first object
	last     bool
	block    uint64
	with     byte
}

func (p cutPiece) bytes(u layout.UUID) []byte {
	frame := make([]byte, layout.FrameSize)
	for i := range layout.BlockSize {
		frame[i] = p.with
	}
	layout.PutFrame(frame, frame[:layout.BlockSize], p.block, &u)
	at := layout.Position{Epoch: 1, N: p.n}
	records := []layout.Record{{First: p.block, Count: 1, Kind: layout.Data, Bytes: layout.FrameSize}}
	return layout.AppendTail(frame, records, layout.Footer{LastOfCut: p.last, UUID: u, At: at, FirstOfCut: p.first, Size: 1 << 20})
}

// TestCuts opens logs whose cuts have several objects. We write only cuts of one, but
// the format has others: of such a cut all counts, or nothing. One whose objects do not
// agree is damaged, and nothing is served.
func TestCuts(t *testing.T) {
	one := cutPiece{n: 1, first: 1, last: true, block: 7, with: 1}
	for what, c := range map[string]struct {
		pieces  []cutPiece
		want    []byte // of blocks 7, 8 and 9
		end     uint64 // the last number that counts
		damaged bool
	}{
		"one":                         {pieces: []cutPiece{one}, want: []byte{1, 0, 0}, end: 1},
		"the second one is cut off":   {pieces: []cutPiece{one, {2, 2, false, 8, 2}}, want: []byte{1, 0, 0}, end: 1},
		"the first one is cut off":    {pieces: []cutPiece{{1, 1, false, 7, 1}}, want: []byte{0, 0, 0}},
		"the third object is not yet": {pieces: []cutPiece{one, {2, 2, false, 7, 2}, {3, 2, false, 9, 3}}, want: []byte{1, 0, 0}, end: 1},
		"whole":                       {pieces: []cutPiece{one, {2, 2, false, 7, 2}, {3, 2, true, 9, 3}}, want: []byte{2, 0, 3}, end: 3},
		"the one between is missing":  {pieces: []cutPiece{one, {3, 2, true, 9, 3}}, want: []byte{1, 0, 0}, end: 1},
		"two whole ones":              {pieces: []cutPiece{{1, 1, false, 7, 1}, {2, 1, true, 8, 2}, {3, 3, true, 7, 3}}, want: []byte{3, 2, 0}, end: 3},
		"another one begins within":   {pieces: []cutPiece{{1, 1, false, 7, 1}, {2, 2, true, 8, 2}}, damaged: true},
		"it goes on after its end":    {pieces: []cutPiece{one, {2, 1, true, 8, 2}}, damaged: true},
		"it begins before the log":    {pieces: []cutPiece{{1, 0, true, 7, 1}}, damaged: true},
	} {
		t.Run(what, func(t *testing.T) {
			v := newVolume(t, 1<<20)
			d, err := v.open(t.Context(), v.box) // the lease of number 1
			if err != nil {
				t.Fatal(err)
			}
			d.Close()
			for _, p := range c.pieces {
				put(t, v.box, layout.LogName(layout.Position{Epoch: 1, N: p.n}), p.bytes(v.uuid))
			}
			for range 2 { // the second time by the root that ends the log
				d, err = v.open(t.Context(), v.box)
				var damaged *layout.DamagedError
				if c.damaged {
					if !errors.As(err, &damaged) {
						t.Fatalf("opened: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				for i, with := range c.want {
					p := make([]byte, blockSize)
					if err := d.Read(t.Context(), p, int64(7+i)*blockSize); err != nil {
						t.Fatal(err)
					}
					for _, b := range p {
						if b != with {
							t.Fatalf("block %d has %d, and not %d", 7+i, b, with)
						}
					}
				}
				if got := d.root.At; got != (layout.Position{Epoch: 1, N: c.end}) && c.end > 0 {
					t.Errorf("the log is in the map up to %v", got)
				}
				d.Close()
			}
		})
	}
}
