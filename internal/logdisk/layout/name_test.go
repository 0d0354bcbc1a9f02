// SPDX-License-Identifier: MIT

package layout

import (
	"cmp"
	"math/rand/v2"
	"strings"
	"testing"
)

// kinds of names, with the functions that make and read them.
var kindsOfNames = []struct {
	name  func(Position) string
	parse func(string) (Position, bool)
	want  string // the name of (0x2a, 0xf)
}{
	{LogName, ParseLogName, "swiftnbd/log/0000002a-00000000000f"},
	{RunName, ParseRunName, "swiftnbd/run/0000002a-0000000f"},
	{RootName, ParseRootName, "swiftnbd/root/0000002a-0000000f"},
}

func TestNames(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i, k := range kindsOfNames {
		if got := k.name(Position{0x2a, 0xf}); got != k.want {
			t.Errorf("%q, expected %q", got, k.want)
		}
		last := Position{}
		for range 1000 {
			p := Position{Epoch: rng.Uint32() >> rng.UintN(32), N: 1 + rng.Uint64N(MaxN)>>rng.UintN(32)}
			if got, ok := k.parse(k.name(p)); !ok || got != p {
				t.Errorf("%v: %q is %v, %v", p, k.name(p), got, ok)
			}
			if !last.IsZero() && strings.Compare(k.name(last), k.name(p)) != last.Compare(p) {
				t.Errorf("the names of %v and %v are in another order than they are", last, p)
			}
			last = p
		}
		for _, p := range []Position{{0, 1}, {1<<32 - 1, MaxN}} {
			if got, ok := k.parse(k.name(p)); !ok || got != p {
				t.Errorf("%v: %q is %v, %v", p, k.name(p), got, ok)
			}
		}
		for _, bad := range []string{"", k.want[strings.LastIndex(k.want, "/")+1:], k.want[:len(k.want)-1], k.want + "0", k.want + "/", " " + k.want, "/" + k.want, strings.ToUpper(k.want),
			strings.Replace(k.want, "2a", "2A", 1), strings.Replace(k.want, "-", "_", 1), strings.Replace(k.want, "f/", "g/", 1),
			strings.Replace(k.want, "2a-", "+a-", 1), strings.Replace(k.want, "0000002a", "000002a", 1), k.want[:len(k.want)-1] + "é",
			k.name(Position{1, 0}), k.name(Position{1, MaxN + 1}), k.name(Position{1, 1 << 48}), k.name(Position{1, 1<<64 - 1}),
			kindsOfNames[(i+1)%3].want} {
			if p, ok := k.parse(bad); ok && bad != k.want {
				t.Errorf("%q is taken as %v", bad, p)
			}
		}
	}
}

func TestPosition(t *testing.T) {
	ps := []Position{{}, {0, 1}, {0, MaxN}, {1, 0}, {1, 1}, {1, 2}, {2, 0}, {1<<32 - 1, 1}}
	for i, p := range ps {
		for j, q := range ps {
			if p.Compare(q) != cmp.Compare(i, j) || p.Less(q) != (i < j) {
				t.Errorf("%v and %v: %d, %v", p, q, p.Compare(q), p.Less(q))
			}
		}
		if p.IsZero() != (i == 0) {
			t.Errorf("%v: zero is %v", p, p.IsZero())
		}
		b, err := p.MarshalText()
		var q Position
		if err != nil || string(b) != p.String() || q.UnmarshalText(b) != nil || q != p {
			t.Errorf("%v: %q is %v, %v", p, b, q, err)
		}
	}
	if s := (Position{0x2a, 0xf}).String(); s != "0000002a-00000000000f" {
		t.Errorf("%q", s)
	}
	var q Position
	if q.UnmarshalText([]byte("0000002a-0000000f")) == nil {
		t.Error("a name of a run is taken as a position")
	}
}

func TestUUID(t *testing.T) {
	const text = "000102030405060708090a0b0c0d0e0f"
	if s := testUUID.String(); s != text {
		t.Errorf("%q", s)
	}
	if u, err := ParseUUID(text); err != nil || u != testUUID {
		t.Errorf("%v, %v", u, err)
	}
	for _, bad := range []string{"", text[1:], text + "0", strings.ToUpper(text), strings.Replace(text, "0f", "0g", 1), strings.Replace(text, "0f", " f", 1), text[:31] + "é"} {
		if u, err := ParseUUID(bad); err == nil || !u.IsZero() {
			t.Errorf("%q is taken as %v", bad, u)
		}
	}
	if a, b := NewUUID(), NewUUID(); a == b || a.IsZero() {
		t.Errorf("%v and %v are new", a, b)
	}
}

func FuzzParseName(f *testing.F) {
	for _, k := range kindsOfNames {
		f.Add(k.want)
		f.Add(k.name(Position{1, 0}))
		f.Add(k.name(Position{1, 1 << 33}))
	}
	f.Fuzz(func(t *testing.T, s string) {
		taken := 0
		for _, k := range kindsOfNames {
			p, ok := k.parse(s)
			if !ok {
				continue
			}
			taken++
			if k.name(p) != s || p.N == 0 {
				t.Errorf("%q is taken as %v", s, p)
			}
		}
		if taken > 1 {
			t.Errorf("%q is a name of %d kinds", s, taken)
		}
		if u, err := ParseUUID(s); err == nil && u.String() != s {
			t.Errorf("%q is taken as uuid %v", s, u)
		}
	})
}
