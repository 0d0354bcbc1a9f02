// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
)

// deed is a verb with its arguments, for the tests of what goes wrong. DIR in them
// is a directory. The disks are those of troubled.
type deed struct {
	args  string
	about string // the container that it changes or reads
	reads bool   // the right to read is enough
	free  bool   // a quota does not stop it
	whole bool   // no signal stops it half way
}

// deeds are the verbs that talk to Swift, in an order in which all can be done.
var deeds = []deed{
	{args: "list disk", about: "disk", reads: true, free: true},
	{args: "info disk", about: "disk", reads: true, free: true},
	{args: "snapshots disk", about: "disk", reads: true, free: true},
	{args: "diff disk@a disk", about: "disk", reads: true, free: true},
	{args: "download disk@a DIR/1", about: "disk", reads: true, free: true},
	{args: "download disk@b DIR/2 -O increment --since a", about: "disk", reads: true, free: true},
	{args: "download old DIR/3", about: "old", reads: true, free: true},
	{args: "verify disk", about: "disk", free: true},
	{args: "setup new1 --size 1M --format 2", about: "new1"},
	{args: "upload DIR/in new2", about: "new2"},
	{args: "clone disk@a new3", about: "new3"},
	{args: "clone disk new4", about: "new4"},
	{args: "resize disk 2M", about: "disk"},
	{args: "snapshot disk c", about: "disk"},
	{args: "snapshot --delete disk b", about: "disk"},
	{args: "revert disk a --yes", about: "disk"},
	{args: "flatten kid", about: "kid"},
	{args: "resize old 1M", about: "old", free: true},
	{args: "convert old", about: "old"},
	{args: "delete kid -y", about: "kid", free: true},
	{args: "lock disk", about: "disk", free: true, whole: true},
}

// words returns the deed's arguments.
func (b *troubled) words(d deed) []string {
	return strings.Fields(strings.ReplaceAll(d.args, "DIR", b.dir))
}

// troubled has a disk of version 2 with snapshots and a clone, one of version 1, and
// an image.
type troubled struct {
	*bench
	dir  string
	disk []byte
}

func newTroubled(t *testing.T) *troubled {
	t.Helper()
	users := []devswift.User{{Account: "test", Name: "tester", Key: "testing"}, {Account: "other", Name: "guest", Key: "pass"}}
	b := &troubled{bench: newBench(t, devswift.Options{Users: users}), dir: t.TempDir()}
	b.as("test:tester", "testing")
	const size = 256 << 10
	b.fillChunks("old", size, "64K")
	b.disk = b.fillLog("disk", size, 1)
	b.ok("snapshot", "disk", "a")
	b.ok("clone", "disk@a", "kid")
	b.serve("disk", func(d *device.Device) { b.scribble(d, b.disk) })
	b.ok("snapshot", "disk", "b")
	if err := os.WriteFile(filepath.Join(b.dir, "in"), noise(size), 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// as writes a secrets file with these credentials.
func (b *troubled) as(user, key string) {
	b.Helper()
	text := "[DEFAULT]\nauthurl = " + b.auth + "\nstorage-url = " + b.server() + "/v1/AUTH_test\nusername = " + user + "\npassword = " + key + "\n"
	for _, c := range []string{"disk", "kid", "old", "new1", "new2", "new3", "new4", "foreign", "absent"} {
		text += "[" + c + "]\n"
	}
	b.writeSecrets(text)
}

// failed wants a deed to have failed with one line, warnings apart, which has the words.
func (b *troubled) failed(d deed, r result, words ...string) {
	b.Helper()
	lines := slices.DeleteFunc(strings.Split(strings.TrimSuffix(r.err, "\n"), "\n"), func(l string) bool {
		return strings.HasPrefix(l, program+": warning: ")
	})
	if r.code != exitFailed || len(lines) != 1 || !strings.HasPrefix(lines[0], program+": ") {
		b.Errorf("%s: exit status %d, %q", d.args, r.code, r.err)
		return
	}
	for _, w := range words {
		if !strings.Contains(lines[0], w) {
			b.Errorf("%s: %q lacks %q", d.args, lines[0], w)
		}
	}
}

// sound wants the disk to be as good as it was, and free.
func (b *troubled) sound() {
	b.Helper()
	for _, c := range []string{"disk", "kid", "old"} {
		checkUnlocked(b.bench, c)
		if r := b.run("verify", c); r.code != 0 {
			b.Errorf("verify %s: %+v", c, r)
		}
	}
	if !bytes.Equal(b.content("disk", len(b.disk)), b.disk) {
		b.Error("the disk is not what it was")
	}
}

// TestTroubleGuest has credentials that may only read.
func TestTroubleGuest(t *testing.T) {
	t.Parallel()
	b := newTroubled(t)
	was := map[string]map[string]string{}
	for _, c := range []string{"disk", "kid", "old"} {
		allow(t, b.bench, c, "other:guest")
		was[c] = b.items(c)
	}
	b.as("other:guest", "pass")
	for _, d := range deeds {
		if r := b.run(b.words(d)...); !d.reads {
			b.failed(d, r, d.about+": ", "another account's", "permission denied")
		} else if r.code != 0 {
			t.Errorf("%s: %+v", d.args, r)
		}
	}
	b.fails(1, []string{"disk is not locked"}, "unlock", "disk")
	for c, items := range was {
		if !maps.Equal(b.items(c), items) {
			t.Errorf("%s has other metadata", c)
		}
	}
	b.as("test:tester", "testing")
	b.sound()
}

// TestTroubleFull meets a quota, and does the same when there is room again.
func TestTroubleFull(t *testing.T) {
	t.Parallel()
	b := newTroubled(t)
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == http.MethodPut && r.Object != "" {
			return &devswift.Action{Status: http.StatusRequestEntityTooLarge, Body: "Upload exceeds quota."}
		}
		return nil
	})
	for _, d := range deeds {
		if !d.free {
			b.failed(d, b.run(b.words(d)...), "a quota is used up", "run the same command again")
		}
	}
	b.swift.SetFault(nil)
	b.sound()
	for _, d := range deeds {
		if r := b.run(b.words(d)...); r.code != 0 {
			t.Errorf("%s: %+v", d.args, r)
		}
	}
}

