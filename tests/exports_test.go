// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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
	account.Write011(t, names[2], map[int][]byte{1: harness.Random(2, 1<<20)})
	secrets = harness.Secrets(t, c.Section(names[0]), c.Section(names[1]), c.Section(names[2], "read-only = 1"))
	o.Params = append(o.Params, "secrets="+secrets)
	return harness.Serve(t, o), names, secrets, account
}

// TestExportsOwnSettings serves two disks with settings of their own, and one
// with those of [DEFAULT] and of the command line, each beside the others in
// one nbdkit.
func TestExportsOwnSettings(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	account := c.Account(t)
	base := harness.Name(t)
	small, large, plain := base+"-small", base+"-large", base+"-plain"
	const objects, diskSize = 64, 64 * objectSize
	content := make(map[int][]byte)
	for i := range objects {
		content[i] = harness.Random(uint64(i), objectSize)
	}
	for _, name := range []string{small, large, plain} {
		account.Setup(t, name, objects, objectSize)
		account.Write011(t, name, content)
	}
	secrets := harness.Secrets(t, harness.Section("DEFAULT", "cache-mode = writethrough", "writeback-age = 3600"),
		c.Section(small, "cache = 1M", "lease = 0"),
		c.Section(large, "Cache: 48M", "cache-mode = writeback", "connections = 3"), c.Section(plain))
	address := fmt.Sprintf("127.0.0.1:%d", harness.FreePort(t))
	n := serve(t, "secrets="+secrets, "cache=3M", "metrics="+address)

	var wait []*harness.Process
	hold := filepath.Join(harness.TempDir(t), "hold")
	for i, name := range []string{small, large, plain} {
		wait = append(wait, harness.StartNbdsh(t, n.Export(name), fmt.Sprintf(`
import os, time
h.pwrite(bytes([%[1]d + 1]) * 4096, 0)
for i in range(%[2]d):
    h.pread(%[3]d, i * %[3]d)
open("%[4]s.%[1]d", "w").close()
while not os.path.exists("%[4]s"):
    time.sleep(0.05)
`, i, objects, objectSize, hold)))
	}
	for i := range wait {
		wait[i].Until(t, fmt.Sprintf("%s.%d", hold, i))
	}
	counters := harness.Must(t, "curl", "-sS", "--fail", "http://"+address+"/metrics")
	for _, d := range []struct {
		name        string
		least, most int64
		written     bool // without a flush
		lease       bool
	}{
		{small, 1 << 18, 1 << 20, true, false},
		{large, diskSize, 48 << 20, false, true},
		{plain, 1 << 20, 3 << 20, true, true},
	} {
		m := regexp.MustCompile(`(?m)^swiftnbd_cache_bytes\{container="` + d.name + `"\} (\S+)$`).FindStringSubmatch(counters)
		if m == nil {
			t.Fatalf("no cache of %s in\n%s", d.name, counters)
		}
		if held, err := strconv.ParseFloat(m[1], 64); err != nil || held < float64(d.least) || held > float64(d.most) {
			t.Errorf("the cache of %s holds %s bytes after a read of the whole disk, want %d to %d", d.name, m[1], d.least, d.most)
		}
		first, _ := account.Get(t, d.name, "disk.part/00000000")
		if written := first[0] != content[0][0]; written != d.written {
			t.Errorf("%s: an acknowledged write is in Swift before a flush: %t, want %t", d.name, written, d.written)
		}
		if leases := account.Leases(t, d.name); (len(leases) > 0) != d.lease {
			t.Errorf("%s has the leases %q, want any: %t", d.name, leases, d.lease)
		}
	}
	harness.WriteFile(t, hold, "")
	for _, p := range wait {
		if status := p.Wait(t); status != 0 {
			t.Errorf("a client ended with %d:\n%s", status, p.Output())
		}
	}
	n.Stop(t)
	for i, name := range []string{small, large, plain} {
		if data := account.Read011(t, name); !bytes.Equal(data[:8192], append(bytes.Repeat([]byte{byte(i + 1)}, 4096), content[0][4096:8192]...)) {
			t.Errorf("%s lacks what was written", name)
		}
	}
}

