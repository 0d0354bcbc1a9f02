// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"encoding/base64"
	"hash/crc32"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// someTable returns the bytes of a run of n objects, and what it has.
func someTable(t testing.TB, rng *rand.Rand, u UUID, name Position, n int) (b []byte, entries []ObjectEntry) {
	t.Helper()
	w := NewRunWriter(u, RunObjects, name)
	at := Position{Epoch: 1}
	for range n {
		at.N += 1 + rng.Uint64N(300)
		e := ObjectEntry{At: at, Live: FrameSize * (1 + rng.Int64N(1000))}
		e.Size = e.Live + 200 + rng.Int64N(1<<20)
		switch rng.IntN(3) {
		case 0:
			e = ObjectEntry{At: at, Remove: true}
		case 1:
			e.Density = 1 + uint8(rng.IntN(MaxDensity))
		}
		if err := w.AddObject(e); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	return w.Bytes(), entries
}

// inlineRoot is goldenRoot with a table and the end of a list in itself.
func inlineRoot(t testing.TB, rng *rand.Rand) (r Root, table []ObjectEntry, kept Kept) {
	t.Helper()
	r = goldenRoot()
	r.Requires = []string{FeatureInline}
	r.Table, table = someTable(t, rng, r.UUID, r.Name, 40)
	kept = someKept(rng)
	var err error
	if r.KeptMore, err = kept.Marshal(r.UUID, r.Name); err != nil {
		t.Fatal(err)
	}
	return r, table, kept
}

func tableOf(t *testing.T, r Root) (entries []ObjectEntry) {
	t.Helper()
	for e, err := range r.TableEntries() {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	return entries
}

// TestRootInline writes and reads roots that have a table, the end of a list, both
// or neither.
func TestRootInline(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 100 {
		r, table, kept := inlineRoot(t, rng)
		if rng.IntN(3) == 0 {
			r.Table, table = nil, nil
		}
		if rng.IntN(3) == 0 {
			r.KeptMore, kept = nil, Kept{}
		}
		b, err := r.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Count(b, []byte(`"Table":`)); (got == 1) != (r.Table != nil) {
			t.Errorf("Table is there %d times", got)
		}
		if got := bytes.Count(b, []byte(`"KeptMore":`)); (got == 1) != (r.KeptMore != nil) {
			t.Errorf("KeptMore is there %d times", got)
		}
		got, err := ParseRoot(b)
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("%+v is read as %+v, %v", r, got, err)
		}
		if entries := tableOf(t, got); !slices.Equal(entries, table) {
			t.Fatalf("its table is %v, want %v", entries, table)
		}
		if more, err := got.MoreKept(); err != nil || !reflect.DeepEqual(more, kept) {
			t.Fatalf("its list is %v, want %v, %v", more, kept, err)
		}
	}
	r, _, _ := inlineRoot(t, rng)
	r.Table, _ = someTable(t, rng, r.UUID, r.Name, 0)
	b, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseRoot(b); err != nil || !bytes.Equal(got.Table, r.Table) {
		t.Errorf("a table without entries: %v", err)
	}
}

// TestRootInlineBits changes each bit of either part, and the SHA-256 with it.
func TestRootInlineBits(t *testing.T) {
	r, _, _ := inlineRoot(t, rand.New(rand.NewPCG(5, 6)))
	b, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	for _, part := range [][]byte{r.Table, r.KeptMore} {
		text := []byte(base64.StdEncoding.EncodeToString(part))
		if bytes.Count(line, text) != 1 {
			t.Fatal("it is not in the root")
		}
		refused := 0
		for bit := range 8 * len(part) {
			bad := bytes.Clone(part)
			bad[bit/8] ^= 1 << (bit % 8)
			_, err := ParseRoot(seal(bytes.Replace(line, text, []byte(base64.StdEncoding.EncodeToString(bad)), 1)))
			wantDamaged(t, err, "root")
			refused++
		}
		for n := range len(part) {
			_, err := ParseRoot(seal(bytes.Replace(line, text, []byte(base64.StdEncoding.EncodeToString(part[:n])), 1)))
			wantDamaged(t, err, "root")
		}
		if refused < 1000 {
			t.Errorf("%d changes only", refused)
		}
	}
}

// TestRootInlineRefused: what a root has in itself is of that root, is within its
// limits, and is required.
func TestRootInlineRefused(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	kept := func(u UUID, name Position, n int) []byte {
		var k Kept
		for i := range n {
			k.Objects = append(k.Objects, KeptObject{At: Position{1, uint64(i) + 1}, Size: 5 << 20, Last: Position{1, 1}})
		}
		b, err := k.Marshal(u, name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	later := func(b []byte) []byte { // the form of a run that no program has written yet
		b = bytes.Clone(b)
		f := b[len(b)-runFooterSize:]
		f[8] = 9
		le.PutUint32(f[60:], crc32.Checksum(f[:60], castagnoli))
		return b
	}
	laterKept := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[8] = 9
		le.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], castagnoli))
		return b
	}
	blocks := NewRunWriter(testUUID, RunBlocks, goldenRoot().Name)
	if err := blocks.Add(Entry{First: 1, Count: 1, Kind: Trimmed}); err != nil {
		t.Fatal(err)
	}
	run := blocks.Bytes()
	for _, c := range []struct {
		change func(*Root)
		why    string
	}{
		{func(r *Root) { r.Requires = []string{} }, `does not require "inline"`},
		{func(r *Root) { r.Requires, r.Table = []string{}, nil }, `does not require "inline"`},
		{func(r *Root) { r.Requires, r.KeptMore = []string{}, nil }, `does not require "inline"`},
		{func(r *Root) { r.Table = []byte{} }, "it has 0 bytes"},
		{func(r *Root) { r.KeptMore = []byte{} }, "0 bytes"},
		{func(r *Root) { r.Table, _ = someTable(t, rng, r.UUID, Position{0x2c, 6}, 5) }, "it is of root 0000002c-00000006, and lies in another"},
		{func(r *Root) { r.Table, _ = someTable(t, rng, NewUUID(), r.Name, 5) }, "it belongs to volume"},
		{func(r *Root) { r.Table, _ = someTable(t, rng, r.UUID, r.Name, 12_000) }, "bytes, and may have 65536"},
		{func(r *Root) { r.Table = run }, "expected a run of objects"},
		{func(r *Root) { r.KeptMore = kept(r.UUID, Position{0x2d, 5}, 3) }, "not the one with this name"},
		{func(r *Root) { r.KeptMore = kept(NewUUID(), r.Name, 3) }, "it belongs to volume"},
		{func(r *Root) { r.KeptMore = kept(r.UUID, r.Name, 5000) }, "bytes, and may have 32768"},
		{func(r *Root) { r.Table = later(r.Table) }, "later program: run: form 9"},
		{func(r *Root) { r.KeptMore = laterKept(r.KeptMore) }, "later program: list of what snapshots need: form 9"},
	} {
		r, _, _ := inlineRoot(t, rng)
		good, err := r.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		table, list := text(r.Table), text(r.KeptMore)
		c.change(&r)
		if b, err := r.Marshal(); err == nil || !strings.Contains(err.Error(), c.why[strings.LastIndex(c.why, ": ")+1:]) {
			t.Errorf("written as %s, %v, expected %q", b, err, c.why)
		}
		line, _, _ := strings.Cut(string(good), "\n")
		swap := func(name, old string, b []byte) {
			if b == nil {
				line = strings.Replace(line, `"`+name+`":"`+old+`",`, "", 1)
			} else {
				line = strings.Replace(line, old, text(b), 1)
			}
		}
		swap("Table", table, r.Table)
		swap("KeptMore", list, r.KeptMore)
		if len(r.Requires) == 0 {
			line = strings.Replace(line, `["inline"]`, `[]`, 1)
		}
		got, err := ParseRoot(seal([]byte(line)))
		if !reflect.DeepEqual(got, Root{}) {
			t.Errorf("%s: %+v beside an error", c.why, got)
		}
		if strings.HasPrefix(c.why, "later") {
			wantUnsupported(t, err, "root", c.why)
		} else {
			wantDamaged(t, err, "root", c.why)
		}
	}
	// Base64 has one form.
	r, _, _ := inlineRoot(t, rng)
	r.Table, _ = someTable(t, rng, r.UUID, r.Name, 0) // 64 bytes: two = at the end
	good, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(good), "\n")
	table := text(r.Table)
	if !strings.HasSuffix(table, "==") {
		t.Fatalf("%s", table)
	}
	last := table[len(table)-3]
	for _, bad := range []string{table[:len(table)-1], table[:len(table)-2], table[:8] + `\n` + table[8:], table + "=", "!" + table[1:], table[:len(table)-3] + string(last+1) + "=="} {
		_, err := ParseRoot(seal([]byte(strings.Replace(line, table, bad, 1))))
		wantDamaged(t, err, "root", "base64")
	}
	_, err = ParseRoot(seal([]byte(strings.Replace(line, `"`+table+`"`, "[1,2]", 1))))
	wantDamaged(t, err, "root")
}

func text(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// TestKeptWith: a list and what it lacks are one list in order.
func TestKeptWith(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for range 200 {
		want := someKept(rng)
		var a, b Kept
		for _, o := range want.Objects {
			if rng.IntN(2) == 0 {
				a.Objects = append(a.Objects, o)
			} else {
				b.Objects = append(b.Objects, o)
			}
		}
		for _, o := range want.Runs {
			if rng.IntN(2) == 0 {
				a.Runs = append(a.Runs, o)
			} else {
				b.Runs = append(b.Runs, o)
			}
		}
		got, err := a.With(b)
		if err != nil || !slices.Equal(got.Objects, want.Objects) || !slices.Equal(got.Runs, want.Runs) {
			t.Fatalf("%v and %v are %v, %v", a, b, got, err)
		}
		if len(b.Objects) > 0 {
			_, err := got.With(Kept{Objects: b.Objects[:1]})
			wantDamaged(t, err, "list of what snapshots need", "is there twice")
		}
		if len(b.Runs) > 0 {
			_, err := got.With(Kept{Runs: b.Runs[:1]})
			wantDamaged(t, err, "list of what snapshots need", "is there twice")
		}
	}
}
