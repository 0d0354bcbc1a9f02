// SPDX-License-Identifier: MIT

package tests

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

// information is what `swiftnbd-ctl info --json` says of a lock.
type information struct {
	Container  string
	ReadOnly   bool `json:"read_only"`
	Lock       string
	Holder     *string
	Since      *time.Time
	Lease      *int64
	Until      *time.Time `json:"lease_until"`
	Expired    bool       `json:"lease_expired"`
	Fencing    string
	Why        *string `json:"fencing_reason"`
	Map        string
	MapSession *string `json:"map_session"`
	Known      *int64  `json:"map_known"`
	Holes      *int64  `json:"map_holes"`
	Last       *string
}

// String tells what is the same in each run: the numbers of processes and the
// times are left out.
func (i information) String() string {
	is := func(set bool, what string) string {
		if set {
			return what
		}
		return "no " + what
	}
	s := []string{"lock " + i.Lock, is(i.Holder != nil, "holder"), is(i.Since != nil, "since"), is(i.Until != nil, "until"),
		is(i.Expired, "expired"), "fencing " + i.Fencing, "map " + i.Map, is(i.Last != nil, "last")}
	if i.Lease != nil {
		s = append(s, fmt.Sprintf("number %d", *i.Lease))
	}
	if i.Known != nil && i.Holes != nil {
		s = append(s, fmt.Sprintf("%d known, %d holes", *i.Known, *i.Holes))
	}
	return strings.Join(s, ", ")
}

// inform returns what info says, both ways. env is the environment of a login
// without a secrets file.
func inform(t testing.TB, params, env []string) (information, string) {
	t.Helper()
	run := func(args ...string) string {
		args = append([]string{"--secrets", strings.TrimPrefix(params[1], "secrets=")}, args...)
		cmd := harness.Command(t, harness.Built(t, "swiftnbd-ctl"), args...)
		cmd.Env = append(os.Environ(), env...)
		r := harness.RunCmd(t, cmd)
		if r.Status != 0 {
			t.Fatalf("swiftnbd-ctl %v: status %d\n%s", args, r.Status, r.Stderr)
		}
		return r.Stdout
	}
	var in information
	text := run("info", "--json", params[0])
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		t.Fatalf("info --json: %v\n%s", err, text)
	}
	if in.Container != params[0] {
		t.Errorf("info --json is of %q", in.Container)
	}
	return in, run("info", params[0])
}

// wantInfo holds what info says against what it should, in both forms.
func wantInfo(t testing.TB, params []string, want string, lines ...string) information {
	t.Helper()
	in, text := inform(t, params, nil)
	if in.String() != want {
		t.Errorf("info --json says\n%s\nand should say\n%s", in, want)
	}
	for _, line := range lines {
		if !strings.Contains(text, line) {
			t.Errorf("info does not say %q:\n%s", line, text)
		}
	}
	return in
}

