// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

// testUUID is 00 01 02 ... 0f.
var testUUID = UUID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

// unhex returns the bytes of hexadecimal text with spaces and lines.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// withCRC appends the CRC of b to b, as the format has it.
func withCRC(b []byte) []byte {
	return le.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// wantError fails unless err is an E whose text has all parts; what says what E is.
func wantError[E error](t testing.TB, what string, err error, parts ...string) {
	t.Helper()
	var e E
	if !errors.As(err, &e) {
		t.Errorf("expected %s %q, got %v", what, parts, err)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%q does not say %q", err, p)
		}
	}
}

// wantDamaged fails unless err is a DamagedError whose text has all parts.
func wantDamaged(t testing.TB, err error, parts ...string) {
	t.Helper()
	wantError[*DamagedError](t, "damage", err, parts...)
}

// wantUnsupported fails unless err is an UnsupportedError whose text has all parts.
func wantUnsupported(t testing.TB, err error, parts ...string) {
	t.Helper()
	wantError[*UnsupportedError](t, "a later program's", err, parts...)
}

// randomObject returns the records and the footer of an object with that much
// data.
func randomObject(rng *rand.Rand, n int, collected bool) (records []Record, f Footer, data int64) {
	n0 := 2 + rng.Uint64N(FirstCollected-2)
	if collected {
		n0 += FirstCollected - 2
	}
	f = Footer{Collected: collected, UUID: testUUID, At: Position{Epoch: 1 + rng.Uint32N(1<<31), N: n0},
		Size: 1 + rng.Int64N(1<<50), Sealed: time.UnixMilli(1 + rng.Int64N(maxMillis)).UTC(), Records: uint32(n)}
	f.Durable = rng.Uint64N(f.At.N)
	if !collected {
		f.FirstOfCut = 1 + rng.Uint64N(f.At.N)
		f.LastOfCut = rng.IntN(2) == 0
	}
	var place uint32
	block := rng.Uint64N(1000)
	for range n {
		r := Record{First: block, Count: 1 + rng.Uint32N(16), Kind: Kind(rng.UintN(4))}
		if collected {
			r.Kind &^= 3 * (r.Kind & 1) // Data or Trimmed
			if r.Kind != Data {
				r.Kind = Zstd
			}
			r.Source = Position{Epoch: rng.Uint32N(f.At.Epoch), N: 1 + rng.Uint64N(MaxN)}
			r.SourcePlace = rng.Uint32N(1 << 31)
		}
		switch r.Kind {
		case Data:
			r.Place, r.Bytes = place, r.Count*FrameSize
		case Zstd:
			r.Place, r.Bytes = place, crcSize+1+rng.Uint32N(r.Count*FrameSize-crcSize-1)
		}
		place += r.Bytes
		block = r.End() + rng.Uint64N(3)
		records = append(records, r)
	}
	f.Size = max(f.Size, int64(block)*BlockSize)
	rng.Shuffle(n, func(i, j int) { records[i], records[j] = records[j], records[i] })
	return records, f, int64(place)
}

func TestTailRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 2, 3, 100, 1363, 1364, 2046, 2047, 5000, MaxRecords} {
		for _, collected := range []bool{false, true} {
			records, f, data := randomObject(rng, n, collected)
			if err := CheckTail(records, f, data); err != nil {
				t.Fatalf("%d records: %v", n, err)
			}
			b := AppendTail([]byte("data"), records, f)
			if !bytes.HasPrefix(b, []byte("data")) {
				t.Fatal("the data are away")
			}
			b = b[4:]
			size := data + int64(len(b))
			tail := b[max(0, len(b)-TailSize):]
			_, _, need, err := ParseTail(tail, size)
			if err != nil {
				t.Fatalf("%d records: %v", n, err)
			}
			if (need != 0) != (len(b) > TailSize) {
				t.Errorf("%d records: %d bytes of %d are needed", n, need, len(b))
			}
			if need != 0 {
				if need != int64(len(b)) {
					t.Errorf("%d records: %d bytes of %d are needed", n, need, len(b))
				}
				tail = b
			}
			g, got, need, err := ParseTail(tail, size)
			if err != nil || need != 0 || g != f || len(got) != n || n > 0 && !reflect.DeepEqual(got, records) {
				t.Errorf("%d records: not the same: %+v, expected %+v; need %d, %v", n, g, f, need, err)
			}
		}
	}
}

