// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// twoAccounts are a disk of version 2 in the test's own account and a second
// account of the same Swift, with a secrets file that has containers of both.
type twoAccounts struct {
	t           *testing.T
	cloud       *harness.Cloud
	other       *harness.Cloud
	owner, user *harness.Account
	golden      string
	params      []string // nbdkit's, for golden
	secrets     string
	theirs      []string // containers of the second account
}

// newTwoAccounts sets the disk up with swiftnbd-ctl. The containers of the second
// account, whose names end in those given, do not exist yet.
func newTwoAccounts(t *testing.T, c *harness.Cloud, theirs ...string) *twoAccounts {
	t.Helper()
	a := &twoAccounts{t: t, cloud: c, other: &harness.Cloud{AuthURL: c.AuthURL, User: "test2:tester2", Key: "testing2"}} // scripts/saio.sh, scripts/swiftdev
	a.owner, a.user = c.Account(t), a.other.Account(t)
	a.golden = harness.Name(t)
	sections := []string{c.Section(a.golden)}
	for _, name := range theirs {
		name = a.golden + "-" + name
		a.theirs = append(a.theirs, name)
		sections = append(sections, a.other.Section(name))
		t.Cleanup(func() { a.user.Remove(t, name) })
	}
	a.secrets = harness.Secrets(t, sections...)
	a.params = []string{a.golden, "secrets=" + a.secrets}
	ctl(t, a.params, "setup", a.golden, "--size", fmt.Sprint(logSize), "--format", "2")
	t.Cleanup(func() { a.owner.Remove(t, a.golden) })
	return a
}

// serves returns nbdkit's parameters for a container of either account.
func (a *twoAccounts) serves(name string, more ...string) []string {
	return append([]string{name, "secrets=" + a.secrets}, more...)
}

// refused runs swiftnbd-ctl, which is to end with status 1 and one line that has
// these words.
func (a *twoAccounts) refused(args []string, words ...string) {
	a.t.Helper()
	r := harness.Run(a.t, harness.Built(a.t, "swiftnbd-ctl"), append([]string{"--secrets", a.secrets}, args...)...)
	if r.Status != 1 || strings.Count(r.Stderr, "\n") != 1 {
		a.t.Errorf("%v: status %d\n%s%s", args, r.Status, r.Stdout, r.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			a.t.Errorf("%v does not say %q: %s", args, w, r.Stderr)
		}
	}
}

// is fails unless a disk, or with "@" a snapshot of it, has these bytes.
func (a *twoAccounts) is(disk string, want []byte) {
	a.t.Helper()
	image := filepath.Join(harness.TempDir(a.t), "image")
	ctl(a.t, a.params, "download", "-q", disk, image)
	if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got, want) {
		a.t.Errorf("%s has other bytes, or %v", disk, err)
	}
}

// TestCloneOtherAccount clones a disk of another account, which an ACL lets the
// clone's user read, and nothing more. The parent is protected while it has
// clones. Each of the two is written and read for itself.
func TestCloneOtherAccount(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		a := newTwoAccounts(t, c, "web", "whole")
		web, whole := a.theirs[0], a.theirs[1]
		first, second := harness.Random(1, logSize), harness.Random(2, logSize)
		n := serve(t, append(a.params[:2:2], "lease=6")...)
		harness.Upload(t, n.URI, first)
		ctl(t, a.params, "snapshot", a.golden, "first") // nbdkit makes it
		harness.Upload(t, n.URI, second)

		a.refused([]string{"clone", a.golden + "@first", web}, web+": not cloned: ", "permission denied")
		for _, name := range a.owner.List(t, a.golden) {
			// What names the last note may stay: docs/FORMAT-V2.md, "Clones".
			if note, ok := strings.CutPrefix(name, "swiftnbd/child/"); ok && len(note) == len("EEEEEEEE-NNNNNNNN-HHHHHHHHHHHHHHHH") {
				t.Errorf("the clone that was not made is noted: %s", name)
			}
		}
		a.owner.Create(t, a.golden, map[string]string{"X-Container-Read": a.other.User})
		ctl(t, a.params, "clone", a.golden+"@first", web)
		m := serve(t, a.serves(web)...)
		if got := harness.Download(t, m.URI); !bytes.Equal(got, first) {
			t.Error("the clone is not what the disk was")
		}
		harness.Nbdsh(t, m.URI, `h.pwrite(b"x" * 65536, 131072); h.trim(65536, 0); h.flush()`)
		want := bytes.Clone(first)
		copy(want[131072:], bytes.Repeat([]byte("x"), 65536))
		clear(want[:65536])
		m.Stop(t)
		if got := harness.Download(t, n.URI); !bytes.Equal(got, second) {
			t.Error("the parent is not what was written")
		}
		n.Stop(t)

		a.refused([]string{"snapshot", "--delete", a.golden, "first"}, "snapshot first is needed by its clone "+web, "/v1/AUTH_test2")
		a.refused([]string{"delete", "-y", a.golden}, web)
		a.is(web, want)
		a.is(a.golden+"@first", first)
		ctl(t, a.params, "clone", "--flatten", "-q", a.golden+"@first", whole)
		ctl(t, a.params, "flatten", "-q", web)
		ctl(t, a.params, "verify", web)

		// Neither needs its parent any more.
		a.owner.Create(t, a.golden, map[string]string{"X-Container-Read": ""})
		ctl(t, a.params, "delete", "-q", "-y", "-f", a.golden)
		a.is(web, want)
		a.is(whole, first)
		for _, name := range a.theirs {
			ctl(t, a.params, "delete", "-q", "-y", name)
			if status, _, _ := a.user.Do(t, "HEAD", "/"+name, nil, nil); status != 404 {
				t.Errorf("after delete HEAD of %s says %d", name, status)
			}
		}
	})
}

