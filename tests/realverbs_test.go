// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

// TestResumeCut has the network go away in the midst of a download, which is then
// interrupted, and goes on later.
func TestResumeCut(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		const size = 40 << 20 // a download is kept from 16 MiB on
		name, params := logVolume(t, c, size)
		data := harness.Random(5, size)
		n := serve(t, params...)
		harness.Upload(t, n.URI, data)
		n.Stop(t)

		wire := harness.NewWire(t, c)
		image := filepath.Join(harness.TempDir(t), "image")
		wire.CutAt(1000, func(r *harness.Request) bool {
			var st syscall.Stat_t
			return r.Method == http.MethodGet && strings.Contains(r.Path, "/"+name+"/swiftnbd/log/") &&
				syscall.Stat(image+".partial", &st) == nil && st.Blocks*512 >= 24<<20
		})
		args := []string{"--secrets", harness.Secrets(t, wire.Cloud.Section(name)), "download", "-q", "--connections", "1", name, image}
		p := harness.Start(t, harness.Command(t, harness.Built(t, "swiftnbd-ctl"), args...))
		harness.Eventually(t, "the wire is cut", wire.IsCut)
		p.Signal(t, syscall.SIGINT)
		time.Sleep(time.Second)
		wire.Mend() // it gives the lock back
		if status := p.Wait(t); status != 1 || !strings.Contains(p.Output(), "run the same command with --resume") {
			t.Fatalf("status %d\n%s", status, p.Output())
		}
		partial, err := os.Stat(image + ".partial")
		if err != nil || partial.Size() == 0 {
			t.Fatalf("nothing is kept: %v", err)
		}
		var out struct {
			Resumed int64 `json:"resumed_at"`
			Fetched int64
		}
		text := ctl(t, params, "download", "-q", "--json", "--resume", name, image)
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the image has other bytes, or %v", err)
		}
		if out.Resumed < 16<<20 || out.Fetched != size-out.Resumed {
			t.Errorf("it did not go on where it was: %s", text)
		}
	})
}

// TestUploadKilled kills an upload to a new disk at each of the requests with which it
// changes something. It has not noted yet how far it is, and the same command uploads
// all of it, without --force. If somebody has written to the disk since, it is refused.
func TestUploadKilled(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	account := c.Account(t)
	for format, size := range map[string]int{"1": 3 << 20, "2": 10 << 20} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			image := filepath.Join(harness.TempDir(t), "image")
			data := harness.Random(9, size)
			if err := os.WriteFile(image, data, 0o600); err != nil {
				t.Fatal(err)
			}
			begun, written := 0, false
			for n := int32(1); ; n++ {
				name := fmt.Sprintf("%s-%d", harness.Name(t), n)
				t.Cleanup(func() { account.Remove(t, name) })
				wire := harness.NewWire(t, c)
				var changes atomic.Int32
				wire.CutAt(0, func(r *harness.Request) bool {
					return r.Method != http.MethodGet && r.Method != http.MethodHead && changes.Add(1) >= n
				})
				upload := []string{"upload", "-q", "--format", format, image, name}
				args := append([]string{"--secrets", harness.Secrets(t, wire.Cloud.Section(name))}, upload...)
				var said bytes.Buffer
				cmd := exec.CommandContext(t.Context(), harness.Built(t, "swiftnbd-ctl"), args...)
				cmd.Stdout, cmd.Stderr = &said, &said
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- cmd.Wait() }()
				harness.Eventually(t, "the wire is cut, or the upload ends", func() bool { return wire.IsCut() || len(ended) > 0 })
				if !wire.IsCut() {
					if err := <-ended; err != nil || begun < 2 || !written {
						t.Errorf("%v, %d uploads were killed that had begun, and to one of them was written: %v\n%s", err, begun, written, &said)
					}
					return
				}
				_ = cmd.Process.Kill() // the answer to its last request may just have arrived
				<-ended
				wire.Break()

				secrets := harness.Secrets(t, c.Section(name))
				params := []string{name, "secrets=" + secrets}
				again := func() harness.Result {
					return harness.Run(t, harness.Built(t, "swiftnbd-ctl"), append([]string{"--secrets", secrets}, upload...)...)
				}
				harness.Run(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", secrets, "unlock", name) // if it has come to that
				if status, _, _ := account.Do(t, "HEAD", "/"+name, nil, nil); status == 204 && strings.HasPrefix(account.Meta(t, name)["upload"], "begun ") {
					begun++
					if !written {
						written = true
						s := serve(t, params...)
						harness.Upload(t, s.URI, data[:4096])
						s.Stop(t)
						if r := again(); r.Status != 1 || !strings.HasSuffix(r.Stderr, name+" has data: --force replaces it\n") {
							t.Errorf("killed at change %d, and written to: status %d, %s", n, r.Status, r.Stderr)
						}
						continue
					}
				}
				// The last change takes the record away: it may have arrived, and then all is there.
				if r := again(); r.Status != 0 && (begun < 2 || !strings.HasSuffix(r.Stderr, " has data: --force replaces it\n")) {
					t.Errorf("killed at change %d: status %d, %s", n, r.Status, r.Stderr)
					continue
				}
				read := filepath.Join(filepath.Dir(image), "read")
				ctl(t, params, "download", "-q", name, read)
				if got, err := os.ReadFile(read); err != nil || !bytes.Equal(got, data) {
					t.Errorf("killed at change %d: the disk has other bytes than the image, or %v", n, err)
				}
				if record := account.Meta(t, name)["upload"]; record != "" {
					t.Errorf("killed at change %d: the record stays: %q", n, record)
				}
			}
		})
	}
}

