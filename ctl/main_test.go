// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"swiftnbd/internal/config"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/volume"
)

// quick is the pace of most tests: failures that are tried again fail sooner.
var quick = func() pace {
	p := usual
	p.contact = store.Policy{Timeout: 3 * time.Second, Attempt: 3 * time.Second, Base: time.Millisecond, Max: 20 * time.Millisecond}
	p.work = p.contact
	p.work.Timeout, p.work.Attempt = 10*time.Second, 10*time.Second
	p.verify = 100 * time.Millisecond
	p.setup = 50 * time.Millisecond
	return p
}()

// TestMain lets more tests run at once than there are processors, unless -parallel
// says otherwise: they wait more than they work.
func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", itoa(max(4, runtime.GOMAXPROCS(0))))
	}
	// Under nohup, or in the background of a script, we ignore these, and a program
	// that we start would do so too.
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGHUP} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
	code := m.Run()
	if binaryDir != "" {
		_ = os.RemoveAll(binaryDir)
	}
	os.Exit(code)
}

// bench is a Swift, mostly an embedded one, and a secrets file for it.
type bench struct {
	*testing.T
	swift   *devswift.Server // nil where it is a real one
	auth    string           // the authentication URL
	login   config.Login
	secrets string // the secrets file's path
	env     map[string]string
	client  *swiftstore.Client // of store; nil until asked for
	term    time.Duration      // of the leases of open; 0: 30 s
	pace    pace               // of run
}

// newBench starts a Swift, and writes a secrets file with these containers.
func newBench(t *testing.T, o devswift.Options, containers ...string) *bench {
	t.Helper()
	s, err := devswift.New(o)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		server.CloseClientConnections()
		s.Close()
		server.Close()
	})
	b := &bench{T: t, pace: quick, swift: s, auth: server.URL + "/auth/v1.0", secrets: filepath.Join(t.TempDir(), "secrets.conf")}
	b.login = config.Login{AuthURL: b.auth, Version: 1, Username: "test:tester", Password: "testing"}
	text := "[DEFAULT]\nauthurl = " + b.auth + "\nusername = test:tester\npassword = testing\n"
	for _, c := range containers {
		text += "[" + c + "]\n"
	}
	b.writeSecrets(text)
	return b
}

