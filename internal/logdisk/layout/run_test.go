// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"
)

// Three runs of one page or none. Another program computed the CRCs, bit by bit.
const (
	goldenBlocks = `
	ac020200 2a0f8420 00e80701 ba050102 00030807 01ffffff ff0f0005 04032a10
	00a8460c 00010b01 02030405 00010910 6af808eb 2c010000 00000000 00000000
	00000000 34000000 73776e62 6472756e 01000000 01000000 34000000 00000000
	00010203 04050607 08090a0b 0c0d0e0f f75a76d6 2b000000 07000000 00000000
	00000000 56e4e885`
	goldenObjects = `
	8f808080 a00500b4 42842001 0180012b ac02ffff ffff0f10 ce764a35 0f000000
	2a000000 00000000 00000000 1c000000 73776e62 6472756e 01000100 01000000
	1c000000 00000000 00010203 04050607 08090a0b 0c0d0e0f 68aba2a7 2b000000
	07000000 00000000 00000000 ccb7e889`
	goldenEmpty = `
	73776e62 6472756e 01000000 00000000 00000000 00000000 00010203 04050607
	08090a0b 0c0d0e0f 00000000 2b000000 07000000 00000000 00000000 344ab9d6`
)

var (
	goldenEntries = []Entry{
		{First: 300, Count: 2, At: Position{0x2a, 15}, Place: 4100},
		{First: 302, Count: 1000, Kind: Zeroes},
		{First: 2000, Count: 1, Kind: Trimmed},
		{First: 2001, Count: 3, Base: 7, At: Position{1, MaxN}},
		{First: 2009, Count: 4, Kind: Zstd, At: Position{0x2a, 16}, Bytes: 9000, Skip: 12},
		{First: 2013, Count: 1, Kind: Zstd, Base: 1, At: Position{2, 3}, Place: 4, Bytes: 5},
		{First: 2015, Count: 9, Remove: true},
	}
	goldenObjectEntries = []ObjectEntry{
		{At: Position{0x2a, 15}, Size: 8500, Live: 4100},
		{At: Position{0x2a, 16}, Size: 128, Died: Position{0x2b, 300}},
		{At: Position{0x2b, 15}, Remove: true},
	}
)

// testRun is the name of the runs of these tests.
var testRun = Position{0x2b, 7}

