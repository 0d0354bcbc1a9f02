// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestNote(t *testing.T) {
	n := Note{Snapshot: "v1 é", URL: SameAccount, Container: "web", UUID: testUUID, Made: time.UnixMilli(1700000000123).UTC()}
	b, err := n.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseNote(b); err != nil || !reflect.DeepEqual(got, n) {
		t.Errorf("read as %+v, %v", got, err)
	}
	for bit := range 8 * len(b) {
		bad := bytes.Clone(b)
		bad[bit/8] ^= 1 << (bit % 8)
		_, err := ParseNote(bad)
		wantDamaged(t, err, "note of a clone")
	}
	for size := range b {
		_, err := ParseNote(b[:size])
		wantDamaged(t, err, "note of a clone")
	}
	for _, change := range []func(*Note){
		func(n *Note) { n.URL = "" }, func(n *Note) { n.Container = "" }, func(n *Note) { n.Container = "a/b" }, func(n *Note) { n.UUID = UUID{} },
	} {
		bad := n
		change(&bad)
		if b, err := bad.Marshal(); err == nil {
			t.Errorf("written: %s", b)
		}
	}
	_, err = ParseNote(seal([]byte(`{"Url":"","Container":"c"}`)))
	wantDamaged(t, err, "note of a clone", "storage URL")
}

// TestNoteNames: a clone's notes have names of their own, which tell the root.
func TestNoteNames(t *testing.T) {
	at := Position{0x2a, 7}
	name := ChildName(at, SameAccount, "web")
	if got, ok := ParseChildName(name); !ok || got != at {
		t.Errorf("%s: %v, %t", name, got, ok)
	}
	// Another program computed the MD5.
	if want := "swiftnbd/child/0000002a-00000007-74dd4cde1cdaa88b"; name != want {
		t.Errorf("%s, want %s", name, want)
	}
	seen := map[string]bool{}
	for _, of := range [][2]string{{".", "web"}, {".", "web2"}, {"https://swift.example/v1/AUTH_a", "web"}, {".\nw", "eb"}} {
		s := ChildSuffix(of[0], of[1])
		if seen[s] {
			t.Errorf("%q has the name of another", of)
		}
		seen[s] = true
	}
	for _, bad := range []string{"", name + "0", name[:len(name)-1], strings.ToUpper(name), strings.Replace(name, "child", "gone", 1), ChildPrefix + "0000002a-00000000-74dd4cde1cdaa88b", ChildPrefix + "-74dd4cde1cdaa88b"} {
		if at, ok := ParseChildName(bad); ok {
			t.Errorf("%q is %v", bad, at)
		}
	}
	if got, ok := ParseGoneName(GoneName(at)); !ok || got != at || GoneName(at) != "swiftnbd/gone/0000002a-00000007" {
		t.Errorf("%s: %v, %t", GoneName(at), got, ok)
	}
}

// TestRootOfClone: what a clone's root says, and what is refused.
func TestRootOfClone(t *testing.T) {
	r := goldenRoot()
	r.Requires = []string{FeatureClone}
	r.Bases[0].URL = SameAccount
	*r.Below.Clone = Clone{Base: 7, Root: Position{1, 15}, Snapshot: "v1 é", Size: 1 << 39, Depth: 2}
	b, err := r.Marshal()
	if err != nil || !bytes.Contains(b, []byte(`"Below":{"Clone":{"Base":7,"Root":"00000001-0000000f","Snapshot":"v1 é","Size":549755813888,"Depth":2}}`)) {
		t.Errorf("written as %s, %v", b, err)
	}
	if got, err := ParseRoot(b); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("read as %+v, %v", got, err)
	}
	for _, change := range []func(*Clone){func(c *Clone) { c.Size = -1 }, func(c *Clone) { c.Depth = -1 }, func(c *Clone) { c.Snapshot = "\xff" }} {
		bad := r
		clone := *r.Below.Clone
		change(&clone)
		bad.Below = &Below{Clone: &clone}
		if b, err := bad.Marshal(); err == nil {
			t.Errorf("written: %s", b)
		}
	}
}