func (b *bench) writeSecrets(text string) {
	b.Helper()
	if err := os.WriteFile(b.secrets, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Chmod(b.secrets, 0o600); err != nil { // an older one's mode stays
		b.Fatal(err)
	}
}

// result is how a run of the tool ended.
type result struct {
	code     int
	out, err string
}

// run runs the tool as in a pipe.
func (b *bench) run(args ...string) result {
	b.Helper()
	return b.runContext(b.Context(), args...)
}

func (b *bench) runContext(ctx context.Context, args ...string) result {
	b.Helper()
	return b.runWith(ctx, strings.NewReader(""), args...)
}

func (b *bench) runWith(ctx context.Context, stdin io.Reader, args ...string) result {
	b.Helper()
	var out, errs bytes.Buffer
	env := func(name string) string { return b.env[name] }
	code := b.pace.run(ctx, append([]string{"--secrets", b.secrets}, args...), stdin, &out, &errs, env)
	said := errs.String()
	if b.swift == nil {
		// A real one on a busy machine may be late, and that is no fault.
		said = regexp.MustCompile("(?m)^.*; trying again\n").ReplaceAllString(said, "")
	}
	return result{code, out.String(), said}
}

// ok runs the tool, which has to succeed without a word on standard error, and
// returns its output.
func (b *bench) ok(args ...string) string {
	b.Helper()
	r := b.run(args...)
	if r.code != 0 || r.err != "" {
		b.Fatalf("%q: exit status %d, %s", args, r.code, r.err)
	}
	return r.out
}

// fails runs the tool, which has to fail with this status and one line that
// contains each of the words, and returns the line.
func (b *bench) fails(code int, words []string, args ...string) string {
	b.Helper()
	r := b.run(args...)
	line, hint, _ := strings.Cut(strings.TrimSuffix(r.err, "\n"), "\n")
	if r.code != code {
		b.Errorf("%q: exit status %d, want %d: %s", args, r.code, code, r.err)
	}
	if !strings.HasPrefix(line, "swiftnbd-ctl: ") || (hint != "") != (code == exitUsage) || strings.Contains(hint, "\n") {
		b.Errorf("%q: standard error is %q", args, r.err)
	}
	for _, w := range words {
		if !strings.Contains(line, w) {
			b.Errorf("%q: %q lacks %q", args, line, w)
		}
	}
	return line
}

// store returns a container for a test to look into.
func (b *bench) store(name string) store.Store {
	b.Helper()
	if b.client == nil {
		c, err := swiftstore.Dial(swiftstore.Options{Login: b.login})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(c.Close)
		b.client = c
	}
	return b.client.Container(name)
}

// create makes containers that are not set up.
func (b *bench) create(names ...string) {
	b.Helper()
	for _, name := range names {
		if _, err := b.store(name).CreateContainer(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
	}
}

// put stores an object.
func (b *bench) put(container, name string, data []byte) {
	b.Helper()
	sum := md5.Sum(data)
	if err := b.store(container).Put(b.Context(), name, data, store.ETag(hex.EncodeToString(sum[:]))); err != nil {
		b.Fatal(err)
	}
}

// items returns a container's metadata.
func (b *bench) items(container string) map[string]string {
	b.Helper()
	md, err := b.store(container).Metadata(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return md.Items
}

// setItem sets one item of a container's metadata.
func (b *bench) setItem(container, key, value string) {
	b.Helper()
	if err := b.store(container).SetMetadata(b.Context(), map[string]string{key: value}); err != nil {
		b.Fatal(err)
	}
}

// writes counts the requests that change something, by method and path, since
// the Swift was started.
func (b *bench) writes() int {
	n := 0
	for _, r := range b.swift.Requests() {
		if r.Method == http.MethodPut || r.Method == http.MethodPost || r.Method == http.MethodDelete {
			n++
		}
	}
	return n
}

// unchanged fails if requests changed something since there were before of them.
func (b *bench) unchanged(before int) {
	b.Helper()
	if n := b.writes(); n != before {
		b.Errorf("%d requests changed something", n-before)
	}
}

// refusal is what the tool is asked and does not do.
type refusal struct {
	code  int
	words string // separated by "|"
	args  string // separated by spaces; "''" is an empty one
}

// refused runs the tool, which has to fail as each of the list says. The first
// arguments are the same for all.
func (b *bench) refused(list []refusal, first ...string) {
	b.Helper()
	for _, r := range list {
		args := strings.Fields(r.args)
		for i, a := range args {
			if a == "''" {
				args[i] = ""
			}
		}
		b.fails(r.code, strings.Split(r.words, "|"), slices.Concat(first, args)...)
	}
}

// TestExitStatus is the table of what is asked and how it ends.
func TestExitStatus(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "absent", "plain")
	b.ok("setup", "disk", "16")
	b.create("plain")
	before := b.writes()
	b.refused([]refusal{
		{2, "no command given", ""},
		{2, `unknown command "lst" (did you mean list?)`, "lst"},
		{2, `unknown command "lst" (did you mean list?)`, "help lst"},
		{2, `unknown command "nonsense"`, "nonsense"},
		{2, "unknown flag: --nonsense", "list --nonsense"},
		{2, "unknown shorthand flag: 'x'", "-x list"},
		{2, "--simple-output and --json", "list -s --json"},
		{2, "flag needs an argument", "list --auth-url"},
		{2, "--auth-url|does not begin with http://", "-a example.com list"},
		{2, "--keystone-endpoint|private", "-k --keystone-endpoint-type private list"},
		{2, "CONTAINER is missing", "lock"},
		{2, "CONTAINER is missing", "unlock"},
		{2, "CONTAINER is missing", "delete"},
		{2, "CONTAINER and FILE is missing", "download"},
		{2, "FILE is missing", "download disk"},
		{2, `"extra" is one argument too many`, "lock disk extra"},
		{2, `"extra" is one argument too many`, "setup disk 1 extra"},
		{2, "CONTAINER is missing", "setup"},
		{2, "OBJECTS is missing|--size", "setup disk"},
		{2, "OBJECTS and --size exclude each other", "setup disk 5 --size 1M"},
		{2, `not "10G"|--size`, "setup disk 10G"},
		{2, `not "many"`, "setup disk many"},
		{2, "at least 1", "setup disk 0"},
		{2, "2^63-1", "setup disk 9223372036854775807"},
		{2, "--object-size|unknown unit", "setup disk 5 --object-size 1Q"},
		{2, "object size|at least 1 byte", "setup disk 5 --object-size 0"},
		{2, "object size|at most", "setup disk 5 --object-size 2G"},
		{2, "--size|no bytes", "setup disk --size 0"},
		{2, "--json and standard output", "download disk - --json"},
		{2, "--connections", "download disk file --connections 0"},
		{2, "--connections", "delete disk --connections 100000"},
		{2, "invalid argument", "delete disk --connections some"},
		{2, `"some"|must be a whole number, not less than 1 and not more than 256`, "delete disk --connections some"},
		{2, `"3"|"--yes"|takes no value`, "delete disk --yes=3"},

		{1, "disk has already been setup", "setup disk 5"},
		{1, "nowhere not found in", "setup nowhere 5"},
		{1, "nowhere not found in", "lock nowhere"},
		{1, "nowhere not found in", "unlock nowhere"},
		{1, "nowhere not found in", "download nowhere file"},
		{1, "nowhere not found in", "delete nowhere --yes"},
		{1, "nowhere not found in", "list nowhere"},
		{1, "absent doesn't exist|auth-url: " + b.auth, "lock absent"},
		{1, "absent doesn't exist", "unlock absent"},
		{1, "absent doesn't exist", "download absent file"},
		{1, "absent doesn't exist", "delete absent --yes"},
		{1, "absent doesn't exist", "list"},
		{1, "plain hasn't been setup", "lock plain"},
		{1, "plain hasn't been setup", "unlock plain"},
		{1, "plain hasn't been setup", "download plain file"},
		{1, "plain hasn't been setup", "delete plain --yes"},
		{1, "disk is not locked, nothing to do", "unlock disk"},
		{1, "--yes", "delete disk"},
		{1, "slash", "lock a/b"},
		{1, "needs a name", "lock ''"},
		{1, "no such file", "--secrets /nonexistent/secrets.conf list"},
		{1, "is a directory", "--secrets / list"},
		{1, "no such file or directory", "download disk /nonexistent/file"},
		{1, "is a directory", "download disk /"},
		{2, "FILE is empty", "download disk ''"},
		{2, "FILE is empty", "upload '' disk"},
		{2, "FILE is empty", "upload '' --onto disk"},
		{1, "certificate", "--cacert /dev/null lock disk"},
	})
	b.unchanged(before)

	for _, args := range [][]string{{"--help"}, {"help"}, {"help", "setup"}, {"list", "-h"}, {"--version"}, {"completion", "bash"}, {"list", "disk"}} {
		if b.ok(args...) == "" {
			t.Errorf("%q printed nothing", args)
		}
	}
	if out := b.ok("--version"); !regexp.MustCompile(`^swiftnbd-ctl \S+\n$`).MatchString(out) {
		t.Errorf("--version: %q", out)
	}
}

// TestGlobalFlags: before and behind the verb, with and without the file's
// own settings.
func TestGlobalFlags(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "4")
	b.writeSecrets("[disk]\nusername = test:tester\npassword = testing\n")
	b.fails(1, []string{b.secrets, "[disk]", "authurl"}, "list")
	want := "disk objects=4 size=65536 (version=1, unlocked)\n"
	for _, args := range [][]string{
		{"-a", b.auth, "list", "-s"}, {"list", "-s", "-a", b.auth}, {"--auth-url=" + b.auth, "list", "--simple-output"}, {"list", "--auth-url", b.auth, "-s"},
	} {
		if out := b.ok(args...); out != want {
			t.Errorf("%q: %q", args, out)
		}
	}
	r := b.run("-a", b.auth, "--keystone-region-name", "R", "list", "-s")
	if r.code != 0 || r.out != want || !strings.Contains(r.err, "--keystone-region has no effect") {
		t.Errorf("%+v", r)
	}

	if err := os.Chmod(b.secrets, 0o644); err != nil {
		t.Fatal(err)
	}
	r = b.run("-a", b.auth, "list", "-s")
	if r.code != 0 || r.out != want || r.err != "swiftnbd-ctl: warning: "+b.secrets+" is world readable, please consider changing its permissions to 0600\n" {
		t.Errorf("world-readable: %+v", r)
	}
	b.writeSecrets("[disk]\nusername = u\npasswort = p\n")
	b.fails(1, []string{b.secrets + ":3: [disk] passwort: unknown key"}, "lock", "disk")
}

// TestEnvironment: without a secrets file the environment alone serves.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{})
	b.env = map[string]string{"ST_AUTH": b.auth, "ST_USER": "test:tester", "ST_KEY": "testing"}
	b.ok("setup", "disk", "4")
	if out := b.ok("list", "-s", "disk"); out != "disk objects=4 size=65536 (version=1, unlocked)\n" {
		t.Error(out)
	}
	b.env["ST_KEY"] = "wrong"
	b.fails(1, []string{"disk", "authentication failed", "the environment", "test:tester"}, "lock", "disk")
}