func makeRun(t testing.TB, entries []Entry) []byte {
	t.Helper()
	w := NewRunWriter(testUUID, RunBlocks, testRun)
	for _, e := range entries {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	return w.Bytes()
}

func makeObjects(t testing.TB, entries []ObjectEntry) []byte {
	t.Helper()
	w := NewRunWriter(testUUID, RunObjects, testRun)
	for _, e := range entries {
		if err := w.AddObject(e); err != nil {
			t.Fatal(err)
		}
	}
	return w.Bytes()
}

// all returns the entries up to the first error.
func all[E any](seq iter.Seq2[E, error]) (entries []E, err error) {
	for e, err := range seq {
		if err != nil {
			return entries, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// readRun reads all of a run of whatever kind.
func readRun(b []byte, u UUID) (entries []Entry, objects []ObjectEntry, err error) {
	r, err := ParseRun(b, u)
	if err != nil {
		return nil, nil, err
	}
	if r.Kind == RunObjects {
		objects, err = all(r.Objects())
	} else {
		entries, err = all(r.Entries())
	}
	return entries, objects, err
}

func TestRunGolden(t *testing.T) {
	if b, want := makeRun(t, goldenEntries), unhex(t, goldenBlocks); !bytes.Equal(b, want) {
		t.Errorf("written as\n% x, expected\n% x", b, want)
	}
	if b, want := makeObjects(t, goldenObjectEntries), unhex(t, goldenObjects); !bytes.Equal(b, want) {
		t.Errorf("written as\n% x, expected\n% x", b, want)
	}
	if b, want := makeRun(t, nil), unhex(t, goldenEmpty); !bytes.Equal(b, want) {
		t.Errorf("written as\n% x, expected\n% x", b, want)
	}
	if entries, _, err := readRun(unhex(t, goldenBlocks), testUUID); err != nil || !slices.Equal(entries, goldenEntries) {
		t.Errorf("read as %+v, %v", entries, err)
	}
	if _, objects, err := readRun(unhex(t, goldenObjects), testUUID); err != nil || !slices.Equal(objects, goldenObjectEntries) {
		t.Errorf("read as %+v, %v", objects, err)
	}
	if entries, _, err := readRun(unhex(t, goldenEmpty), testUUID); err != nil || len(entries) != 0 {
		t.Errorf("read as %+v, %v", entries, err)
	}
}

func TestRunBitsAndCuts(t *testing.T) {
	for _, text := range []string{goldenBlocks, goldenObjects, goldenEmpty} {
		b := unhex(t, text)
		for bit := range 8 * len(b) {
			bad := bytes.Clone(b)
			bad[bit/8] ^= 1 << (bit % 8)
			entries, objects, err := readRun(bad, testUUID)
			wantDamaged(t, err, "run")
			if len(entries) != 0 || len(objects) != 0 {
				t.Errorf("bit %d changed: %+v, %+v before the error", bit, entries, objects)
			}
		}
		for n := range len(b) {
			for _, part := range [][]byte{b[:n], b[len(b)-n:]} {
				_, _, err := readRun(part, testUUID)
				wantDamaged(t, err, "run")
			}
		}
		other := testUUID
		other[0]++
		_, _, err := readRun(b, other)
		wantDamaged(t, err, "run", "belongs to volume "+testUUID.String())
	}
}

// randomEntries returns entries in ascending order.
func randomEntries(rng *rand.Rand, n int) (entries []Entry) {
	var block uint64
	for range n {
		e := Entry{First: block + rng.Uint64N(1<<rng.UintN(20)), Count: 1 + rng.Uint64N(1<<rng.UintN(12)), Kind: Kind(rng.UintN(4))}
		if e.Kind.Stored() {
			e.At = Position{Epoch: rng.Uint32() >> rng.UintN(32), N: 1 + rng.Uint64N(MaxN)>>rng.UintN(32)}
			e.Place = rng.Uint32N(1 << 31)
			if rng.UintN(4) == 0 {
				e.Base = 1 + rng.Uint32N(100)
			}
			if e.Kind == Zstd {
				e.Count = 1 + rng.Uint64N(MaxCompressed)
				e.Skip = rng.Uint32N(1 + min(MaxCompressed-uint32(e.Count), uint32(min(e.First, 99))))
				e.Bytes = crcSize + 1 + rng.Uint32N(60000)
			}
		}
		if rng.UintN(10) == 0 {
			e = Entry{First: e.First, Count: e.Count, Remove: true}
		}
		entries = append(entries, e)
		block = e.End()
	}
	return entries
}

func randomObjectEntries(rng *rand.Rand, n int) (entries []ObjectEntry) {
	p := Position{}
	for range n {
		if p.N += 1 + rng.Uint64N(1<<rng.UintN(30)); p.N > MaxN || rng.UintN(50) == 0 {
			p = Position{Epoch: p.Epoch + 1 + rng.Uint32N(100), N: 1}
		}
		e := ObjectEntry{At: p, Size: FooterSize + rng.Int64N(MaxObjectSize-FooterSize)}
		switch live := rng.Int64N(e.Size - FooterSize + 1); {
		case rng.UintN(10) == 0:
			e = ObjectEntry{At: p, Remove: true}
		case live > 0 && rng.UintN(3) > 0:
			e.Live = live
		default:
			e.Died = Position{Epoch: p.Epoch + rng.Uint32N(2), N: p.N + rng.Uint64N(MaxN-p.N+1)}
		}
		entries = append(entries, e)
	}
	return entries
}

func TestRunRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 1000, 10000, 100000} {
		want := randomEntries(rng, n)
		b := makeRun(t, want)
		got, _, err := readRun(b, testUUID)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%d entries: %d read, %v", n, len(got), err)
		}
		checkPages(t, b, (*RunIndex).Page, want, func(e Entry) (uint64, uint64) { return e.First, e.End() - 1 })

		objects := randomObjectEntries(rng, n)
		b = makeObjects(t, objects)
		_, gotObjects, err := readRun(b, testUUID)
		if err != nil || !slices.Equal(gotObjects, objects) {
			t.Fatalf("%d objects: %d read, %v", n, len(gotObjects), err)
		}
		checkPages(t, b, (*RunIndex).ObjectPage, objects, func(e ObjectEntry) (uint64, uint64) { return ObjectKey(e.At), ObjectKey(e.At) })
	}
	// The last key of all.
	objects := []ObjectEntry{{At: Position{0, 1}, Remove: true}, {At: Position{1<<32 - 1, MaxN}, Remove: true}}
	if _, got, err := readRun(makeObjects(t, objects), testUUID); err != nil || !slices.Equal(got, objects) {
		t.Errorf("%+v, %v", got, err)
	}
}

// checkPages reads a run page by page, as one that is too large for memory: the
// index from the run's end, and then the page that a key is in.
func checkPages[E comparable](t *testing.T, b []byte, page func(*RunIndex, int, []byte) iter.Seq2[E, error], entries []E, keys func(E) (first, last uint64)) {
	t.Helper()
	size := int64(len(b))
	x, need, err := ParseRunIndex(b[len(b)-runFooterSize:], size, testUUID)
	if x != nil || err != nil || need <= runFooterSize {
		t.Fatalf("from the footer alone: %v, need %d, %v", x, need, err)
	}
	for _, n := range []int64{need - 1, runFooterSize + 1} {
		if _, again, err := ParseRunIndex(b[size-n:], size, testUUID); again != need || err != nil {
			t.Errorf("from %d bytes: need %d, expected %d, %v", n, again, need, err)
		}
	}
	x, more, err := ParseRunIndex(b[size-need:], size, testUUID)
	if err != nil || more != 0 {
		t.Fatalf("need %d more, %v", more, err)
	}
	pages := make([][]E, len(x.Pages))
	n := 0
	for i, p := range x.Pages {
		pages[i], err = all(page(x, i, b[p.Place:p.Place+int64(p.Bytes)]))
		if err != nil || len(pages[i]) == 0 {
			t.Fatalf("page %d: %d entries, %v", i, len(pages[i]), err)
		}
		if p.Bytes > MaxPage || i < len(x.Pages)-1 && p.Bytes < MaxPage-100 {
			t.Errorf("page %d has %d bytes", i, p.Bytes)
		}
		n += len(pages[i])
	}
	if n != len(entries) {
		t.Errorf("the pages have %d entries, expected %d", n, len(entries))
	}
	for k := 0; k < len(entries); k += 1 + len(entries)/500 {
		e := entries[k]
		for _, key := range slices.Collect(pair(keys(e))) {
			if i := x.Find(key); i < 0 || !slices.Contains(pages[i], e) {
				t.Errorf("key %#x: page %d does not have %+v", key, i, e)
			}
		}
	}
	if first, _ := keys(entries[0]); first > 0 && x.Find(first-1) != -1 {
		t.Errorf("key %#x: page %d", first-1, x.Find(first-1))
	}
}

func pair(a, b uint64) iter.Seq[uint64] {
	return func(yield func(uint64) bool) { _ = yield(a) && yield(b) }
}

// An index is believed without a look at the pages, so it is checked by itself.
func TestRunIndexBits(t *testing.T) {
	b := rawRun(RunBlocks, rawPage{5, varints(5, 1, 1)}, rawPage{9, varints(9, 1, 1)})
	index := len(b) - runFooterSize - 2*pageRefSize
	for bit := 8 * index; bit < 8*(len(b)-runFooterSize); bit++ {
		bad := bytes.Clone(b)
		bad[bit/8] ^= 1 << (bit % 8)
		x, _, err := ParseRunIndex(bad, int64(len(b)), testUUID)
		if wantDamaged(t, err, "run", "index: wrong checksum"); x != nil {
			t.Errorf("bit %d changed: %+v beside an error", bit, x)
		}
	}
}

func TestRunStops(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	r, err := ParseRun(makeRun(t, randomEntries(rng, 30000)), testUUID)
	if err != nil || len(r.Pages) < 3 {
		t.Fatal(len(r.Pages), err)
	}
	n := 0
	for range r.Entries() {
		if n++; n == 20000 {
			break
		}
	}
	// A damaged page does not spoil those before it.
	p := r.Pages[2]
	r.b[p.Place+5]++
	got, err := all(r.Entries())
	wantDamaged(t, err, "run", "page 2", "checksum")
	if len(got) == 0 || got[len(got)-1].End() > p.First {
		t.Errorf("%d entries before it", len(got))
	}
	if _, err := all(r.Objects()); err == nil {
		t.Error("a run of blocks is read as one of objects")
	}
	_, err = all(r.ObjectPage(0, r.b[:r.Pages[0].Bytes]))
	wantDamaged(t, err, "a run of blocks, expected a run of objects")
	_, err = all(r.Page(0, r.b[:100]))
	wantDamaged(t, err, "page 0", "100 bytes, expected")
	if _, err := all(r.Page(1, r.b[:r.Pages[1].Bytes])); err == nil {
		t.Error("page 0 is taken as page 1")
	}
}

// FuzzParseRun gives the parser runs as they are, and with the right CRCs, so
// that it is the parser which has to cope.
func FuzzParseRun(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, text := range []string{goldenBlocks, goldenObjects, goldenEmpty} {
		b := unhex(f, text)
		f.Add(b)
		f.Add(b[1:])
		f.Add(b[:len(b)-1])
	}
	f.Add(makeRun(f, randomEntries(rng, 40)))
	f.Add(makeObjects(f, randomObjectEntries(rng, 40)))
	f.Add(rawRun(RunBlocks, rawPage{5, varints(5, 1, 1)}, rawPage{6, varints(6, 1, 2)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var u UUID
		if len(b) >= runFooterSize {
			u = UUID(b[len(b)-40:])
		}
		for _, b := range [][]byte{b, resealRun(b)} {
			r, err := ParseRun(b, u)
			if err != nil {
				continue
			}
			w := NewRunWriter(u, r.Kind, r.Name)
			entries, objects, err := readRun(b, u)
			for _, e := range entries {
				if err := w.Add(e); err != nil {
					t.Fatalf("%+v is taken, and not written: %v", e, err)
				}
			}
			for _, e := range objects {
				if err := w.AddObject(e); err != nil {
					t.Fatalf("%+v is taken, and not written: %v", e, err)
				}
			}
			if err != nil {
				continue
			}
			entries2, objects2, err := readRun(w.Bytes(), u)
			if err != nil || !slices.Equal(entries, entries2) || !slices.Equal(objects, objects2) {
				t.Fatalf("taken, and not the same when written again: %v", err)
			}
		}
	})
}

func BenchmarkRunWriter(b *testing.B) {
	entries := randomEntries(rand.New(rand.NewPCG(5, 6)), 100000)
	b.ReportAllocs()
	for b.Loop() {
		makeRun(b, entries)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(entries)), "ns/entry")
}

func BenchmarkRunEntries(b *testing.B) {
	run := makeRun(b, randomEntries(rand.New(rand.NewPCG(5, 6)), 100000))
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		r, err := ParseRun(run, testUUID)
		if err != nil {
			b.Fatal(err)
		}
		for _, err := range r.Entries() {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/entry")
}
