// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
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

func TestAddRefused(t *testing.T) {
	at := Position{3, 4}
	for _, c := range []struct {
		e   Entry
		why string // "": taken
	}{
		{Entry{First: 10, Count: 1, At: at}, ""},
		{Entry{First: 9, Count: 1, At: at}, "the entry before ends at 10"},
		{Entry{First: 10, Count: 0, At: at}, "no blocks"},
		{Entry{First: MaxBlocks - 1, Count: 1, Kind: Zeroes}, ""},
		{Entry{First: MaxBlocks - 1, Count: 2, Kind: Zeroes}, "there can be"},
		{Entry{First: MaxBlocks, Count: 1, Kind: Zeroes}, "there can be"},
		{Entry{First: MaxBlocks + 1, Count: 1, Kind: Zeroes}, "there can be"},
		{Entry{First: 20, Count: 1<<64 - 1, Kind: Zeroes}, "there can be"},
		{Entry{First: 20, Count: 1, Kind: Encrypted, At: at}, "encrypted"},
		{Entry{First: 20, Count: 1, Kind: 200, At: at}, "kind 200"},
		{Entry{First: 20, Count: 1}, "position"},
		{Entry{First: 20, Count: 1, At: Position{1, MaxN + 1}}, "position"},
		{Entry{First: 20, Count: 1, At: at, Bytes: 1}, "compressed data for frames"},
		{Entry{First: 20, Count: 1, At: at, Skip: 1}, "compressed data for frames"},
		{Entry{First: 20, Count: 1, At: at, Place: MaxObjectSize - FooterSize - FrameSize}, ""},
		{Entry{First: 20, Count: 1, At: at, Place: MaxObjectSize - FooterSize - FrameSize + 1}, "not in one object"},
		{Entry{First: 20, Count: 1 << 50, At: at}, "not in one object"},
		{Entry{First: 20, Count: 1, Kind: Zeroes, At: at}, "a place for blocks that have none"},
		{Entry{First: 20, Count: 1, Kind: Trimmed, Base: 1}, "a place for blocks that have none"},
		{Entry{First: 20, Count: 1, Remove: true, Place: 1}, "a place for blocks that have none"},
		{Entry{First: 20, Count: 1, Remove: true, Kind: Zeroes}, "a place for blocks that have none"},
		{Entry{First: 20, Count: 16, Kind: Zstd, At: at, Bytes: 16*FrameSize - 1}, ""},
		{Entry{First: 20, Count: 16, Kind: Zstd, At: at, Bytes: 16 * FrameSize}, "a compressed record of"},
		{Entry{First: 20, Count: 1, Kind: Zstd, At: at, Bytes: 4}, "a compressed record of 4 bytes"},
		{Entry{First: 20, Count: 1, Kind: Zstd, At: at, Bytes: 100, Place: MaxObjectSize - FooterSize - 99}, "a compressed record of 100 bytes"},
		{Entry{First: 20, Count: 17, Kind: Zstd, At: at, Bytes: 100}, "compressed record that begins"},
		{Entry{First: 20, Count: 10, Kind: Zstd, At: at, Bytes: 100, Skip: 7}, "blocks 7 to 17"},
		{Entry{First: 20, Count: 1, Kind: Zstd, At: at, Bytes: 100, Skip: 1<<32 - 1}, "compressed record that begins"},
		{Entry{First: 10, Count: 1, Kind: Zstd, At: at, Bytes: 100, Skip: 11}, "begins 11 before block 10"},
	} {
		w := NewRunWriter(testUUID, RunBlocks, testRun)
		if err := w.Add(Entry{First: 2, Count: 8, Kind: Zeroes}); err != nil {
			t.Fatal(err)
		}
		err := w.Add(c.e)
		if c.why == "" && err != nil || c.why != "" && (err == nil || !strings.Contains(err.Error(), c.why)) {
			t.Errorf("%+v: %v, expected %q", c.e, err, c.why)
		}
		want := 1
		if c.why == "" {
			want = 2
		}
		if got, _, err := readRun(w.Bytes(), testUUID); err != nil || len(got) != want {
			t.Errorf("%+v: the run has %d entries, %v", c.e, len(got), err)
		}
	}
	for _, c := range []struct {
		e   ObjectEntry
		why string
	}{
		{ObjectEntry{At: Position{1, 9}, Size: 128, Died: Position{1, 9}}, ""},
		{ObjectEntry{At: Position{1, 8}, Size: 129, Live: 1}, "the entry before has 00000001-000000000008"},
		{ObjectEntry{At: Position{1, 7}, Size: 129, Live: 1}, "the entry before has"},
		{ObjectEntry{At: Position{1, 0}, Size: 129, Live: 1}, "position"},
		{ObjectEntry{At: Position{1, 1 << 32}, Size: 129, Live: 1}, "position"},
		{ObjectEntry{At: Position{1, 9}, Size: 129, Live: 2}, "2 live bytes of 129"},
		{ObjectEntry{At: Position{1, 9}, Size: 129, Live: -1}, "-1 live bytes"},
		{ObjectEntry{At: Position{1, 9}, Size: 127, Died: Position{1, 9}}, "127 bytes"},
		{ObjectEntry{At: Position{1, 9}, Size: 1 << 32, Live: 1}, "4294967296 bytes"},
		{ObjectEntry{At: Position{1, 9}, Size: 129}, "no live bytes"},
		{ObjectEntry{At: Position{1, 9}, Size: 129, Died: Position{1, 8}}, "no live bytes, and dead since"},
		{ObjectEntry{At: Position{1, FirstCollected}, Size: 129, Died: Position{1, 2}}, ""},
		{ObjectEntry{At: Position{1, FirstCollected}, Size: 129, Died: Position{0, 2}}, "no live bytes, and dead since"},
		{ObjectEntry{At: Position{1, FirstCollected + 1}, Size: 129, Died: Position{1, FirstCollected}}, "no live bytes, and dead since"},
		{ObjectEntry{At: Position{1, FirstCollected - 1}, Size: 129, Died: Position{1, 2}}, "no live bytes, and dead since"},
		{ObjectEntry{At: Position{1, 9}, Size: 129, Live: 1, Died: Position{1, 9}}, "1 live bytes, and dead"},
		{ObjectEntry{At: Position{1, 9}, Remove: true, Size: 129}, "removed"},
		{ObjectEntry{At: Position{1, 9}, Remove: true, Died: Position{1, 9}}, "removed"},
	} {
		w := NewRunWriter(testUUID, RunObjects, testRun)
		if err := w.AddObject(ObjectEntry{At: Position{1, 8}, Remove: true}); err != nil {
			t.Fatal(err)
		}
		err := w.AddObject(c.e)
		if c.why == "" && err != nil || c.why != "" && (err == nil || !strings.Contains(err.Error(), c.why)) {
			t.Errorf("%+v: %v, expected %q", c.e, err, c.why)
		}
	}
	if NewRunWriter(testUUID, RunObjects, testRun).Add(Entry{Count: 1, Kind: Zeroes}) == nil || NewRunWriter(testUUID, RunBlocks, testRun).AddObject(goldenObjectEntries[0]) == nil {
		t.Error("an entry is added to a run of another kind")
	}
}