// A client's object: a compressed record, frames, zeroes and a trim; and the
// collector's. Another program computed the CRCs, bit by bit.
const (
	goldenTail = `
	05040302 01000000 02000000 00000000 10000000 08200000 00000000 00000000
	07000000 00000000 00000100 01000000 00000000 00000000 00000000 00000000
	05000000 00000000 01000000 02000000 00000000 00000000 00000000 00000000
	00000200 00000000 10000000 03000000 00000000 10000000 00000000 00000000
	73776e62 646c6f67 01000200 20000000 00010203 04050607 08090a0b 0c0d0e0f
	2a000000 04000000 0f000000 00000000 0d000000 00000000 0c000000 00000000
	00000000 00000400 7b68e5cf 8b010000 881672c6 00000000 00000000 00000000
	00000000 00000000 00000000 00000000 00000000 00000000 00000000 8bce209c`
	goldenCollected = `
	05040302 01000000 01000000 00000000 05000000 04100000 00000000 00000000
	29000000 04100000 efcdab00 00000000 05040302 01000000 02000000 03000000
	00000000 05000000 00000000 00000000 00000000 00000000 00000000 00000000
	73776e62 646c6f67 01000100 30000000 00010203 04050607 08090a0b 0c0d0e0f
	2a000000 02000000 10000080 00000000 00000000 00000000 0f000000 00000000
	01100000 00000000 00000000 00000000 33f6f614 00000000 00000000 00000000
	00000000 00000000 00000000 00000000 00000000 00000000 00000000 e464ece9`
)

// golden is what these bytes say.
var golden = []struct {
	text    string
	data    int64
	records []Record
	footer  Footer
}{
	{goldenTail, 8216, []Record{
		{First: 0x0102030405, Count: 2, Kind: Data, Place: 16, Bytes: 8200},
		{First: 7, Count: 0x10000, Kind: Zeroes},
		{First: 5, Count: 1, Kind: Trimmed},
		{First: 0x20000, Count: 16, Kind: Zstd, Place: 0, Bytes: 16},
	}, Footer{LastOfCut: true, UUID: testUUID, At: Position{0x2a, 15}, FirstOfCut: 13, Durable: 12, Size: 1 << 50,
		Sealed: time.UnixMilli(1700000000123).UTC(), Records: 4}},
	{goldenCollected, 4105, []Record{
		{First: 0x0102030405, Count: 1, Kind: Data, Place: 5, Bytes: 4100, Source: Position{0x29, 0xabcdef}, SourcePlace: 0x1004},
		{First: 0x0102030405, Count: 2, Kind: Zstd, Place: 0, Bytes: 5},
	}, Footer{Collected: true, UUID: testUUID, At: Position{0x2a, FirstCollected + 16}, Durable: 15, Size: 4097, Records: 2}},
}

func TestTailGolden(t *testing.T) {
	for _, g := range golden {
		want := unhex(t, g.text)
		f := g.footer
		f.Records = 99
		if b := AppendTail(nil, g.records, f); !bytes.Equal(b, want) {
			t.Errorf("written as\n% x, expected\n% x", b, want)
		}
		f, records, need, err := ParseTail(want, g.data+int64(len(want)))
		if err != nil || need != 0 || f != g.footer || !reflect.DeepEqual(records, g.records) {
			t.Errorf("read as %+v, %+v, %d, %v", f, records, need, err)
		}
		if err := CheckTail(g.records, g.footer, g.data); err != nil {
			t.Error(err)
		}
	}
}

func TestTailBits(t *testing.T) {
	for _, g := range golden {
		b := unhex(t, g.text)
		for bit := range 8 * len(b) {
			bad := bytes.Clone(b)
			bad[bit/8] ^= 1 << (bit % 8)
			f, records, need, err := ParseTail(bad, g.data+int64(len(b)))
			wantDamaged(t, err, "data object")
			if f != (Footer{}) || records != nil || need != 0 {
				t.Errorf("bit %d changed: %+v, %+v, %d, beside an error", bit, f, records, need)
			}
		}
	}
}

