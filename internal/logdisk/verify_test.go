// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"context"
	"crypto/rand"
	mrand "math/rand/v2"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store/mem"
)

// TestVerifyCollected checks a disk that the collector has been at, over some
// sessions, one of which ends without a checkpoint.
func TestVerifyCollected(t *testing.T) {
	s, u := mem.New(), layout.NewUUID()
	if _, err := s.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	const size = 4 << 20
	hint, err := Setup(t.Context(), s, u, size)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	for epoch := uint32(1); epoch <= 4; epoch++ {
		o := Options{Store: s, UUID: u, Root: hint, Epoch: epoch, GC: 95, Every: 5 * time.Millisecond, Idle: 5 * time.Millisecond, Seal: 64 << 10, Horizon: time.Hour}
		d, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for range 300 {
			off := int64(mrand.IntN(size/layout.BlockSize)) * layout.BlockSize
			p := want[off:][:layout.BlockSize]
			_, _ = rand.Read(p)
			if err := d.Write(t.Context(), p, off); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(20 * time.Second); d.Stats().Moved.Load() == 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("nothing was collected")
			}
		}
		if epoch != 2 {
			if err := d.Save(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		d.Close()
		for _, quick := range []bool{false, true} {
			r, err := Verify(context.Background(), Options{Store: s, UUID: u, Root: hint, Newest: epoch + 1}, VerifyOptions{Quick: quick})
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Damage) > 0 || !r.Judged || r.Data.Count == 0 || r.Live == 0 || (r.Frames == 0) != quick || r.Strays.Count != 0 {
				t.Errorf("epoch %d, quick %v: %+v", epoch, quick, r)
			}
		}
	}
	// The repair takes nothing that is needed.
	r, err := Verify(t.Context(), Options{Store: s, UUID: u, Root: hint, Newest: 5, Horizon: -time.Hour}, VerifyOptions{Repair: true, Held: func() error { return nil }})
	if err != nil || r.Deleted.Count == 0 || r.Deleted != r.Strays || !r.HintFixed {
		t.Errorf("%+v, %v", r, err)
	}
	d, err := Open(t.Context(), Options{Store: s, UUID: u, Root: hint, Newest: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got := make([]byte, size)
	if err := d.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk is not what it was: %v", err)
	}
}

// TestVerifyMap has maps found out that have a block where there is no frame of
// it, or in an object that does not count.
func TestVerifyMap(t *testing.T) {
	for name, c := range map[string]struct {
		entry layout.Entry
		ended uint64
		wrong bool
	}{
		"right":                 {layout.Entry{First: 3, Count: 1, At: layout.Position{Epoch: 1, N: 1}, Place: 3 * layout.FrameSize}, 1, false},
		"another block":         {layout.Entry{First: 3, Count: 1, At: layout.Position{Epoch: 1, N: 1}, Place: 2 * layout.FrameSize}, 1, true},
		"between frames":        {layout.Entry{First: 3, Count: 1, At: layout.Position{Epoch: 1, N: 1}, Place: 3*layout.FrameSize + 1}, 1, true},
		"beyond the records":    {layout.Entry{First: 9, Count: 1, At: layout.Position{Epoch: 1, N: 1}, Place: 9 * layout.FrameSize}, 1, true},
		"after its epoch's end": {layout.Entry{First: 3, Count: 1, At: layout.Position{Epoch: 1, N: 1}, Place: 3 * layout.FrameSize}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			s, u := mem.New(), layout.NewUUID()
			if _, err := s.CreateContainer(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			put := func(name string, b []byte) {
				t.Helper()
				if err := s.Put(t.Context(), name, b, etagOf(b)); err != nil {
					t.Fatal(err)
				}
			}
			at := layout.Position{Epoch: 1, N: 1}
			data := make([]byte, 8*layout.FrameSize)
			for i := range uint64(8) {
				layout.PutFrame(data[i*layout.FrameSize:][:layout.FrameSize], bytes.Repeat([]byte{1}, layout.BlockSize), i, &u)
			}
			records := []layout.Record{{First: 0, Count: 8, Bytes: 8 * layout.FrameSize}}
			put(layout.LogName(at), layout.AppendTail(data, records, layout.Footer{LastOfCut: true, UUID: u, At: at, FirstOfCut: 1, Size: 1 << 20, Sealed: time.Now()}))
			w := layout.NewRunWriter(u, layout.RunBlocks, layout.Position{Epoch: 2, N: 1})
			if err := w.Add(c.entry); err != nil {
				t.Fatal(err)
			}
			put(layout.RunName(layout.Position{Epoch: 2, N: 1}), w.Bytes())
			root := layout.Root{Name: layout.Position{Epoch: 2, N: 1}, UUID: u, Size: 1 << 20, At: layout.Position{Epoch: 1, N: 1},
				Ended: []layout.Position{{Epoch: 1, N: c.ended}}, Runs: layout.Runs{Blocks: []layout.Position{{Epoch: 2, N: 1}}}}
			b, err := root.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			put(layout.RootName(layout.Position{Epoch: 2, N: 1}), b)
			r, err := Verify(t.Context(), Options{Store: s, UUID: u, Newest: 2}, VerifyOptions{Quick: true})
			if err != nil {
				t.Fatal(err)
			}
			if !c.wrong {
				if len(r.Damage) > 0 || r.Data.Count != 1 {
					t.Errorf("%+v", r)
				}
				return
			}
			if len(r.Damage) != 1 || r.Damage[0].Object != layout.LogName(at) || r.Damage[0].Blocks != 1 || r.Damage[0].Ranges[0].Off != int64(c.entry.First)*layout.BlockSize {
				t.Errorf("%+v", r)
			}
		})
	}
}
