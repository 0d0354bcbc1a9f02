// SPDX-License-Identifier: MIT

package tests

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// listExports returns what `nbdinfo --list` shows: each export's name, in
// order, with its description.
func listExports(t testing.TB, uri string) (names []string, description map[string]string) {
	t.Helper()
	description = make(map[string]string)
	name := ""
	for line := range strings.Lines(harness.Must(t, "nbdinfo", "--list", uri)) {
		if quoted, ok := strings.CutPrefix(line, "export="); ok {
			var err error
			if name, err = strconv.Unquote(strings.TrimSuffix(strings.TrimSpace(quoted), ":")); err != nil {
				t.Fatalf("nbdinfo said %q: %v", line, err)
			}
			names = append(names, name)
		} else if d, ok := strings.CutPrefix(strings.TrimSpace(line), "description: "); ok {
			description[name] = d
		}
	}
	return names, description
}

// threeExports serves three containers, the last read-only, without
// container=.
func threeExports(t testing.TB, o harness.Options) (n *harness.Nbdkit, names []string, secrets string, account *harness.Account) {
	t.Helper()
	c := harness.Dev(t)
	account = c.Account(t)
	base := harness.Name(t)
	names = []string{base + "-z", base + "-a", base + "-ro"}
	account.Setup(t, names[0], 160, 65536)
	account.Setup(t, names[1], 3, 1000)
	account.Setup(t, names[2], 4, 1<<20)
	account.Put(t, names[2], "disk.part/00000001", harness.Random(2, 1<<20))
	secrets = harness.Secrets(t, c.Section(names[0]), c.Section(names[1]), c.Section(names[2], "read-only = 1"))
	o.Params = append(o.Params, "secrets="+secrets)
	return harness.Serve(t, o), names, secrets, account
}

// TestExportsList checks what clients see when no container is named: every
// section of the file, in its order, with a description.
func TestExportsList(t *testing.T) {
	t.Parallel()
	n, names, _, _ := threeExports(t, harness.Options{Mode: harness.Background, TCP: true})
	got, description := listExports(t, n.URI)
	if !slices.Equal(got, names) {
		t.Errorf("nbdinfo --list shows %q, want %q", got, names)
	}
	for i, words := range [][]string{{"10", "M", "64"}, {"3000", "1000"}, {"4", "M", "1", "read-only"}} {
		for _, w := range words {
			if !strings.Contains(description[names[i]], w) {
				t.Errorf("the description of %s is %q, which lacks %q", names[i], description[names[i]], w)
			}
		}
	}
	for i, name := range names {
		if ro := strings.Contains(description[name], "read-only"); ro != (i == 2) {
			t.Errorf("the description of %s is %q", name, description[name])
		}
	}
	out := harness.Must(t, "nbd-client", "-l", "127.0.0.1", strconv.Itoa(n.Port))
	for _, name := range names {
		if !slices.Contains(strings.Fields(strings.ReplaceAll(out, ":", " ")), name) {
			t.Errorf("nbd-client -l does not show %s:\n%s", name, out)
		}
	}
}

// TestExportsUse works on two exports at once through one nbdkit.
func TestExportsUse(t *testing.T) {
	t.Parallel()
	n, names, _, account := threeExports(t, harness.Options{})
	for i, want := range []string{"10485760", "3000", "4194304"} {
		if got := strings.TrimSpace(harness.Must(t, "nbdinfo", "--size", n.Export(names[i]))); got != want {
			t.Errorf("%s has %s bytes, want %s", names[i], got, want)
		}
	}
	one, two := harness.Random(3, 160*65536), harness.Random(4, 3000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		harness.RoundTrip(t, n.Export(names[0]), one)
	}()
	harness.RoundTrip(t, n.Export(names[1]), two)
	<-done
	harness.Nbdsh(t, n.Export(names[2]), `
assert h.is_read_only()
try:
    h.pwrite(b"x", 0)
    raise SystemExit("a read-only export was written to")
except nbd.Error as e:
    assert e.errno in ("EPERM", "EROFS"), e
`)
	if got := harness.Download(t, n.Export(names[2])); string(got[1<<20:2<<20]) != string(harness.Random(2, 1<<20)) {
		t.Error("the read-only export does not show what is in Swift")
	}
	if account.Holder(t, names[2]) != "" {
		t.Error("reading a read-only export has locked it")
	}
	n.Stop(t)
	if string(account.Read011(t, names[0])) != string(one) || string(account.Read011(t, names[1])) != string(two) {
		t.Error("the exports got into each other's way")
	}
	for _, name := range names {
		unlocked(t, account, name)
	}
}