// benchAndTop runs bench on a container, and top on a server of it that has just
// written.
func benchAndTop(t *testing.T, account *harness.Account, name string, params []string) {
	t.Helper()
	text := ctl(t, params, "bench", name, "--bytes", "20M", "--time", "1", "--json")
	if !json.Valid([]byte(text)) {
		t.Errorf("bench says\n%s", text)
	}
	if status, _, _ := account.Do(t, "HEAD", "/"+name+".swiftnbd-bench", nil, nil); status != 404 {
		t.Errorf("HEAD of the container of bench says %d", status)
	}
	path := filepath.Join(harness.TempDir(t), "counters")
	n := serve(t, append(params[:2:2], "metrics=unix:"+path)...)
	client := act(t, n.URI, `
import time
h.pwrite(b"x" * 65536, 0)
h.flush()
reached("there")
while not os.path.exists(os.path.join(DIR, "go")):
    h.pread(4096, 0)
    time.sleep(0.01)
`)
	client.reached("there")
	text = ctl(t, params, "top", "unix:"+path, "--once", "--interval", "0.5", "--json")
	client.tell("go")
	client.done()
	var l topLine
	if err := json.Unmarshal([]byte(text), &l); err != nil || len(l.Disks) != 1 || l.Disks[0].Container != name || l.Disks[0].Reads == 0 {
		t.Errorf("%v: top says\n%s", err, text)
	}
	n.Stop(t)
	unlocked(t, account, name)
}

// TestKeystoneBenchAndTop does so on the real Swift with Keystone's login.
func TestKeystoneBenchAndTop(t *testing.T) {
	t.Parallel()
	k := keystone(t)
	account, name := k.Account(t), harness.Name(t)
	account.SetupLog(t, name, logSize)
	benchAndTop(t, account, name, []string{name, "secrets=" + harness.Secrets(t, k.PasswordSection(name))})
}