func TestTailCut(t *testing.T) {
	for _, g := range golden {
		b := unhex(t, g.text)
		size := g.data + int64(len(b))
		for n := range len(b) {
			// The end is there, but less of it than is needed.
			want := int64(len(b))
			if n < FooterSize {
				want = size
			}
			if f, records, need, err := ParseTail(b[len(b)-n:], size); err != nil || need != want || records != nil || f != (Footer{}) {
				t.Errorf("the last %d bytes: %+v, %+v, need %d, expected %d, %v", n, f, records, need, want, err)
			}
			// The object itself is cut.
			_, _, need, err := ParseTail(b[:n], g.data+int64(n))
			if err == nil && (need == 0 || n >= FooterSize) {
				t.Errorf("cut after %d bytes of the tail: need %d, no error", n, need)
			}
			_, _, _, err = ParseTail(b[:n], int64(n))
			wantDamaged(t, err, "data object")
		}
		// More of the object than is needed.
		long := append(make([]byte, g.data), b...)
		if _, records, need, err := ParseTail(long, size); err != nil || need != 0 || !reflect.DeepEqual(records, g.records) {
			t.Errorf("the whole object: %+v, %d, %v", records, need, err)
		}
		_, _, _, err := ParseTail(b, int64(len(b))-1)
		wantDamaged(t, err, "bytes of an object of")
	}
	if _, _, need, err := ParseTail(nil, 1<<20); need != TailSize || err != nil {
		t.Errorf("nothing yet: need %d, %v", need, err)
	}
	for _, size := range []int64{-1, 0, FooterSize - 1, MaxObjectSize + 1, 1 << 62} {
		_, _, need, err := ParseTail(nil, size)
		if wantDamaged(t, err, "bytes"); need != 0 {
			t.Errorf("size %d: need %d", size, need)
		}
	}
}

// resealTail makes the CRCs of a tail right, where it is long enough for them.
func resealTail(b []byte) []byte {
	if len(b) < FooterSize {
		return b
	}
	b = bytes.Clone(b)
	footer := b[len(b)-FooterSize:]
	size := recordSize
	if footer[10]&flagCollected != 0 {
		size = collectedSize
	}
	if n := int64(le.Uint32(footer[36:])) * int64(size); n <= int64(len(b)-FooterSize) {
		table := b[int64(len(b)-FooterSize)-n : len(b)-FooterSize]
		le.PutUint32(footer[80:], crc32.Checksum(table, castagnoli))
	}
	copy(footer[124:], withCRC(bytes.Clone(footer[:124]))[124:])
	return b
}

// Whatever the CRCs say, these are refused, with the reason.
func TestFooterRefused(t *testing.T) {
	for _, c := range []struct {
		collected bool
		at        int
		bytes     string
		later     bool
		why       string
	}{
		{false, 0, "54", false, `begins with "Twnbdlog"`},
		{false, 8, "02", true, "form 2"},
		{false, 8, "00", true, "form 0"},
		{false, 10, "04", true, "flags 0x4"},
		{false, 11, "80", true, "flags 0x8002"},
		{false, 10, "01", false, "32 bytes of a record, expected 48"},
		{true, 10, "00", false, "48 bytes of a record, expected 32"},
		{false, 12, "30", false, "48 bytes of a record"},
		{false, 12, "00", false, "0 bytes of a record"},
		{false, 16, strings.Repeat("00", 16), false, "no uuid"},
		{false, 36, "05", false, "5 records in an object of"},
		{false, 36, "01000100", false, "65537 records, more than 65536"},
		{false, 36, "ffffffff", false, "4294967295 records, more than 65536"},
		{false, 40, "0000000000000000", false, "position 0000002a-000000000000"},
		{false, 44, "01", false, "position"},
		{false, 48, "00", false, "15 is in the cut that begins at 0"},
		{false, 48, "10", false, "15 is in the cut that begins at 16"},
		{true, 48, "10", false, "in a cut"},
		{true, 10, "03", false, "in a cut"},
		{true, 43, "7f", false, "a client's number, 0000002a-00007f000010"},
		{true, 40, "ffffff7f", false, "a client's number, 0000002a-00007fffffff"},
		{false, 43, "80", false, "a number of the collector's, 0000002a-00008000000f"},
		{false, 56, "0f", false, "15 is durable at 15"},
		{false, 63, "80", false, "is durable at 15"},
		{false, 64, "0000000000000000", false, "a disk of 0 bytes"},
		{false, 71, "80", false, "a disk of -"},
		{false, 84, "01", true, "not zero"},
		{false, 123, "80", true, "not zero"},
	} {
		g := golden[0]
		if c.collected {
			g = golden[1]
		}
		b := unhex(t, g.text)
		copy(b[len(b)-FooterSize+c.at:], unhex(t, c.bytes))
		// A short object, so that no other record is within its data.
		_, _, need, err := ParseTail(resealTail(b), int64(len(b)))
		if need != 0 {
			t.Errorf("%s: need %d", c.why, need)
		}
		if c.later {
			wantUnsupported(t, err, "data object", c.why)
		} else {
			wantDamaged(t, err, "data object", c.why)
		}
	}
}

