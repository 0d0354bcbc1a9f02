// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"swiftnbd/internal/config"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
)

// realDisk is held by the test that has the container disk of the real Swift.
var realDisk sync.Mutex

// newRealBench is newBench on a real Swift, with its patience. What stays of the
// containers after a failure is deleted. One test of all has the container disk at a time.
func newRealBench(t *testing.T, l config.Login, containers ...string) *bench {
	t.Helper()
	b := &bench{T: t, pace: quick, auth: l.AuthURL, login: l, secrets: filepath.Join(t.TempDir(), "secrets.conf")}
	b.pace.contact, b.pace.work = store.Policy{}, store.Policy{}
	if slices.Contains(containers, "disk") {
		realDisk.Lock()
		t.Cleanup(realDisk.Unlock)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, c := range containers {
			b.runContext(context.Background(), "unlock", c) // the test's own context is over
			b.runContext(context.Background(), "delete", c, "--yes")
		}
	})
	text := ""
	for _, c := range containers {
		text += section(c, l)
	}
	b.writeSecrets(text)
	return b
}

// TestRealSwift is the life of a container on a real Swift; with Keystone,
// whose logins take seconds on a small machine, the short form of it.
func TestRealSwift(t *testing.T) {
	t.Parallel()
	for how, login := range map[string]func(testing.TB) config.Login{
		"v1": storetest.RealLogin, "v3": storetest.KeystoneLogin, "v3 application credential": storetest.AppCredLogin,
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("ctl-test ü %08x", rand.Uint32())
			b := newRealBench(t, login(t), name)
			b.fails(1, []string{name + " doesn't exist"}, "list")
			disk := b.fill(name, 300, 5000, map[int][]byte{0: noise(5000), 1: make([]byte, 5000), 299: noise(5000)})
			b.put(name, "swiftnbd/of ours", []byte("x"))
			if how == "v1" {
				b.locked(name)
			}
			if out := b.ok("list", "-s"); out != name+" objects=300 size=5000 (version=1, unlocked)\n" {
				t.Errorf("%q", out)
			}
			path := filepath.Join(t.TempDir(), "image")
			b.ok("download", name, path)
			if used := checkImage(t, path, disk); used > 32768 {
				t.Errorf("the image takes %d bytes: where are the holes?", used)
			}
			checkUnlocked(b, name)
			b.ok("delete", name, "--yes")
			b.gone(name)
		})
	}
}

// TestRealSwiftLog is the life of a disk of version 2 on a real Swift.
func TestRealSwiftLog(t *testing.T) {
	t.Parallel()
	const name = "disk"
	b := newRealBench(t, storetest.RealLogin(t), name)
	disk := b.fillLog(name, 4<<20, 2)
	b.fails(1, []string{"already been setup (version 2"}, "setup", name, "--size", "1G", "--format", "2", "-f")
	if in := b.info(); *in.Opens != opensAtOnce || *in.Live == 0 || *in.Root == "" {
		t.Errorf("%+v", in)
	}
	if out := b.verify(0); out.Objects == 0 || out.Verdict != verdictClean {
		t.Errorf("%+v", out)
	}
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", name, path)
	checkImage(t, path, disk)
	b.ok("snapshot", name, "then")
	then := bytes.Clone(disk)
	b.ok("resize", name, "10T")
	b.ok("resize", name, "2M", "--force")
	b.sized(name, 2<<20)
	b.holds(name, disk[:2<<20])
	b.verify(0)
	b.ok("download", name+"@then", path)
	checkImage(t, path, then)
	b.ok("revert", name, "then", "--yes")
	b.sized(name, 4<<20)
	b.holds(name, then)
	b.verify(0)
	b.ok("snapshot", "--delete", name, "then")
	d, _ := b.open(name)
	b.scribble(d, disk)
	b.fails(1, []string{"is locked by server:1"}, "verify", name)
	b.ok("unlock", name)
	d.Abandon()
	b.verify(0)
	b.ok("download", name, path)
	checkImage(t, path, disk)
	for _, n := range b.names(name, layout.LogPrefix+"00000002") { // which a root names
		b.del(n)
	}
	if out := b.verify(exitDamage); len(out.Damage) == 0 || !out.Damage[0].Lost {
		t.Errorf("%+v", out)
	}
	b.ok("delete", name, "--yes")
	b.gone(name)
	b.noLeases(name, 24)
}

// locked is what becomes of each verb while the container is locked, or has been
// set up.
func (b *bench) locked(name string) {
	b.Helper()
	b.fails(1, []string{"already been setup"}, "setup", name, "5")
	b.ok("lock", name)
	b.fails(1, []string{"is already locked: ctl since "}, "lock", name)
	b.fails(1, []string{"is locked by ctl since "}, "download", name, filepath.Join(b.TempDir(), "image"))
	b.fails(1, []string{"is locked by ctl since "}, "delete", name, "--yes")
	b.fails(1, []string{"is locked by ctl since "}, "setup", "-f", name, "5")
	b.ok("unlock", name)
	b.fails(1, []string{"is not locked"}, "unlock", name)
	b.ok("setup", "-f", name, "300", "--object-size", "5000")
}

// section writes a login as a section of the secrets file.
func section(name string, l config.Login) string {
	var s strings.Builder
	fmt.Fprintf(&s, "[%s]\n", name)
	for key, value := range map[string]string{
		"authurl": l.AuthURL, "username": l.Username, "password": l.Password.Reveal(), "project": l.Project,
		"user-domain": l.UserDomain, "project-domain": l.ProjectDomain, "region": l.Region, "endpoint-type": l.EndpointType,
		"application-credential-id": l.AppCredentialID, "application-credential-secret": l.AppCredentialSecret.Reveal(),
	} {
		if value != "" {
			fmt.Fprintf(&s, "%s = %s\n", key, value)
		}
	}
	return s.String()
}

// TestRealSwiftIncrement carries a disk to another container of a real Swift, and
// brings it up to date.
func TestRealSwiftIncrement(t *testing.T) {
	t.Parallel()
	b := newRealBench(t, storetest.RealLogin(t), "disk", "copy")
	c := newCopies(b, 4<<20, "a", "b")
	image := filepath.Join(c.dir, "image")
	b.ok("download", "disk@a", image)
	b.ok("upload", c.increment("", "a"), "--onto", "copy")
	ab := c.increment("a", "b")
	b.ok("upload", ab, "--onto", "copy")
	b.ok("upload", ab, "--onto", "copy") // it is there already
	c.has("copy", "a", "b")
	if out := b.ok("diff", "disk@a", "disk@b"); !strings.Contains(out, " data\n") {
		t.Errorf("%q", out)
	}
	b.ok("download", "disk@b", image, "--since", "a")
	checkImage(t, image, c.at["b"])
	for _, name := range []string{"copy", "disk"} {
		b.ok("delete", name, "--yes")
		b.gone(name)
	}
}
