// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const goldenLine = `{"Form":1,"Requires":[],"Name":"0000002c-00000005","Uuid":"000102030405060708090a0b0c0d0e0f","Size":1099511627776,"At":"0000002b-000000000010",` +
	`"Ended":["00000029-000000abcdef","0000002a-000000000000"],` +
	`"Runs":{"Blocks":["0000002b-00000003","0000002b-00000001"],"Objects":["0000002b-00000002"]},` +
	`"Pins":[{"Name":"before","Root":"00000029-00000001","At":"00000029-000000000010","Made":"2023-11-14T22:13:20.123Z"}],` +
	`"Bases":[{"Number":7,"Url":"https://swift.example/v1/AUTH_a","Container":"golden","Uuid":"0f0e0d0c0b0a09080706050403020100"}],` +
	`"Below":{"Clone":{"Base":7,"Root":"00000001-0000000f"}},` +
	`"Children":[{"Pin":"before","Url":"https://swift.example/v1/AUTH_a","Container":"clone","Uuid":"0f0e0d0c0b0a09080706050403020100"}]}`

// Another program computed the SHA-256.
const goldenRootText = goldenLine + "\nba3ccdf8ba5434fc78b256b668abed5dbd158d0e73eb1ccedff9d77038660e66\n"

func goldenRoot() Root {
	other := testUUID
	slices.Reverse(other[:])
	return Root{
		Requires: []string{}, Name: Position{0x2c, 5}, UUID: testUUID, Size: 1 << 40, At: Position{0x2b, 16},
		Ended:    []Position{{0x29, 0xabcdef}, {0x2a, 0}},
		Runs:     Runs{Blocks: []Position{{0x2b, 3}, {0x2b, 1}}, Objects: []Position{{0x2b, 2}}},
		Pins:     []Pin{{Name: "before", Root: Position{0x29, 1}, At: Position{0x29, 16}, Made: time.UnixMilli(1700000000123).UTC()}},
		Bases:    []Base{{Number: 7, URL: "https://swift.example/v1/AUTH_a", Container: "golden", UUID: other}},
		Below:    &Below{Clone: &Clone{Base: 7, Root: Position{1, 15}}},
		Children: []Child{{Pin: "before", URL: "https://swift.example/v1/AUTH_a", Container: "clone", UUID: other}},
	}
}

func TestRootGolden(t *testing.T) {
	b, err := goldenRoot().Marshal()
	if err != nil || string(b) != goldenRootText {
		t.Errorf("written as\n%s, expected\n%s, %v", b, goldenRootText, err)
	}
	r, err := ParseRoot([]byte(goldenRootText))
	if err != nil || !reflect.DeepEqual(r, goldenRoot()) {
		t.Errorf("read as %+v, %v", r, err)
	}
	r = goldenRoot()
	r.Below = &Below{Disk: &Disk{Objects: 100, ObjectSize: 1 << 20}}
	b, err = r.Marshal()
	if err != nil || !bytes.Contains(b, []byte(`,"Below":{"Disk":{"Objects":100,"ObjectSize":1048576}},`)) {
		t.Errorf("written as %s, %v", b, err)
	}
	if got, err := ParseRoot(b); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("read as %+v, %v", got, err)
	}
	// All that may be empty.
	b, err = Root{Name: Position{0, 1}, UUID: testUUID, Size: 1}.Marshal()
	const empty = `{"Form":1,"Requires":[],"Name":"00000000-00000001","Uuid":"000102030405060708090a0b0c0d0e0f","Size":1,"At":"00000000-000000000000","Ended":[],` +
		`"Runs":{"Blocks":[],"Objects":[]},"Pins":[],"Bases":[],"Children":[]}`
	if err != nil || string(b) != string(seal([]byte(empty))) {
		t.Errorf("written as %s, %v", b, err)
	}
	if r, err := ParseRoot(b); err != nil || r.Below != nil || len(r.Pins)+len(r.Bases)+len(r.Children)+len(r.Ended) != 0 {
		t.Errorf("read as %+v, %v", r, err)
	}
}