// TestExportsWrongName asks for an export that is not there, which costs the
// client its connection and nobody else anything.
func TestExportsWrongName(t *testing.T) {
	t.Parallel()
	n, names, _, _ := threeExports(t, harness.Options{})
	for _, name := range []string{"nonesuch", names[0] + "x", "a/b", "../" + names[0], "DEFAULT"} {
		if r := harness.TryNbdsh(t, n.Export(name), "pass"); r.Status == 0 {
			t.Errorf("there is no export %q, yet a client was let in", name)
		}
	}
	harness.Nbdsh(t, n.Export(names[0]), `h.pwrite(b"x", 0)`)
	n.Stop(t)
}

// TestExportsChange adds a section to the file and takes one from it while
// nbdkit runs: new clients see it at once, and who works on what was taken
// away goes on.
func TestExportsChange(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	n, names, secrets, account := threeExports(t, harness.Options{Mode: harness.Background})
	late := harness.Name(t)
	account.Setup(t, late, 16, 4096)
	if r := harness.TryNbdsh(t, n.Export(late), "pass"); r.Status == 0 {
		t.Fatal("the export is there before its section")
	}
	harness.Nbdsh(t, n.Export(names[0]), `
h.pwrite(b"before", 0)
open(`+strconv.Quote(secrets)+`, "w").write(`+strconv.Quote(c.Section(late)+c.Section(names[1]))+`)
h.pwrite(b"after!", 100)
h.flush()
`)
	got, _ := listExports(t, n.URI)
	if want := []string{late, names[1]}; !slices.Equal(got, want) {
		t.Errorf("after the change nbdinfo --list shows %q, want %q", got, want)
	}
	harness.RoundTrip(t, n.Export(late), harness.Random(5, 16*4096))
	if r := harness.TryNbdsh(t, n.Export(names[0]), "pass"); r.Status == 0 {
		t.Error("an export is still there after its section has gone")
	}
	// A file that is broken for a moment, as while it is edited, changes
	// nothing: what it said before stays in force until it makes sense again.
	good, err := os.ReadFile(secrets)
	if err != nil {
		t.Fatal(err)
	}
	harness.WriteFile(t, secrets, "[half\n")
	harness.Nbdsh(t, n.Export(late), `h.pwrite(b"x", 0)`)
	harness.WriteFile(t, secrets, string(good)+c.Section(names[0]))
	harness.Nbdsh(t, n.Export(late), `assert h.pread(1, 0) == b"x"`)
	harness.Nbdsh(t, n.Export(names[0]), `assert h.pread(6, 0) == b"before" and h.pread(6, 100) == b"after!"`)
	n.Stop(t)
	unlocked(t, account, names[0])
	unlocked(t, account, late)
}

// TestExportsOneIsBroken has one container of the file missing in Swift: the
// others are served.
func TestExportsOneIsBroken(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, _, _ := volume(t, c)
	gone := harness.Name(t)
	n := serve(t, "secrets="+harness.Secrets(t, c.Section(gone), c.Section(name)))
	if r := harness.TryNbdsh(t, n.Export(gone), "pass"); r.Status == 0 {
		t.Error("a container that is not there was served")
	}
	harness.Nbdsh(t, n.Export(name), `h.pwrite(b"x", 0)`)
	n.Stop(t)
}

// TestExportsNamedContainer checks that with container= there is that one
// export, under its name and under the empty one.
func TestExportsNamedContainer(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, _, _ := volume(t, c)
	other, _, _ := volume(t, c)
	n := serve(t, name, "secrets="+harness.Secrets(t, c.Section(other), c.Section(name)))
	harness.Nbdsh(t, n.URI, `h.pwrite(b"x", 0)`)
	if names, _ := listExports(t, n.URI); len(names) != 1 {
		t.Errorf("nbdinfo --list shows %q, want one export", names)
	}
	if got := strings.TrimSpace(harness.Must(t, "nbdinfo", "--size", n.URI)); got != strconv.Itoa(diskSize) {
		t.Errorf("the disk has %s bytes, want %d", got, diskSize)
	}
	n.Stop(t)
}