// TestVerbose: -v logs the requests, and not what must stay secret.
func TestVerbose(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "4")
	r := b.run("-v", "lock", "disk")
	if r.code != 0 || !strings.Contains(r.err, "SET METADATA") || !strings.Contains(r.err, "container=disk") {
		t.Errorf("%+v", r)
	}
	if strings.Contains(r.err, "testing") || strings.Contains(r.err, "AUTH_tk") {
		t.Errorf("secret in %s", r.err)
	}
}

// TestCompletion completes commands, flags and the secrets file's containers.
func TestCompletion(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk0", "disk1", "other")
	for args, want := range map[string]string{
		"lock d":         "disk0\ndisk1\n:4\n",
		"delete ":        "disk0\ndisk1\nother\n:4\n",
		"list disk1":     "disk1\n:4\n",
		"lock disk0 ":    ":4\n",
		"download oth":   "other\n:4\n",
		"download disk0": "disk0\n:4\n",
	} {
		words := append([]string{"__complete"}, strings.Split(args, " ")...)
		r := b.run(words...)
		if r.code != 0 || r.out != want {
			t.Errorf("%q: %+v", args, r)
		}
	}
	clouds := filepath.Join(t.TempDir(), "clouds.yaml")
	if err := os.WriteFile(clouds, []byte("clouds: {here: {}, there: {}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.env = map[string]string{"OS_CLIENT_CONFIG_FILE": clouds}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--cloud", ""}, "here\nthere\n:4\n"},
		{[]string{"list", "--endpoint-type", ""}, "public\ninternal\nadmin\n:4\n"},
		{[]string{"upload", "-O", ""}, "raw\nqcow2\nvmdk\nvdi\nvhdx\n:4\n"},
		{[]string{"download", "-O", ""}, "raw\nqcow2\nincrement\n:4\n"},
		{[]string{"setup", "--format", ""}, "1\n2\n:4\n"},
	} {
		if r := b.run(append([]string{"__complete"}, c.args...)...); r.code != 0 || r.out != c.want {
			t.Errorf("%q: %+v", c.args, r)
		}
	}
	// Swift has the names of the snapshots.
	b.ok("setup", "disk0", "--size", "1M", "--format", "2")
	for _, snap := range []string{"monday", "tuesday", "moon"} {
		b.ok("snapshot", "disk0", snap)
	}
	b.ok("setup", "other", "--size", "1M")
	for args, want := range map[string]string{
		"download disk0@mo":                 "disk0@monday\ndisk0@moon\n:4\n",
		"clone disk0@":                      "disk0@monday\ndisk0@tuesday\ndisk0@moon\n:4\n",
		"clone disk0@monday ":               ":4\n",
		"diff disk0@monday disk0@t":         "disk0@tuesday\n:4\n",
		"diff disk0@monday disk0 ":          ":4\n",
		"revert disk0 ":                     "monday\ntuesday\nmoon\n:4\n",
		"revert di":                         "disk0\ndisk1\n:4\n",
		"snapshot disk0 m":                  ":4\n", // a new one
		"snapshot --delete disk0 m":         "monday\nmoon\n:4\n",
		"download disk0@moon file --since ": "monday\ntuesday\nmoon\n:4\n",
		"download --since ":                 ":4\n",
		"download disk0@moon ":              ":0\n",
		"download other@":                   ":4\n", // of version 1
		"download disk1@":                   ":4\n", // not set up
	} {
		if r := b.run(append([]string{"__complete"}, strings.Split(args, " ")...)...); r.code != 0 || r.out != want {
			t.Errorf("%q: %+v", args, r)
		}
	}
	if r := b.run("__complete", "download", "disk0", ""); r.out != ":0\n" {
		t.Errorf("a file behind download: %+v", r)
	}
}

