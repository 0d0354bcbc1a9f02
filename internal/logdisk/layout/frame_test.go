// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// countingBlock has the bytes 0 to 250 again and again.
func countingBlock() []byte {
	b := make([]byte, BlockSize)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

// The CRCs were computed by another program, bit by bit.
func TestFrameGolden(t *testing.T) {
	for _, c := range []struct {
		block  []byte
		number uint64
		crc    string
	}{
		{countingBlock(), 0x0102030405, "2921a126"},
		{make([]byte, BlockSize), 0, "62ca731d"},
	} {
		frame := bytes.Repeat([]byte{0xee}, FrameSize)
		PutFrame(frame, c.block, c.number, &testUUID)
		if want := append(bytes.Clone(c.block), unhex(t, c.crc)...); !bytes.Equal(frame, want) {
			t.Errorf("block %d: ends with %x, expected %s", c.number, frame[BlockSize:], c.crc)
		}
		inPlace := append(bytes.Clone(c.block), 1, 2, 3, 4)
		PutFrame(inPlace, inPlace[:BlockSize], c.number, &testUUID)
		if !bytes.Equal(inPlace, frame) {
			t.Errorf("block %d: not the same in place", c.number)
		}
		if err := CheckFrame(frame, c.number, &testUUID); err != nil {
			t.Error(err)
		}
	}
	if got, want := AppendCompressed([]byte("x"), []byte("abc"), 9, &testUUID), unhex(t, "78 616263 3818f6cb"); !bytes.Equal(got, want) {
		t.Errorf("compressed: %x, expected %x", got, want)
	}
}

func TestDataCRC(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		u, number, b := UUID{}, rng.Uint64(), make([]byte, rng.IntN(100))
		for _, p := range [][]byte{u[:], b} {
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
		}
		all := append(le.AppendUint64(bytes.Clone(b), number), u[:]...)
		if got, want := dataCRC(b, number, &u), crc32.Checksum(all, crc32.MakeTable(crc32.Castagnoli)); got != want {
			t.Fatalf("CRC of %x: %08x, expected %08x", all, got, want)
		}
	}
}

func TestFrameRefused(t *testing.T) {
	frame := make([]byte, FrameSize)
	PutFrame(frame, countingBlock(), 7, &testUUID)
	for bit := range 8 * FrameSize {
		frame[bit/8] ^= 1 << (bit % 8)
		if CheckFrame(frame, 7, &testUUID) == nil {
			t.Errorf("bit %d changed is not noticed", bit)
		}
		frame[bit/8] ^= 1 << (bit % 8)
	}
	for bit := range 64 {
		wantDamaged(t, CheckFrame(frame, 7^1<<bit, &testUUID), "frame", "block", "checksum")
	}
	for bit := range 8 * len(testUUID) {
		u := testUUID
		u[bit/8] ^= 1 << (bit % 8)
		wantDamaged(t, CheckFrame(frame, 7, &u), "block 7")
	}
	for _, n := range []int{0, 1, BlockSize, FrameSize - 1} {
		wantDamaged(t, CheckFrame(frame[:n], 7, &testUUID), "block 7", "expected 4100")
	}
	wantDamaged(t, CheckFrame(append(frame, 0), 7, &testUUID), "4101 bytes")
}

func TestCompressed(t *testing.T) {
	b := AppendCompressed(nil, []byte("compressed"), 7, &testUUID)
	if got, err := CheckCompressed(b, 7, &testUUID); err != nil || string(got) != "compressed" {
		t.Errorf("%q, %v", got, err)
	}
	for n := range len(b) {
		_, err := CheckCompressed(b[:n], 7, &testUUID)
		wantDamaged(t, err, "block 7")
	}
	for bit := range 8 * len(b) {
		bad := bytes.Clone(b)
		bad[bit/8] ^= 1 << (bit % 8)
		_, err := CheckCompressed(bad, 7, &testUUID)
		wantDamaged(t, err, "block 7")
	}
	_, err := CheckCompressed(b, 8, &testUUID)
	wantDamaged(t, err, "block 8")
	_, err = CheckCompressed(b, 7, &UUID{})
	wantDamaged(t, err, "block 7")

	for _, c := range []struct {
		n     int
		count uint32
		want  bool
	}{{0, 1, false}, {1, 0, false}, {1, 1, true}, {BlockSize - 1, 1, true}, {BlockSize, 1, false}, {BlockSize, 2, true},
		{16*FrameSize - 5, 16, true}, {16*FrameSize - 4, 16, false}, {1, 17, false}} {
		if got := WorthCompressed(c.n, c.count); got != c.want {
			t.Errorf("%d bytes for %d blocks: %v", c.n, c.count, got)
		}
	}
}

func TestFrameAllocatesNothing(t *testing.T) {
	frame, u := make([]byte, FrameSize), testUUID
	n := testing.AllocsPerRun(100, func() {
		PutFrame(frame, frame[:BlockSize], 7, &u)
		if err := CheckFrame(frame, 7, &u); err != nil {
			t.Error(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPutFrame(b *testing.B) {
	frame, block := make([]byte, FrameSize), countingBlock()
	b.SetBytes(BlockSize)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		PutFrame(frame, block, uint64(i), &testUUID)
	}
}

func BenchmarkCheckFrame(b *testing.B) {
	frame := make([]byte, FrameSize)
	PutFrame(frame, countingBlock(), 7, &testUUID)
	b.SetBytes(BlockSize)
	b.ReportAllocs()
	for b.Loop() {
		if err := CheckFrame(frame, 7, &testUUID); err != nil {
			b.Fatal(err)
		}
	}
}