// A root under another name than its own, or in another volume, is not taken for
// what it is not.
func TestRootCheck(t *testing.T) {
	r := goldenRoot()
	if err := r.Check(testUUID, Position{0x2c, 5}); err != nil {
		t.Error(err)
	}
	wantDamaged(t, r.Check(testUUID, Position{0x2c, 6}), "root", "it is swiftnbd/root/0000002c-00000005, and lies under another name")
	wantDamaged(t, r.Check(testUUID, Position{0x2d, 5}), "root", "under another name")
	wantDamaged(t, r.Check(NewUUID(), Position{0x2c, 5}), "root", "belongs to volume")
}

func TestRootBitsAndCuts(t *testing.T) {
	b := []byte(goldenRootText)
	for bit := range 8 * len(b) {
		bad := bytes.Clone(b)
		bad[bit/8] ^= 1 << (bit % 8)
		_, err := ParseRoot(bad)
		wantDamaged(t, err, "root")
	}
	for n := range len(b) {
		_, err := ParseRoot(b[:n])
		wantDamaged(t, err, "root")
	}
	for _, more := range []string{"\n", "x", goldenRootText} {
		_, err := ParseRoot([]byte(goldenRootText + more))
		wantDamaged(t, err, "root", "checksum")
	}
	_, err := ParseRoot(bytes.ToUpper(b))
	wantDamaged(t, err, "root", "checksum")
}