// TestFaultsOnTheWay: what may pass is tried again and mentioned once.
func TestFaultsOnTheWay(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "4")
	b.swift.SetFault(devswift.Rules(devswift.Rule{Prefix: "/v1/", Times: 2, Action: devswift.Action{Status: 503}}))
	r := b.run("list", "-s")
	if r.code != 0 || r.out != "disk objects=4 size=65536 (version=1, unlocked)\n" || strings.Count(r.err, "trying again") != 1 {
		t.Errorf("%+v", r)
	}
	b.swift.SetFault(devswift.Rules(devswift.Rule{Prefix: "/v1/", Action: devswift.Action{Status: 503}}))
	b.pace.contact.Timeout = time.Second
	r = b.run("list", "-s")
	if r.code != 1 || r.out != "" || !strings.Contains(r.err, "disk: ") || !strings.Contains(r.err, "503") {
		t.Errorf("%+v", r)
	}
}

// fill sets up a disk of objects chunks of size bytes and writes some of them;
// it returns the disk's content.
func (b *bench) fill(name string, objects, size int, chunks map[int][]byte) []byte {
	b.Helper()
	b.ok("setup", name, fmt.Sprint(objects), "--object-size", fmt.Sprint(size))
	// Somebody has used it: nothing is known of the chunks any more.
	b.setItem(name, volume.KeyLast, "127.0.0.1:1@1")
	disk := make([]byte, objects*size)
	for i, data := range chunks {
		b.put(name, fmt.Sprintf("disk.part/%08d", i), data)
		copy(disk[i*size:], data)
	}
	return disk
}