// rawPage is a page for rawRun: its entries without the CRC.
type rawPage struct {
	first uint64
	body  []byte
}

// varints are numbers as a page has them.
func varints(ns ...uint64) (b []byte) {
	for _, n := range ns {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

// rawRun makes a run of pages with whatever they have, and with the right CRCs.
func rawRun(kind RunKind, pages ...rawPage) []byte {
	var out, index []byte
	for _, p := range pages {
		index = le.AppendUint64(index, p.first)
		index = le.AppendUint64(index, uint64(len(out)))
		index = le.AppendUint32(index, uint32(len(p.body)+crcSize))
		out = append(out, withCRC(slices.Clip(p.body))...)
	}
	footer := []byte(runMagic)
	footer = le.AppendUint16(footer, 1)
	footer = le.AppendUint16(footer, uint16(kind))
	footer = le.AppendUint32(footer, uint32(len(pages)))
	footer = le.AppendUint64(footer, uint64(len(out)))
	footer = append(footer, testUUID[:]...)
	footer = le.AppendUint32(footer, crc32.Checksum(index, castagnoli))
	footer = le.AppendUint64(le.AppendUint32(footer, testRun.Epoch), testRun.N)
	footer = le.AppendUint32(footer, 0)
	return append(append(out, index...), withCRC(footer)...)
}

// Whatever the CRCs say, these are refused, with the page, the entry and the
// reason.
func TestEntriesRefused(t *testing.T) {
	good := varints(5, 1, 1)
	const max = 1<<64 - 1
	for _, c := range []struct {
		kind  RunKind
		pages []rawPage
		why   string // "": taken
	}{
		{RunBlocks, []rawPage{{5, good}, {6, varints(6, 1, 2)}}, ""},
		{RunBlocks, []rawPage{{5, varints(5, 2, 1)}, {6, varints(6, 1, 2)}}, "page 0: entry 0: it ends at block 7, beyond 6"},
		{RunBlocks, []rawPage{{5, good}, {5, good}}, "page 1 begins at key 0x5, and the page before at 0x5"},
		{RunBlocks, []rawPage{{5, good}, {4, varints(4, 1, 1)}}, "page 1 begins at key 0x4"},
		{RunBlocks, []rawPage{{4, good}}, "page 0: entry 0: it begins at block 5, and its page at 4"},
		{RunBlocks, []rawPage{{5, append(slices.Clip(good), 0, 1, 9)}}, "page 0: entry 1: a place for blocks that have none"},
		{RunBlocks, []rawPage{{5, good}, {9, append(varints(9, 1, 1), 0x80)}}, "page 1: entry 1: a field is cut off"},
		{RunBlocks, []rawPage{{5, []byte{0x85, 0, 1, 1}}}, "entry 0: a field is not in its shortest form"},
		{RunBlocks, []rawPage{{5, []byte{0x85, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 1, 1}}}, "entry 0: a field is cut off or too long"},
		{RunBlocks, []rawPage{{5, varints(5, 0, 1)}}, "entry 0: no blocks"},
		{RunBlocks, []rawPage{{5, varints(5, max, 1)}}, "entry 0: a field is too large"},
		{RunBlocks, []rawPage{{max, varints(max, 1, 1)}}, "entry 0: a field is too large"},
		{RunBlocks, []rawPage{{5, varints(5, MaxBlocks-5, 1, 0, 1, 1)}}, "entry 1: 1 blocks from 2251799813685248"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 4, 1, 1, 1)}}, "later program: page 0: entry 0: kind 4"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 64)}}, "later program: page 0: entry 0: kind 64"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 17)}}, "a place for blocks that have none"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 24)}}, "a place for blocks that have none"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 8, 0, 1, 1, 0)}}, "a container with number 0"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 8, 1<<32, 1, 1, 0)}}, "too large"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 0, 1<<32, 1, 0)}}, "too large"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 0, 1, 1<<32, 0)}}, "too large"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 0, 1, 0, 0)}}, "position 00000001-000000000000"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 0, 1, 1, 1<<32)}}, "too large"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 0, 1, 1)}}, "cut off"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 0, 1, 1, MaxObjectSize)}}, "not in one object"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 3, 1, 1, 0, 9, 6)}}, "begins 6 before block 5"},
		{RunBlocks, []rawPage{{5, varints(5, 1, 3, 1, 1, 0, 9, 5)}}, ""},
		{RunBlocks, []rawPage{{5, varints(5, 1, 3, 1, 1, 0, 9)}}, "cut off"},
		{RunBlocks, []rawPage{{5, varints(5, 1)}}, "page 0 has 6 bytes"},
		{RunBlocks, []rawPage{{5, bytes.Repeat(varints(0, 1, 1), MaxPage/3)}}, "page 0 has 65539 bytes"},
		{RunObjects, []rawPage{{5, varints(5, 0, 300, 100)}}, ""},
		{RunObjects, []rawPage{{5, varints(5, 0, 300, 100, 0, 0, 300, 100)}}, "entry 1: the object of the entry before once more"},
		{RunObjects, []rawPage{{5, varints(5, 0, 300, 100, max, 0, 300, 100)}}, "entry 1: a field is too large"},
		{RunObjects, []rawPage{{5, varints(5, 0, 300, 0)}}, "entry 0: no live bytes, and not dead"},
		{RunObjects, []rawPage{{5, varints(5, 0, 1<<32, 1)}}, "too large"},
		{RunObjects, []rawPage{{5, varints(5, 0, 300, 299)}}, "299 live bytes of 300"},
		{RunObjects, []rawPage{{5, varints(5, 1, 300, 0, 4)}}, "dead since 00000000-000000000004"},
		{RunObjects, []rawPage{{5, varints(5, 2, 300, 0, 4)}}, "later program: page 0: entry 0: an object in state 2"},
		{RunObjects, []rawPage{{0, varints(0, 0, 300, 100)}}, "position"},
		{RunObjects, []rawPage{{4, varints(5, 0, 300, 100)}}, "it has key 0x5, and its page 0x4"},
		{RunObjects, []rawPage{{5, varints(5, 0, 300, 100, 2, 0, 300, 100)}, {7, varints(7, 0, 300, 100)}}, "entry 1: it has key 0x7, and the next page begins at 0x7"},
		{2, nil, "later program: it is a run of kind 2"},
	} {
		_, _, err := readRun(rawRun(c.kind, c.pages...), testUUID)
		switch {
		case c.why == "":
			if err != nil {
				t.Errorf("%v: %v", c.pages, err)
			}
		case strings.HasPrefix(c.why, "later"):
			wantUnsupported(t, err, "run", c.why)
		default:
			wantDamaged(t, err, "run", c.why)
		}
	}
}