// TestIncrementOtherAccount brings a copy of a disk in another account up to date,
// through a file and through an image. diff names all that has changed.
func TestIncrementOtherAccount(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		a := newTwoAccounts(t, c, "copy")
		backup := a.theirs[0]
		dir := harness.TempDir(t)
		image := filepath.Join(dir, "image")
		disk := harness.Random(3, logSize)
		clear(disk[logSize/2:])
		n := serve(t, append(a.params[:2:2], "lease=6")...)
		harness.Upload(t, n.URI, disk)
		at := map[string][]byte{}
		snapshot := func(name string) {
			ctl(t, a.params, "snapshot", a.golden, name)
			at[name] = bytes.Clone(disk)
		}
		snapshot("a")
		harness.Nbdsh(t, n.URI, `h.pwrite(b"y" * 300000, 1000000); h.trim(65536, 262144); h.flush()`)
		copy(disk[1000000:], bytes.Repeat([]byte("y"), 300000))
		clear(disk[262144:][:65536])
		snapshot("b")
		n.Stop(t)

		increment := func(args ...string) string {
			file := filepath.Join(dir, "increment")
			os.Remove(file)
			ctl(t, a.params, append(append([]string{"download", "-q"}, args...), file, "-O", "increment")...)
			return file
		}
		ctl(t, a.params, "upload", "-q", increment(a.golden+"@a"), "--onto", backup)
		a.is(backup, at["a"])
		ctl(t, a.params, "download", "-q", a.golden+"@a", image)
		file := increment(a.golden+"@b", "--since", "a")
		if info, err := os.Stat(file); err != nil || info.Size() > 1<<20 {
			t.Errorf("the increment has more than has changed: %v, %v", info, err)
		}
		for range 2 { // the second finds it there
			ctl(t, a.params, "upload", "-q", file, "--onto", backup)
			a.is(backup, at["b"])
		}
		a.is(backup+"@a", at["a"])
		ctl(t, a.params, "download", "-q", a.golden+"@b", image, "--since", "a")
		if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got, at["b"]) {
			t.Errorf("the image that was brought up to date has other bytes, or %v", err)
		}
		if out := ctl(t, a.params, "snapshots", backup); !strings.HasPrefix(out, "a ") || !strings.Contains(out, "\nb ") {
			t.Errorf("snapshots of the copy:\n%s", out)
		}

		var diff struct {
			Extents []struct {
				Offset, Length int
				Kind           string
			}
		}
		if err := json.Unmarshal([]byte(ctl(t, a.params, "diff", "--json", a.golden+"@a", a.golden+"@b")), &diff); err != nil {
			t.Fatal(err)
		}
		changed, same := 0, bytes.Clone(at["a"])
		for _, e := range diff.Extents {
			changed += e.Length
			copy(same[e.Offset:e.Offset+e.Length], at["b"][e.Offset:])
			if zero := len(bytes.Trim(at["b"][e.Offset:e.Offset+e.Length], "\x00")) == 0; zero != (e.Kind == "zero") {
				t.Errorf("diff says that bytes %d to %d are %s", e.Offset, e.Offset+e.Length, e.Kind)
			}
		}
		if !bytes.Equal(same, at["b"]) || changed < 300000+65536 || changed > 400000 {
			t.Errorf("diff names %d bytes, and not all that have changed: %+v", changed, diff)
		}
		ctl(t, a.params, "verify", backup)
	})
}