// TestRGWVerbs does on Ceph's gateway what version 2 of the format has beyond a
// disk: snapshots by nbdkit and without it, going back, clones, increments, other
// sizes, differences, and a disk of version 1 that is converted. Each is compared
// byte for byte.
func TestRGWVerbs(t *testing.T) {
	t.Parallel()
	c := harness.RGW(t)
	account, name := c.Account(t), harness.Name(t)
	web, backup, old := name+"-web", name+"-copy", name+"-old"
	var sections []string
	for _, name := range []string{name, web, backup, old} {
		sections = append(sections, c.Section(name))
		t.Cleanup(func() { account.Remove(t, name) })
	}
	params := []string{name, "secrets=" + harness.Secrets(t, sections...)}
	dir := harness.TempDir(t)
	is := func(disk string, want []byte) {
		t.Helper()
		image := filepath.Join(dir, "image")
		ctl(t, params, "download", "-q", disk, image)
		if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s has other bytes, or %v", disk, err)
		}
	}
	first, second := harness.Random(1, logSize), harness.Random(2, logSize)
	ctl(t, params, "setup", name, "--size", fmt.Sprint(logSize), "--format", "2")
	n := serve(t, append(params[:2:2], "lease=6")...)
	harness.Upload(t, n.URI, first)
	ctl(t, params, "snapshot", name, "a") // nbdkit makes it
	harness.Nbdsh(t, n.URI, `h.pwrite(b"y" * 300000, 1000000); h.trim(65536, 262144); h.flush()`)
	copy(second, first)
	copy(second[1000000:], bytes.Repeat([]byte("y"), 300000))
	clear(second[262144:][:65536])
	n.Stop(t)
	ctl(t, params, "snapshot", name, "b")
	if out := ctl(t, params, "snapshots", name); !strings.HasPrefix(out, "a ") || !strings.Contains(out, "\nb ") {
		t.Errorf("snapshots:\n%s", out)
	}
	is(name+"@a", first)
	is(name, second)
	if out := ctl(t, params, "diff", name+"@a", name+"@b"); !strings.Contains(out, " data\n") || !strings.Contains(out, " zero\n") {
		t.Errorf("diff:\n%s", out)
	}

	increment := filepath.Join(dir, "increment")
	ctl(t, params, "download", "-q", name+"@a", increment, "-O", "increment")
	ctl(t, params, "upload", "-q", increment, "--onto", backup)
	os.Remove(increment)
	ctl(t, params, "download", "-q", name+"@b", increment, "-O", "increment", "--since", "a")
	ctl(t, params, "upload", "-q", increment, "--onto", backup)
	is(backup, second)
	is(backup+"@a", first)

	ctl(t, params, "clone", name+"@a", web)
	r := harness.Run(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", strings.TrimPrefix(params[1], "secrets="), "snapshot", "--delete", name, "a")
	if r.Status != 1 || !strings.Contains(r.Stderr, "snapshot a is needed by its clone "+web) {
		t.Errorf("of a snapshot with a clone: status %d: %s", r.Status, r.Stderr)
	}
	is(web, first)
	ctl(t, params, "flatten", "-q", web)
	is(web, first)
	ctl(t, params, "revert", "-y", name, "a")
	is(name, first)
	ctl(t, params, "revert", "-y", name, "b")
	ctl(t, params, "snapshot", "--delete", name, "a")
	ctl(t, params, "resize", name, fmt.Sprint(2*logSize))
	is(name, append(bytes.Clone(second), make([]byte, logSize)...))
	ctl(t, params, "resize", name, fmt.Sprint(logSize/2), "--force")
	is(name, second[:logSize/2])

	account.Create(t, old, map[string]string{
		harness.MetaPrefix + "Version": "1", harness.MetaPrefix + "Objects": "32", harness.MetaPrefix + "Object-Size": "65536",
	})
	account.Write011(t, old, map[int][]byte{1: first[:65536], 31: first[65536:131072]})
	want := make([]byte, 32*65536)
	copy(want[65536:], first[:65536])
	copy(want[31*65536:], first[65536:131072])
	ctl(t, params, "convert", old)
	is(old, want)
	ctl(t, params, "flatten", "-q", old)
	is(old, want)

	benchAndTop(t, account, web, []string{web, params[1]})
	for _, disk := range []string{web, name, backup, old} {
		if out := ctl(t, params, "verify", disk); !strings.Contains(out, "it is clean") {
			t.Errorf("verify says\n%s", out)
		}
		ctl(t, params, "delete", "-q", "-y", disk)
		if status, _, _ := account.Do(t, "HEAD", "/"+disk, nil, nil); status != 404 {
			t.Errorf("after delete HEAD of %s says %d", disk, status)
		}
	}
}
