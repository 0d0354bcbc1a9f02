// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
)

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