// TestExportsSettingsChange changes a setting of a disk while nbdkit serves: it
// holds from the next client on that finds the disk closed.
func TestExportsSettingsChange(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, account, _ := volume(t, c)
	secrets := harness.Secrets(t, c.Section(name, "writeback-age = 3600"))
	n := serve(t, "secrets="+secrets)
	for i, mode := range []struct {
		line    string
		written bool
	}{{"", false}, {"cache-mode = writethrough", true}, {"cache-mode = nonesuch", true}, {"cache-mode = writeback", false}} {
		harness.WriteFile(t, secrets, c.Section(name, "writeback-age = 3600", mode.line))
		ready, hold := filepath.Join(harness.TempDir(t), "ready"), filepath.Join(harness.TempDir(t), "hold")
		client := harness.StartNbdsh(t, n.Export(name), fmt.Sprintf(`
import os, time
h.pwrite(b"x" * 4096, %d * 65536)
open("%s", "w").close()
while not os.path.exists("%s"):
    time.sleep(0.05)
`, i, ready, hold))
		client.Until(t, ready)
		if written := account.Read011(t, name)[i*65536] == 'x'; written != mode.written {
			t.Errorf("with %q an acknowledged write is in Swift before a flush: %t, want %t", mode.line, written, mode.written)
		}
		harness.WriteFile(t, hold, "")
		if status := client.Wait(t); status != 0 {
			t.Errorf("the client ended with %d:\n%s", status, client.Output())
		}
		unlocked(t, account, name) // the disk is closed
	}
}

// TestExportsSmallCache serves all sections, of which one has a cache that is
// too small for its objects: its client is refused, the log names the place in
// the file, and the other disk is served.
func TestExportsSmallCache(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	good, _, _ := volume(t, c)
	bad := good + "-bad"
	c.Account(t).Setup(t, bad, 4, objectSize)
	secrets := harness.Secrets(t, c.Section(good), c.Section(bad, "cache = 1000"))
	n := serve(t, "secrets="+secrets)
	if r := harness.Run(t, "nbdinfo", "--size", n.Export(bad)); r.Status == 0 {
		t.Errorf("the disk is served: %s", r.Stdout)
	}
	if size := harness.Must(t, "nbdinfo", "--size", n.Export(good)); size != fmt.Sprintln(diskSize) {
		t.Errorf("the other disk has %s bytes", size)
	}
	n.Stop(t)
	text, err := os.ReadFile(secrets)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Count(strings.Split(string(text), "cache = ")[0], "\n") + 1
	want := fmt.Sprintf("container %s: %s:%d: [%s] cache: cache=1000 is too small for objects of 65536 bytes", bad, secrets, line, bad)
	if harness.Format() == 2 {
		want = strings.Replace(want, "objects of 65536", "chunks of 1048576", 1)
	}
	if out, _ := n.Output(); !strings.Contains(out, want) {
		t.Errorf("the log lacks %q:\n%s", want, out)
	}
}

// TestExportsOverridden has the command line and the section of the one disk
// that is served contradict each other: a warning says which of them counts.
func TestExportsOverridden(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, _, _ := volume(t, c)
	secrets := harness.Secrets(t, harness.Section("DEFAULT", "timeout = 61"), c.Section(name, "cache = 5M"))
	r := harness.Run(t, "nbdkit", "-U", "-", harness.Plugin(t), name, "secrets="+secrets, "cache=6M", "timeout=50", "lease=20", "--run", "exit 42")
	var warnings []string
	for line := range strings.Lines(r.Stderr) {
		if strings.Contains(line, "no effect") {
			warnings = append(warnings, line)
		}
	}
	if r.Status != 42 || len(warnings) != 2 || !strings.Contains(warnings[0], "cache= ") || !strings.Contains(warnings[1], "timeout= ") ||
		!strings.Contains(warnings[0], secrets) {
		t.Errorf("status %d, want 42 and a warning each about cache and timeout:\n%s", r.Status, r.Stderr)
	}
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
	described := [][]string{{"10", "M", "64"}, {"3000", "1000"}, {"4", "M", "1", "read-only"}}
	if harness.Format() == 2 { // its objects have no size
		described = [][]string{{"10", "M", "version 2"}, {"3000", "version 2"}, {"4", "M", "version 2", "read-only"}}
	}
	for i, words := range described {
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