// resealRun makes the CRCs of a run right, where it is long enough for them.
func resealRun(b []byte) []byte {
	if len(b) < runFooterSize {
		return b
	}
	b = bytes.Clone(b)
	end := len(b) - runFooterSize
	footer := b[end:]
	if index := int64(le.Uint32(footer[12:])) * pageRefSize; index <= int64(end) {
		t := b[end-int(index) : end]
		for e := t; len(e) > 0; e = e[pageRefSize:] {
			place, n := le.Uint64(e[8:]), uint64(le.Uint32(e[16:]))
			if n >= crcSize && place <= uint64(end) && n <= uint64(end)-place {
				page := b[place : place+n]
				le.PutUint32(page[n-crcSize:], crc32.Checksum(page[:n-crcSize], castagnoli))
			}
		}
		le.PutUint32(footer[40:], crc32.Checksum(t, castagnoli))
	}
	le.PutUint32(footer[60:], crc32.Checksum(footer[:60], castagnoli))
	return b
}

func TestRunFooterRefused(t *testing.T) {
	for _, c := range []struct {
		at    int
		bytes string
		later bool
		why   string
	}{
		{0, "53", false, "begins with"},
		{8, "02", true, "form 2"},
		{10, "02", true, "run of kind 2"},
		{12, "00", false, "0 pages with 52 bytes in a run of 136"},
		{12, "02", false, "2 pages with 52 bytes"},
		{12, "ffffffff", false, "4294967295 pages"},
		{12, "ffffffff5c000000ecffffff", false, "4294967295 pages with 18446743987810205788 bytes"}, // as if less than nothing were left
		{16, "33", false, "1 pages with 51 bytes"},
		{16, "34000000000000ff", false, "1 pages with"},
		{24, "ff", false, "belongs to volume ff0102"},
		{48, "00", false, "0000002b-000000000000 is no name of a run"},
		{52, "01", false, "0000002b-000100000007 is no name of a run"},
		{56, "01", true, "not zero"},
		{59, "01", true, "not zero"},
		{-20, "2d", false, "page 0: entry 0: it begins at block 300, and its page at 301"},
		{-12, "01", false, "page 0 is at 1, expected 0"},
		{-4, "35", false, "its pages have 53 bytes, expected 52"},
		{-4, "06", false, "page 0 has 6 bytes"},
		{-4, "00000100", false, "its pages have 65536 bytes"},
		{-4, "01000100", false, "page 0 has 65537 bytes"},
	} {
		b := unhex(t, goldenBlocks)
		copy(b[len(b)-runFooterSize+c.at:], unhex(t, c.bytes))
		_, _, err := readRun(resealRun(b), testUUID)
		if c.later {
			wantUnsupported(t, err, "run", c.why)
		} else {
			wantDamaged(t, err, "run", c.why)
		}
	}
	r, err := ParseRun(unhex(t, goldenBlocks), testUUID)
	if err != nil || r.Name != testRun || r.Check(testRun) != nil {
		t.Errorf("its name is %v, %v", r.Name, err)
	}
	for _, other := range []Position{{0x2b, 8}, {0x2c, 7}} {
		wantDamaged(t, r.Check(other), "run", "it is swiftnbd/run/0000002b-00000007, and lies under another name")
	}
	for _, size := range []int64{-1, 0, runFooterSize - 1} {
		_, need, err := ParseRunIndex(nil, size, testUUID)
		if wantDamaged(t, err, "run"); need != 0 {
			t.Errorf("size %d: need %d", size, need)
		}
	}
	_, _, err = ParseRunIndex(make([]byte, 100), 99, testUUID)
	wantDamaged(t, err, "100 bytes of a run of 99")
	if _, need, err := ParseRunIndex(nil, 1<<20, testUUID); need != TailSize || err != nil {
		t.Errorf("nothing yet: need %d, %v", need, err)
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
