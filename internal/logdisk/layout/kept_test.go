// SPDX-License-Identifier: MIT

package layout

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
)

func someKept(rng *rand.Rand) (k Kept) {
	for _, list := range []*[]KeptObject{&k.Objects, &k.Runs} {
		key := ObjectKey(Position{Epoch: rng.Uint32N(3), N: 1})
		for range rng.IntN(20) {
			at := keyPosition(key)
			if at.N == 0 {
				at.N++
			}
			*list = append(*list, KeptObject{At: at, Size: rng.Int64N(MaxObjectSize), Last: Position{Epoch: rng.Uint32(), N: 1 + rng.Uint64N(MaxN)}})
			key = ObjectKey(at) + 1 + rng.Uint64N(1<<40)
		}
	}
	return k
}

// TestKept writes and reads lists, and has every changed byte refused.
func TestKept(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	name := Position{7, 3}
	for range 200 {
		k := someKept(rng)
		b, err := k.Marshal(testUUID, name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseKept(b, testUUID, name); err != nil || !reflect.DeepEqual(got, k) {
			t.Fatalf("%+v, %v, want %+v", got, err, k)
		}
		for _, bad := range [][]byte{b[:len(b)-1], append(b[:len(b):len(b)], 0), b[:rng.IntN(len(b))]} {
			if _, err := ParseKept(bad, testUUID, name); !errors.As(err, new(*DamagedError)) {
				t.Fatalf("%d bytes of %d: %v", len(bad), len(b), err)
			}
		}
		b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
		if _, err := ParseKept(b, testUUID, name); !errors.As(err, new(*DamagedError)) {
			t.Fatalf("a changed byte: %v", err)
		}
	}
	b, _ := Kept{}.Marshal(testUUID, name)
	if _, err := ParseKept(b, UUID{9}, name); !errors.As(err, new(*DamagedError)) {
		t.Errorf("another volume's: %v", err)
	}
	if _, err := ParseKept(b, testUUID, Position{7, 4}); !errors.As(err, new(*DamagedError)) {
		t.Errorf("under another name: %v", err)
	}
	two := []KeptObject{{At: Position{1, 2}, Last: Position{1, 1}}, {At: Position{1, 2}, Last: Position{1, 1}}}
	for _, k := range []Kept{{Objects: two}, {Runs: two}, {Objects: []KeptObject{{At: Position{1, 0}, Last: Position{1, 1}}}},
		{Objects: []KeptObject{{At: Position{1, 1}}}}, {Objects: []KeptObject{{At: Position{1, 1}, Last: Position{1, 1}, Size: -1}}}} {
		if _, err := k.Marshal(testUUID, name); err == nil {
			t.Errorf("%+v is taken", k)
		}
	}
}

// FuzzKept feeds the parser anything: it does not panic, and what it takes is what
// Marshal makes.
func FuzzKept(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 3))
	name := Position{7, 3}
	for range 8 {
		b, err := someKept(rng).Marshal(testUUID, name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseKept(b, testUUID, name)
		if err != nil {
			return
		}
		if again, err := k.Marshal(testUUID, name); err != nil || string(again) != string(b) {
			t.Errorf("%v: %x is taken, and written as %x", err, b, again)
		}
	})
}