// TestInfo has a volume go through every state that info tells apart: set up,
// in use, left, in use by 0.11's mark only, killed with and without a lease,
// taken over, locked, unlocked, and written by 0.11.
func TestInfo(t *testing.T) {
	t.Parallel()
	forEachSwift(t, func(t *testing.T, c *harness.Cloud) {
		name, account := harness.Name(t), c.Account(t)
		params := []string{name, "secrets=" + harness.Secrets(t, c.Section(name)), "lease=5"}
		ctl(t, params, "setup", name, "8")
		t.Cleanup(func() { account.Remove(t, name) })
		wantInfo(t, params, "lock none, no holder, no since, no until, no expired, fencing available, map blank, last",
			"unlocked", "from the first session with a lease on", "nothing was ever written")

		n := serve(t, params...)
		client := act(t, n.URI, hold)
		client.reached("there")
		in := wantInfo(t, params, "lock lease, holder, since, until, no expired, fencing tempurl, map in use, last, number 1",
			"number 1, until ", "unless it is renewed", "by Swift: it refuses writes that are not signed")
		if want := fmt.Sprintf(":%d", n.Server.Pid); !strings.HasSuffix(*in.Holder, want) {
			t.Errorf("info names the holder %q, not process %s", *in.Holder, want)
		}
		if left := time.Until(*in.Until); left < -2*time.Second || left > 7*time.Second {
			t.Errorf("a lease of 5 s ends in %v", left)
		}
		until := *in.Until
		harness.Eventually(t, "the lease is renewed", func() bool {
			in, _ := inform(t, params, nil)
			return in.Until.After(until)
		})
		client.tell("go")
		client.done()
		n.Stop(t)
		in = wantInfo(t, params, "lock none, no holder, no since, no until, no expired, fencing tempurl, map saved, last, 1 known, 7 holes",
			"unlocked", "1 chunk with data, 7 holes, 0 unknown")
		if *in.MapSession != *in.Last {
			t.Errorf("the map is of %s, the last session was %s", *in.MapSession, *in.Last)
		}

		n = serve(t, append(params[:2:2], "lease=0")...)
		client = act(t, n.URI, hold)
		client.reached("there")
		const marked = "lock mark, holder, since, no until, no expired, fencing tempurl, map in use, last"
		wantInfo(t, params, marked, "mark only, which does not end by itself")
		n.Kill(t)
		wantInfo(t, params, marked)
		ctl(t, params, "unlock", name)
		wantInfo(t, params, "lock none, no holder, no since, no until, no expired, fencing tempurl, map none, last", "unlocked", "did not end well")

		n = serve(t, params...)
		act(t, n.URI, hold).reached("there")
		holder, _, _ := strings.Cut(account.Holder(t, name), "@")
		number := "number " + account.Meta(t, name)["lease"]
		n.Kill(t)
		harness.Eventually(t, "info says that the lease is over", func() bool {
			in, _ := inform(t, params, nil)
			return in.Expired
		})
		in = wantInfo(t, params, "lock lease, holder, since, until, expired, fencing tempurl, map in use, last, "+number,
			holder, "over since ", "whoever comes takes the disk over")
		if !in.Until.Before(time.Now()) {
			t.Errorf("the lease is over, and ends at %v", in.Until)
		}

		ctl(t, params, "lock", name) // takes it over, as anybody may
		in = wantInfo(t, params, "lock lease, holder, since, no until, no expired, fencing tempurl, map in use, last, "+
			"number "+account.Meta(t, name)["lease"], "ctl", "without an end")
		if *in.Holder != "ctl" || !strings.HasPrefix(*in.Last, holder) {
			t.Errorf("it is locked by %q, after %q; want ctl and %s", *in.Holder, *in.Last, holder)
		}
		ctl(t, params, "unlock", name)
		wantInfo(t, params, "lock none, no holder, no since, no until, no expired, fencing tempurl, map none, last", "unlocked")

		account.Write011(t, name, map[int][]byte{1: harness.Random(7, 65536)})
		wantInfo(t, params, "lock none, no holder, no since, no until, no expired, fencing tempurl, map none, last",
			"was not ours", "127.0.0.1:51120")
	})
}