func TestRecordsRefused(t *testing.T) {
	client := Footer{UUID: testUUID, At: Position{3, 4}, FirstOfCut: 4, Size: 1000 * BlockSize}
	odd := client
	odd.Size = 999*BlockSize + 1
	collected := Footer{Collected: true, UUID: testUUID, At: Position{3, FirstCollected + 4}, Size: BlockSize}
	from := Position{3, 3}
	for _, c := range []struct {
		f       Footer
		data    int64
		records []Record
		why     string // "": taken
	}{
		{client, 0, nil, ""},
		{client, 0, []Record{{First: 0, Count: 1000, Kind: Zeroes}}, ""},
		{odd, 0, []Record{{First: 0, Count: 1000, Kind: Zeroes}}, ""},
		{client, 0, []Record{{First: 1, Count: 1000, Kind: Zeroes}}, "record 0: 1000 blocks from 1 on"},
		{odd, 0, []Record{{First: 999, Count: 2, Kind: Zeroes}}, "record 0: 2 blocks from 999 on, and there can be 1000"},
		{client, 0, []Record{{First: 1<<64 - 1, Count: 2, Kind: Zeroes}}, "record 0: 2 blocks from 18446744073709551615"},
		{client, 0, []Record{{First: 5, Count: 1, Kind: Trimmed}, {First: 7, Count: 0, Kind: Zeroes}}, "record 1: no blocks"},
		{client, 4100, []Record{{Count: 1, Bytes: 4100}}, ""},
		{client, 4099, []Record{{Count: 1, Bytes: 4100}}, "record 0: 4100 bytes at 0, of 4099"},
		{client, 4100, []Record{{Count: 1, Place: 1, Bytes: 4100}}, "record 0: 4100 bytes at 1"},
		{client, 8200, []Record{{Count: 1, Place: 1<<32 - 4100, Bytes: 4100}}, "record 0: 4100 bytes at 4294963196"},
		{client, 8200, []Record{{Count: 2, Bytes: 4100}}, "record 0: 2 blocks in 4100 bytes, expected 8200"},
		{client, 8200, []Record{{Count: 1, Bytes: 4096}}, "record 0: 1 blocks in 4096 bytes"},
		{client, 8200, []Record{{Count: 1, Bytes: 0}}, "record 0: 1 blocks in 0 bytes"},
		{client, 8200, []Record{{Count: 1, Kind: Zeroes, Bytes: 1}}, "record 0: 1 bytes at 0"},
		{client, 8200, []Record{{Count: 1, Kind: Trimmed, Place: 1}}, "record 0: 0 bytes at 1"},
		{client, 8200, []Record{{Count: 1, Kind: Zstd, Bytes: 5}}, ""},
		{client, 8200, []Record{{Count: 1, Kind: Zstd, Bytes: 4}}, "record 0: 1 blocks compressed to 4 bytes"},
		{client, 8200, []Record{{Count: 1, Kind: Zstd, Bytes: 4099}}, ""},
		{client, 8200, []Record{{Count: 1, Kind: Zstd, Bytes: 4100}}, "record 0: 1 blocks compressed to 4100 bytes"},
		{client, 8200, []Record{{Count: 16, Kind: Zstd, Bytes: 4100}}, ""},
		{client, 8200, []Record{{Count: 17, Kind: Zstd, Bytes: 4100}}, "record 0: 17 blocks compressed"},
		{client, 8200, []Record{{Count: 1, Kind: Encrypted, Bytes: 4100}}, "later program: record 0: encrypted"},
		{client, 8200, []Record{{Count: 1, Kind: 255}}, "later program: record 0: kind 255"},
		// Overlaps.
		{client, 8200, []Record{{First: 1, Count: 1, Bytes: 4100}, {First: 0, Count: 1, Place: 4100, Bytes: 4100}}, ""},
		{client, 0, []Record{{First: 5, Count: 5, Kind: Zeroes}, {First: 0, Count: 5, Kind: Zeroes}, {First: 10, Count: 5, Kind: Trimmed}}, ""},
		{client, 0, []Record{{First: 5, Count: 5, Kind: Zeroes}, {First: 0, Count: 6, Kind: Trimmed}}, "records 0 and 1 both have block 5"},
		{client, 0, []Record{{First: 5, Count: 5, Kind: Zeroes}, {First: 0, Count: 1, Kind: Zeroes}, {First: 9, Count: 6, Kind: Trimmed}}, "records 0 and 2 both have block 9"},
		{client, 0, []Record{{First: 0, Count: 100, Kind: Zeroes}, {First: 5, Count: 1, Kind: Zeroes}}, "records 0 and 1 both have block 5"},
		{client, 0, []Record{{First: 5, Count: 1, Kind: Zeroes}, {First: 5, Count: 1, Kind: Zeroes}}, "records 0 and 1 both have block 5"},
		{client, 8200, []Record{{First: 0, Count: 1, Bytes: 4100}, {First: 1, Count: 1, Bytes: 4100}}, "records 0 and 1 both have byte 0"},
		{client, 8200, []Record{{First: 0, Count: 1, Place: 4100, Bytes: 4100}, {First: 1, Count: 1, Kind: Zstd, Place: 5, Bytes: 4096}}, "records 0 and 1 both have byte 4100"},
		{client, 8200, []Record{{First: 0, Count: 2, Bytes: 8200}, {First: 4, Count: 1, Kind: Zeroes}, {First: 2, Count: 1, Kind: Zstd, Place: 8195, Bytes: 5}}, "records 0 and 2 both have byte 8195"},
		// The collector's.
		{collected, 4100, []Record{{First: 0, Count: 1, Bytes: 4100, Source: from}}, ""},
		{collected, 4100, []Record{{First: 0, Count: 1, Bytes: 4100}}, ""},
		{collected, 4100, []Record{{First: MaxBlocks - 1, Count: 1, Bytes: 4100, Source: from}}, ""},
		{collected, 8200, []Record{{First: 9, Count: 1, Bytes: 4100, Source: from}, {First: 9, Count: 1, Place: 4100, Bytes: 4100, Source: Position{1, 1}}}, ""},
		{collected, 8200, []Record{{First: MaxBlocks - 1, Count: 2, Bytes: 8200, Source: from}}, "record 0: 2 blocks from 2251799813685247"},
		{collected, 8200, []Record{{First: 9, Count: 1, Bytes: 4100, Source: from}, {First: 8, Count: 1, Place: 4099, Bytes: 4100, Source: from}}, "both have byte 4099"},
		{collected, 4100, []Record{{First: 0, Count: 1, Bytes: 4100, Source: Position{3, FirstCollected + 4}}}, "record 0: copied from 00000003-000080000004 to 00000003-000080000004"},
		{collected, 4100, []Record{{First: 0, Count: 1, Bytes: 4100, Source: Position{2, 0}}}, "record 0: copied from"},
		{collected, 4100, []Record{{First: 0, Count: 1, Bytes: 4100, Source: Position{2, MaxN + 1}}}, "record 0: copied from"},
		{collected, 4100, []Record{{First: 0, Count: 1, Bytes: 4100, SourcePlace: 1}}, "record 0: copied from"},
		{collected, 4100, []Record{{First: 0, Count: 1, Bytes: 4100, Source: from, SourcePlace: MaxObjectSize - 4100}}, "record 0: copied from 4100 bytes at"},
		{collected, 0, []Record{{First: 0, Count: 1, Kind: Zeroes, Source: from}}, "record 0: the collector has copied zeroes"},
	} {
		b := AppendTail(nil, c.records, c.f)
		_, records, _, err := ParseTail(b, c.data+int64(len(b)))
		check := CheckTail(c.records, c.f, c.data)
		if c.why == "" {
			if err != nil || check != nil || len(records) != len(c.records) {
				t.Errorf("%+v: %v, %v", c.records, err, check)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.why) || check == nil || check.Error() != err.Error() {
			t.Errorf("%+v: %v and %v, expected %q", c.records, err, check, c.why)
		}
		if strings.Contains(c.why, "later") {
			wantUnsupported(t, err)
		} else {
			wantDamaged(t, err)
		}
	}
	// Bytes of a record that are zero.
	for _, at := range []int{13, 14, 15, 24, 31} {
		b := AppendTail(nil, []Record{{Count: 1, Kind: Zeroes}}, client)
		b[at] = 1
		_, _, _, err := ParseTail(resealTail(b), int64(len(b)))
		wantUnsupported(t, err, "record 0", "not zero")
	}
	// Too many, before anything is allocated for them.
	wantDamaged(t, CheckTail(make([]Record, MaxRecords+1), client, 0), "65537 records")
	wantDamaged(t, CheckTail(nil, client, MaxObjectSize), "bytes, and can have")
	wantDamaged(t, CheckTail(nil, client, -1), "bytes, and can have")
	wantDamaged(t, CheckTail(nil, Footer{}, 0), "no uuid")
}

func TestSealed(t *testing.T) {
	for _, c := range []struct{ in, want time.Time }{
		{time.Time{}, time.Time{}},
		{time.UnixMilli(-5), time.Time{}},
		{time.UnixMilli(1700000000123).Add(999 * time.Microsecond), time.UnixMilli(1700000000123).UTC()},
		{time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
		{time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Time{}},
	} {
		f := golden[0].footer
		f.Sealed = c.in
		b := AppendTail(nil, nil, f)
		if g, _, _, err := ParseTail(b, int64(len(b))); err != nil || g.Sealed != c.want {
			t.Errorf("%v: %v, %v", c.in, g.Sealed, err)
		}
	}
	b := AppendTail(nil, nil, golden[0].footer)
	copy(b[72:], "\xff\xff\xff\xff\xff\xff\xff\xff")
	if g, _, _, err := ParseTail(resealTail(b), int64(len(b))); err != nil || !g.Sealed.IsZero() {
		t.Errorf("a time beyond all times: %v, %v", g.Sealed, err)
	}
}

func TestFooterCheck(t *testing.T) {
	f := golden[0].footer
	if err := f.Check(testUUID, f.At); err != nil {
		t.Error(err)
	}
	other := testUUID
	other[15]++
	wantDamaged(t, f.Check(other, f.At), "0000002a-00000000000f", testUUID.String(), other.String())
	wantDamaged(t, f.Check(testUUID, Position{0x2a, 16}), "0000002a-000000000010", "it is object 0000002a-00000000000f")
	wantDamaged(t, f.Check(testUUID, Position{0x2b, 15}), "it is object")
}

// FuzzParseTail gives the parser tails as they are, and with the right CRCs, so
// that it is the parser which has to cope.
func FuzzParseTail(f *testing.F) {
	for _, g := range golden {
		b := unhex(f, g.text)
		f.Add(b, g.data)
		f.Add(b, int64(0))
		f.Add(b[1:], g.data)
		f.Add(b[len(b)-FooterSize:], g.data+100)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	records, footer, data := randomObject(rng, 30, false)
	f.Add(AppendTail(nil, records, footer), data)
	f.Fuzz(func(t *testing.T, b []byte, more int64) {
		if more > 1<<62 {
			return
		}
		size := int64(len(b)) + more
		for _, b := range [][]byte{b, resealTail(b)} {
			f, records, need, err := ParseTail(b, size)
			switch {
			case err != nil || need != 0:
				if records != nil || f != (Footer{}) || need != 0 && (err != nil || need <= int64(len(b)) || need > size) {
					t.Fatalf("%+v, %+v, need %d, %v", f, records, need, err)
				}
				continue
			case int(f.Records) != len(records) || len(records)*recordSize > len(b):
				t.Fatalf("%d records in %d bytes", len(records), len(b))
			}
			for _, r := range records {
				if r.Count == 0 || r.End() > MaxBlocks || int64(r.Place)+int64(r.Bytes) > size || r.Kind > Zstd {
					t.Fatalf("%+v is taken", r)
				}
			}
			again := AppendTail(nil, records, f)
			g, same, _, err := ParseTail(again, size)
			if err != nil || g != f || !reflect.DeepEqual(records, same) {
				t.Fatalf("taken, and not the same when written again: %v", err)
			}
		}
	})
}

// An object of 4 MiB from random writes has 1,000 records of one block.
func benchmarkObject() ([]Record, Footer, int64) {
	rng := rand.New(rand.NewPCG(5, 6))
	order := rng.Perm(1 << 20)
	records := make([]Record, 1000)
	for i := range records {
		records[i] = Record{First: uint64(order[i]), Count: 1, Place: uint32(i) * FrameSize, Bytes: FrameSize}
	}
	return records, Footer{UUID: testUUID, At: Position{1, 1}, FirstOfCut: 1, Size: 4 << 30}, 1000 * FrameSize
}

func BenchmarkAppendTail(b *testing.B) {
	records, f, _ := benchmarkObject()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendTail(buf[:0], records, f)
	}
}

func BenchmarkParseTail(b *testing.B) {
	records, f, data := benchmarkObject()
	tail := AppendTail(nil, records, f)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, _, err := ParseTail(tail, data+int64(len(tail))); err != nil {
			b.Fatal(err)
		}
	}
}