// Whatever the SHA-256 says, these are refused, with the reason.
func TestRootRefused(t *testing.T) {
	for _, c := range []struct{ old, new, why string }{
		{`"Form":1`, `"Form":2`, "later program: form 2"},
		{`"Form":1`, `"Form":0`, "later program: form 0"},
		{`"Form":1,`, ``, "later program: form 0"},
		{`"Form":1`, `"Form":2,"Uuid":3`, "later program: form 2"},
		{`"Requires":[]`, `"Requires":["encryption"]`, `later program: it requires "encryption"`},
		{`"Requires":[]`, `"Requires":["encryption"],"Uuid":3`, `later program: it requires "encryption"`},
		{`"Requires":[],`, ``, "there is no Requires"},
		{`"Requires":[]`, `"Requires":"encryption"`, "cannot unmarshal"},
		{`"Name":"0000002c-00000005",`, ``, "there is no Name"},
		{`"Name":"0000002c-00000005"`, `"Name":"0000002c-00000000"`, "is no name of a run or a root"},
		{`"Name":"0000002c-00000005"`, `"Name":"0000002c-000000000005"`, "is no name of a run or a root"},
		{`"Name":"0000002c-00000005"`, `"Name":null`, "00000000-000000000000 is no name of a root"},
		{`"Uuid":"00`, `"Uuid":"`, "is no uuid"},
		{`"Uuid":"000102030405060708090a0b0c0d0e0f",`, ``, "there is no Uuid"},
		{`"Uuid":"000102030405060708090a0b0c0d0e0f"`, `"Uuid":"00000000000000000000000000000000"`, "no uuid"},
		{`"Uuid":"000102030405060708090a0b0c0d0e0f"`, `"Uuid":null`, "no uuid"},
		{`"Uuid":"000102`, `"uuid":"000102`, "there is no Uuid"},
		{`1099511627776`, `0`, "a disk of 0 bytes"},
		{`1099511627776`, `-1`, "a disk of -1 bytes"},
		{`1099511627776`, `9223372036854775808`, "cannot unmarshal"},
		{`1099511627776`, `1e3`, "cannot unmarshal"},
		{`"Size":1099511627776,`, ``, "there is no Size"},
		{`"At":"0000002b-000000000010",`, ``, "there is no At"},
		{`"At":"0000002b-000000000010"`, `"At":"0000002b-00000010"`, "is no position"},
		{`"At":"0000002b-000000000010"`, `"At":"0000002b-000100000000"`, "is no position"},
		{`"At":"0000002b-000000000010"`, `"At":"00000028-000000000010"`, `pin "before": position`},
		{`"00000029-000000abcdef",`, `"0000002a-000000abcdef",`, "epoch 42 ended after epoch 42"},
		{`"00000029-000000abcdef",`, `"0000002c-000000abcdef",`, "epoch 42 ended after epoch 44"},
		{`"0000002b-00000003"`, `"0000002b-000000000003"`, "is no name of a run"},
		{`"0000002b-00000003"`, `"0000002b-00000000"`, "is no name of a run"},
		{`"0000002b-00000003"`, `"0000002b-00000001"`, "run 0000002b-000000000001 is there twice"},
		{`"0000002b-00000002"`, `"0000002b-00000001"`, "is there twice"},
		{`"Runs":`, `"Run":`, "there is no Runs"},
		{`"Name":"before"`, `"Name":""`, `pin "": not a name`},
		{`"Name":"before"`, `"Name":"be\nfore"`, `not a name`},
		{`"Name":"before"`, `"Name":"after"`, `there is no pin "before"`},
		{`"Name":"before"`, `"Name":"` + strings.Repeat("x", 256) + `"`, `not a name`},
		{`"Pins":[`, `"Pins":[{"Name":"before","Root":"00000029-00000001","At":"00000029-000000000010","Made":"2023-11-14T22:13:20Z"},`, "is there twice"},
		{`"Pins":[`, `"Pins":[{"Name":"later","Root":"00000029-00000002","At":"00000029-000000000010","Made":"2023-11-14T22:13:20Z"},`, `pin "before": its root 00000029-000000000001 is not after`},
		{`"Pins":[`, `"Pins":[{"Name":"same","Root":"00000029-00000001","At":"00000029-000000000010","Made":"2023-11-14T22:13:20Z"},`, "is not after that of the pin before"},
		{`"Root":"00000029-00000001",`, ``, `pin "before": 00000000-000000000000 is no name`},
		{`"Made":"2023`, `"Made":"x`, "parsing time"},
		{`"Number":7`, `"Number":0`, "base 0 is there twice, or has no number"},
		{`"Number":7`, `"Number":8`, "below: there is no base 7"},
		{`"Bases":[`, `"Bases":[{"Number":7,"Url":"u","Container":"c","Uuid":"0f0e0d0c0b0a09080706050403020100"},`, "base 7 is there twice"},
		{`"Container":"golden"`, `"Container":"gol/den"`, `base 7: container "gol/den"`},
		{`"Container":"golden"`, `"Container":""`, `base 7: container ""`},
		{`"golden","Uuid":"0f0e0d0c0b0a09080706050403020100"`, `"golden"`, `base 7: no uuid`},
		{`"Number":7,"Url":"https://swift.example/v1/AUTH_a"`, `"Number":7`, `base 7: storage URL ""`},
		{`"Clone":{"Base":7,"Root":"00000001-0000000f"}`, ``, "below: expected a disk or"},
		{`"Clone":{`, `"Disk":{"Objects":1,"ObjectSize":1},"Clone":{`, "below: expected a disk or"},
		{`"Clone":{"Base":7,"Root":"00000001-0000000f"}`, `"Disk":{"Objects":0,"ObjectSize":1}`, "below: a disk of 0 objects"},
		{`"Clone":{"Base":7,"Root":"00000001-0000000f"}`, `"Disk":{"Objects":4294967296,"ObjectSize":2147483648}`, "below: a disk of 4294967296 objects"},
		{`,"Root":"00000001-0000000f"`, ``, "below: 00000000-000000000000 is no name of a root"},
		{`"Container":"clone"`, `"Container":""`, `child "": container ""`},
		{`{"Form":1`, `["Form",1`, "invalid character"},
		{`"}]}`, `"}]} {}`, "more than one document"},
		{`"}]}`, `"}]}]`, "more than one document"},
		{goldenLine, ``, "EOF"},
		{goldenLine, `null`, "form 0"},
		{goldenLine, `[]`, "cannot unmarshal"},
	} {
		if strings.Count(goldenLine, c.old) < 1 {
			t.Fatalf("%s is not in the root", c.old)
		}
		r, err := ParseRoot(seal([]byte(strings.Replace(goldenLine, c.old, c.new, 1))))
		if !reflect.DeepEqual(r, Root{}) {
			t.Errorf("%s: %+v beside an error", c.new, r)
		}
		if strings.HasPrefix(c.why, "later") || c.why == "form 0" {
			wantUnsupported(t, err, "root", c.why)
		} else {
			wantDamaged(t, err, "root", c.why)
		}
	}
}