// TestInfoFenced serves a volume after each kind of login, and has info check
// that Swift refuses writes without the lease's signature: with v1
// authentication, and with each of Keystone's.
func TestInfoFenced(t *testing.T) {
	t.Parallel()
	check := func(t *testing.T, account *harness.Account, name, section string, env []string) {
		t.Helper()
		params := []string{name, "secrets=" + harness.Secrets(t, section)}
		n := harness.Serve(t, harness.Options{Env: env, Params: params})
		client := act(t, n.URI, hold)
		client.reached("there")
		in, text := inform(t, params, env)
		if in.Lock != "lease" || in.Fencing != "tempurl" || in.Why != nil || !strings.Contains(text, "by Swift: it refuses writes that are not signed") {
			t.Errorf("the writes are not fenced by Swift:\n%s", text)
		}
		if out := n.Server.Output(); out != "" {
			t.Errorf("nbdkit has something to say:\n%s", out)
		}
		// Not by info's word alone: the holder's token does not help.
		status, _, _ := account.Do(t, "PUT", "/"+name+"/disk.part/00000000?temp_url_sig="+strings.Repeat("0", 64)+
			fmt.Sprintf("&temp_url_expires=%d", time.Now().Unix()+60), map[string]string{"X-Auth-Token": ""}, []byte("forged"))
		if status != 401 {
			t.Errorf("Swift answers %d to a forged signature; want 401", status)
		}
		client.tell("go")
		client.done()
		n.Stop(t)
	}
	forEachSwift(t, func(t *testing.T, c *harness.Cloud) {
		name, account, _ := volume(t, c)
		check(t, account, name, c.Section(name), nil)
	})
	k := keystone(t)
	for _, l := range logins(k) {
		if l.name != "password" && l.name != "environment-application-credential" {
			continue // other ways to say the same
		}
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			account, name, section := k.Account(t), harness.Name(t), ""
			account.Setup(t, name, 8, 65536)
			if l.section != nil {
				section = l.section(name)
			}
			check(t, account, name, section, l.env)
		})
	}
}

// TestInfoLog has a disk of version 2 go through the states that info tells apart:
// set up, in use, left, killed, and unlocked.
func TestInfoLog(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, account := harness.Name(t), c.Account(t)
	params := []string{name, "secrets=" + harness.Secrets(t, c.Section(name)), "lease=30"}
	ctl(t, params, "setup", "--format", "2", "--size", "1M", name)
	t.Cleanup(func() { account.Remove(t, name) })
	type logInfo struct {
		Version       int
		Lock, Opens   string
		Size          int64
		Root          *string
		Data          int64    `json:"data_objects"`
		Bytes         int64    `json:"data_bytes"`
		Live          int64    `json:"live_bytes"`
		Garbage       int64    `json:"garbage_bytes"`
		Use           float64  `json:"use_percent"`
		Amplification *float64 `json:"amplification"`
		Log           int64    `json:"log_objects"`
	}
	want := func(what, lock, opens string, live, log int64, lines ...string) (in logInfo) {
		t.Helper()
		out := ctl(t, params, "info", "--json", name)
		if err := json.Unmarshal([]byte(out), &in); err != nil {
			t.Fatalf("%s: %v\n%s", what, err, out)
		}
		if in.Version != 2 || in.Size != 1<<20 || in.Root == nil || in.Lock != lock || in.Opens != opens || in.Live != live || in.Log != log {
			t.Errorf("%s: info --json says %s", what, out)
		}
		text := ctl(t, params, "info", name)
		for _, line := range lines {
			if !strings.Contains(text, line) {
				t.Errorf("%s: info does not say %q:\n%s", what, line, text)
			}
		}
		return in
	}
	want("set up", "none", "at once", 0, 0, "unlocked")
	n := serve(t, params...)
	client := act(t, n.URI, `
h.pwrite(b"x" * 65536, 0)
h.flush()
h.pwrite(b"y" * 65536, 0)
h.flush()
reached("there")
until("go")
`)
	client.reached("there")
	// Two objects, of which the first is garbage now.
	in := want("in use", "lease", "log", 65536, 2, " % of the log", "garbage", "2.01 bytes are stored for each byte of data")
	if in.Data != 2 || in.Bytes < 2*16*4100 || in.Garbage < 16*4100 || in.Use > 50 || in.Amplification == nil || *in.Amplification < 2 {
		t.Errorf("in use: %+v", in)
	}
	client.tell("go")
	client.done()
	n.Stop(t)
	want("left", "none", "at once", 65536, 0, "unlocked", "of the map")
	n = serve(t, params...)
	act(t, n.URI, hold).reached("there")
	n.Kill(t)
	want("killed", "lease", "log", 65536, 1)
	ctl(t, params, "unlock", name)
	want("unlocked", "none", "log", 65536, 1, "unlocked", "after the map and the log were read")
}