// TestTroubleAway has a cloud that does not answer.
func TestTroubleAway(t *testing.T) {
	t.Parallel()
	b := newTroubled(t)
	b.swift.SetFault(devswift.Rules(devswift.Rule{Action: devswift.Action{Drop: true}}))
	b.pace.contact.Timeout, b.pace.work.Timeout = time.Second, time.Second
	var all sync.WaitGroup
	for _, d := range deeds {
		all.Go(func() { b.failed(d, b.run(b.words(d)...), "the connection was closed before an answer came") })
	}
	all.Wait()
	b.swift.SetFault(nil)
	b.pace = quick
	b.sound()
}

// TestTroubleOther is told another container, and one that does not exist.
func TestTroubleOther(t *testing.T) {
	t.Parallel()
	b := newTroubled(t)
	b.create("foreign")
	b.put("foreign", "holiday.jpg", []byte("x"))
	was := b.items("foreign")
	for _, d := range deeds {
		fresh := strings.HasPrefix(d.about, "new")
		for name, said := range map[string]string{"foreign": "foreign hasn't been setup", "absent": "absent doesn't exist"} {
			other := d
			other.args = strings.ReplaceAll(d.args, " "+d.about, " "+name)
			switch {
			case fresh && name == "absent", strings.HasPrefix(d.args, "list") && name == "foreign":
				continue
			case fresh:
				said = "foreign"
			}
			b.failed(other, b.run(b.words(other)...), said)
		}
	}
	if !maps.Equal(b.items("foreign"), was) || !slices.Equal(b.names("foreign", ""), []string{"holiday.jpg"}) {
		t.Error("the other container was changed")
	}
	b.gone("absent")
	b.sound()
}

// interruptAt runs the program and interrupts it at a request, of which the first is 1.
// It returns how many came.
func (b *troubled) interruptAt(at int64, args ...string) (result, int64) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var n atomic.Int64
	b.swift.SetFault(func(*devswift.Request) *devswift.Action {
		if n.Add(1) == at {
			cancel()
		}
		return nil
	})
	defer b.swift.SetFault(nil)
	return b.runContext(ctx, args...), n.Load()
}

// TestTroubleInterrupted ends each verb at one of its requests, and runs it again.
func TestTroubleInterrupted(t *testing.T) {
	t.Parallel()
	for _, at := range []int64{4, 9} {
		t.Run(itoa(int(at)), func(t *testing.T) {
			t.Parallel()
			b := newTroubled(t)
			for _, d := range deeds {
				r, n := b.interruptAt(at, b.words(d)...)
				switch {
				case r.code == 0 && (n < at+2 || d.whole || d.about == "new3"): // it had done everything by then
					continue
				case d.reads || d.free && d.about == "disk":
					b.failed(d, r, ": interrupted")
				case d.about == "new2": // upload tells more, when there is something to go on from
					b.failed(d, r, ": interrupted")
				default:
					b.failed(d, r, ": interrupted", "run the same command again")
				}
				checkUnlocked(b.bench, "disk")
				if r := b.run(b.words(d)...); r.code != 0 {
					t.Errorf("%s: at request %d, and again: %+v", d.args, at, r)
				}
			}
			b.ok("unlock", "disk")
			for _, c := range []string{"disk", "old", "new1", "new2", "new3", "new4"} {
				if r := b.run("verify", c); r.code != 0 {
					t.Errorf("verify %s: %+v", c, r)
				}
			}
		})
	}
}

// fullDisk takes no byte.
type fullDisk struct{ err error }

func (f fullDisk) Write([]byte) (int, error) { return 0, f.err }

// TestTroubleOutput has nowhere to print to: what was asked for is done, and the
// exit status tells that it was not said.
func TestTroubleOutput(t *testing.T) {
	t.Parallel()
	b := newTroubled(t)
	for _, c := range []struct {
		err  error
		says string
	}{{syscall.ENOSPC, program + ": no space left on device\n"}, {syscall.EPIPE, ""}, {errors.New("torn"), program + ": torn\n"}} {
		for _, args := range []string{
			"list disk", "list disk --json", "list -s disk", "info disk", "info disk --json", "snapshots disk", "diff disk@a disk", "verify disk",
			"lock disk", "unlock disk", "snapshot disk c", "snapshot --delete disk c",
		} {
			var errs bytes.Buffer
			code := b.pace.run(t.Context(), append([]string{"--secrets", b.secrets}, strings.Fields(args)...), strings.NewReader(""), fullDisk{c.err}, &errs, func(string) string { return "" })
			if code != exitFailed || errs.String() != c.says {
				t.Errorf("%s, %v: exit status %d, %q", args, c.err, code, errs.String())
			}
		}
	}
	b.sound()
}