// What is not known is ignored, and is not in the next root.
func TestRootUnknownFields(t *testing.T) {
	line := strings.Replace(goldenLine, `"Form":1`, `"Form":1,"Colour":{"deep":[1,2]}`, 1)
	line = strings.Replace(line, `"Number":7`, `"Number":7,"Region":"x"`, 1)
	r, err := ParseRoot(seal([]byte(line)))
	if err != nil || !reflect.DeepEqual(r, goldenRoot()) {
		t.Fatalf("read as %+v, %v", r, err)
	}
	if b, err := r.Marshal(); err != nil || string(b) != goldenRootText {
		t.Errorf("written as %s, %v", b, err)
	}
}

// What a writer would regret is an error before it is in Swift.
func TestMarshalRefused(t *testing.T) {
	for _, c := range []struct {
		change func(*Root)
		why    string
	}{
		{func(r *Root) { r.Name.N = 0 }, "is no name of a root"},
		{func(r *Root) { r.Name.N = MaxN + 1 }, "is no name of a root"},
		{func(r *Root) { r.UUID = UUID{} }, "no uuid"},
		{func(r *Root) { r.Size = 0 }, "0 bytes"},
		{func(r *Root) { r.Requires = []string{"x"} }, `requires "x"`},
		{func(r *Root) { r.At.N = MaxN + 1 }, "position"},
		{func(r *Root) { r.Ended[1].N = MaxN + 1 }, "epoch ended at"},
		{func(r *Root) { r.Runs.Objects[0].N = MaxN + 1 }, "no name of a run"},
		{func(r *Root) { r.Pins[0].Name = "\xff" }, "not a name"},
		{func(r *Root) { r.Pins[0].At.N = MaxN + 1 }, "position"},
		{func(r *Root) { r.Pins[0].Root.N = MaxN + 1 }, "no name of a root"},
		{func(r *Root) { r.Pins[0].Made = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "year"},
		{func(r *Root) { r.Bases[0].URL = "\xff" }, "storage URL"},
		{func(r *Root) { r.Bases[0].Container = "\xff" }, "container"},
		{func(r *Root) { r.Below.Disk = &Disk{Objects: 1, ObjectSize: 1} }, "below"},
		{func(r *Root) { r.Below = &Below{Disk: &Disk{Objects: math.MaxInt64, ObjectSize: 2}} }, "below"},
		{func(r *Root) { r.Below = &Below{Disk: &Disk{Objects: 2, ObjectSize: 5, Size: 11}} }, "11 bytes of a disk of 10"},
		{func(r *Root) { r.Children[0].Pin = "x" }, `no pin "x"`},
	} {
		r := goldenRoot()
		c.change(&r)
		if b, err := r.Marshal(); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("written as %s, %v, expected %q", b, err, c.why)
		}
	}
}

func TestRootRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	position := func() Position { return Position{Epoch: rng.Uint32(), N: 1 + rng.Uint64N(MaxN)} }
	for range 200 {
		r := Root{Requires: []string{}, Name: position(), UUID: NewUUID(), Size: 1 + rng.Int64N(math.MaxInt64), At: Position{math.MaxUint32, MaxN}, Ended: []Position{}}
		for e := range rng.Uint32N(5) {
			r.Ended = append(r.Ended, Position{Epoch: e, N: rng.Uint64N(MaxN + 1)})
		}
		for range rng.IntN(50) {
			r.Runs.Blocks = append(r.Runs.Blocks, position())
			r.Runs.Objects = append(r.Runs.Objects, position())
		}
		for i := range rng.IntN(5) {
			name := string(rune('a'+i)) + strings.Repeat(`é<>&"\ `, rng.IntN(30))
			r.Pins = append(r.Pins, Pin{Name: name, Root: position(), At: position(), Made: time.UnixMilli(rng.Int64N(maxMillis)).UTC()})
			r.Children = append(r.Children, Child{Pin: name, URL: "u" + name, Container: "c" + name, UUID: NewUUID()})
			r.Bases = append(r.Bases, Base{Number: uint32(i) + 1, URL: name, Container: name, UUID: NewUUID()})
		}
		slices.SortFunc(r.Pins, func(a, b Pin) int { return a.Root.Compare(b.Root) })
		if rng.IntN(2) == 0 {
			r.Below = &Below{Disk: &Disk{Objects: 1 + rng.Int64N(1<<30), ObjectSize: 1 + rng.Int64N(1<<30)}}
		}
		b, err := r.Marshal()
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		if got, err := ParseRoot(b); err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("%+v is read as %+v, %v", r, got, err)
		}
	}
}

// FuzzParseRoot gives the parser lines with the right SHA-256.
func FuzzParseRoot(f *testing.F) {
	f.Add([]byte(goldenLine))
	f.Add([]byte(goldenRootText))
	inline, _, _ := inlineRoot(f, rand.New(rand.NewPCG(1, 2)))
	b, err := inline.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f.Add(line)
	for _, r := range [][2]string{{`"Clone":{`, `"Disk":{"Objects":1,"ObjectSize":1},"Clone":{`}, {`"Form":1`, `"Form":1,"form":2`},
		{`"Pins":[`, `"Pins":[null,`}, {`1099511627776`, `1.5`}, {`"Below":{`, `"Below":null,"x":{`}} {
		f.Add([]byte(strings.Replace(goldenLine, r[0], r[1], 1)))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if r, err := ParseRoot(line); err == nil && !bytes.HasSuffix(line, []byte("\n")) {
			t.Fatalf("%+v is taken without a checksum", r)
		}
		r, err := ParseRoot(seal(line))
		if err != nil {
			return
		}
		if !json.Valid(line) || bytes.ContainsAny(line, "\n") {
			t.Fatalf("%q is taken", line)
		}
		b, err := r.Marshal()
		if err != nil {
			t.Fatalf("taken, and not written again: %v", err)
		}
		again, err := ParseRoot(b)
		if err != nil {
			t.Fatalf("taken, and not read again: %v", err)
		}
		if second, err := again.Marshal(); err != nil || !bytes.Equal(b, second) {
			t.Fatalf("taken, and not the same when written again: %s and %s, %v", b, second, err)
		}
	})
}

// TestRootCopy: a snapshot says of which snapshot of another disk it is a copy.
func TestRootCopy(t *testing.T) {
	r := Root{Name: Position{1, 2}, UUID: UUID{1}, Size: 1 << 20, At: Position{1, 9}, Pins: []Pin{
		{Name: "copy", Root: Position{1, 1}, Made: time.UnixMilli(1).UTC(), Of: Copied{UUID{15, 14}, Position{3, 2}}},
		{Name: "own", Root: Position{1, 2}, Made: time.UnixMilli(1).UTC()},
	}}
	b, err := r.Marshal()
	if err != nil || strings.Count(string(b), `"Of":{"Uuid":"0f0e0000000000000000000000000000","Root":"00000003-00000002"}`) != 1 || strings.Count(string(b), `"Of"`) != 1 {
		t.Errorf("%v: %s", err, b)
	}
	got, err := ParseRoot(b)
	if err != nil || !reflect.DeepEqual(got.Pins, r.Pins) {
		t.Errorf("%v: %+v, want %+v", err, got.Pins, r.Pins)
	}
	for _, of := range []Copied{{UUID: UUID{1}}, {Root: Position{1, 1}}, {UUID{1}, Position{1, MaxN + 1}}} {
		r.Pins[0].Of = of
		if _, err := r.Marshal(); err == nil || !strings.Contains(err.Error(), "it is a copy of") {
			t.Errorf("%+v: %v", of, err)
		}
	}
}
