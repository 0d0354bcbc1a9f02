// SPDX-License-Identifier: MIT

package tests

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// make runs make in the project's directory, and returns what it printed.
func runMake(t testing.TB, args ...string) string {
	t.Helper()
	return harness.Must(t, "make", append([]string{"-C", harness.Root(t)}, args...)...)
}

// filesUnder returns the paths of the files below a directory, relative to it,
// in order.
func filesUnder(t testing.TB, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			files = append(files, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestMakeInstall installs below a DESTDIR with a space in it, and uninstalls:
// the plugin lies where nbdkit looks for it, and nothing is left behind.
func TestMakeInstall(t *testing.T) {
	m := regexp.MustCompile(`(?m)^plugindir=(.*)$`).FindStringSubmatch(harness.Must(t, "nbdkit", "--dump-config"))
	if m == nil {
		t.Fatal("nbdkit --dump-config names no plugindir")
	}
	for _, c := range []struct{ prefix, plugindir string }{{"/usr/local", m[1]}, {"/opt/swift nbd", "/opt/plugins"}} {
		dest := filepath.Join(harness.TempDir(t), "dest dir")
		args := []string{"DESTDIR=" + dest, "prefix=" + c.prefix}
		if c.plugindir != m[1] {
			args = append(args, "plugindir="+c.plugindir)
		}
		runMake(t, append([]string{"install"}, args...)...)
		got := filesUnder(t, dest)
		for _, want := range []string{
			c.plugindir + "/nbdkit-swift-plugin.so",
			c.prefix + "/bin/swiftnbd-ctl",
			c.prefix + "/bin/swiftnbd-server",
			c.prefix + "/share/doc/swiftnbd/secrets.conf.example",
			c.prefix + "/lib/systemd/system/swiftnbd@.socket",
			c.prefix + "/lib/systemd/system/swiftnbd@.service",
			c.prefix + "/lib/systemd/system/swiftnbd-attach@.service",
			c.prefix + "/lib/udev/rules.d/60-swiftnbd.rules",
			c.prefix + "/share/man/man1/swiftnbd-server.1",
			c.prefix + "/share/man/man1/nbdkit-swift-plugin.1",
			c.prefix + "/share/man/man1/swiftnbd-ctl.1",
			c.prefix + "/share/bash-completion/completions/swiftnbd-ctl",
			c.prefix + "/share/bash-completion/completions/swiftnbd-server",
			c.prefix + "/share/zsh/site-functions/_swiftnbd-ctl",
			c.prefix + "/share/fish/vendor_completions.d/swiftnbd-ctl.fish",
		} {
			if !slices.Contains(got, want[1:]) {
				t.Errorf("make install put %q, which lacks %s", got, want)
			}
		}
		plugin := filepath.Join(dest, c.plugindir, "nbdkit-swift-plugin.so")
		if out := harness.Must(t, "nbdkit", plugin, "--dump-plugin"); !strings.Contains(out, "name=swift\n") {
			t.Errorf("the installed plugin says:\n%s", out)
		}
		runMake(t, append([]string{"uninstall"}, args...)...)
		if left := filesUnder(t, dest); len(left) != 0 {
			t.Errorf("make uninstall left %q", left)
		}
	}
}

// TestMakeHelp checks that each target that help names is one.
func TestMakeHelp(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile(filepath.Join(harness.Root(t), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	out := runMake(t, "-s", "help")
	for _, target := range []string{"all", "check", "check-race", "lint", "fmt", "fuzz", "bench", "quickstart", "man",
		"install", "uninstall", "dist", "deb", "check-deb", "check-recipes", "clean", "help"} {
		if !regexp.MustCompile(`(?m)^` + target + ` +[a-z]`).MatchString(out) {
			t.Errorf("make help does not tell of %s:\n%s", target, out)
		}
		if !regexp.MustCompile(`(?m)^` + target + `:`).Match(makefile) {
			t.Errorf("there is no target %s", target)
		}
	}
}

// without returns a PATH on which there is little but these tools of the
// machine and what the test adds to the directory.
func without(t testing.TB, more ...string) (bin, path string) {
	t.Helper()
	bin = harness.TempDir(t)
	for _, name := range append(more, "bash", "sh", "make", "cat", "sort", "cut", "grep", "sed", "tr", "head", "go", "ld", "env",
		"dirname", "id", "rm", "chmod", "ln", "mktemp") {
		if err := os.Symlink(harness.Tool(t, name), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	return bin, "PATH=" + bin
}

// script writes an executable shell script.
func script(t testing.TB, path, content string) {
	t.Helper()
	harness.WriteFile(t, path, "#!/bin/sh\n"+content)
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestMakeMissing takes the compiler and nbdkit's headers away: make says
// which Debian package brings each, and stops.
func TestMakeMissing(t *testing.T) {
	t.Parallel()
	_, path := without(t)
	cmd := harness.Command(t, "make", "-C", harness.Root(t), "all")
	cmd.Env = append(os.Environ(), path)
	r := harness.RunCmd(t, cmd)
	if r.Status == 0 {
		t.Error("make all passed without a compiler")
	}
	for _, want := range []string{"nbdkit-plugin-dev", "pkg-config", "gcc", "apt-get install"} {
		if !strings.Contains(r.Stderr, want) {
			t.Errorf("make without them does not name %s:\n%s", want, r.Stderr)
		}
	}
}

// policyFile forbids the start of services while packages are installed.
const policyFile = "/usr/sbin/policy-rc.d"

// fakeApt puts an apt-get into bin that notes its words in a log, one call a
// line, and "input" or "services" where it could ask somebody or start
// services. It gets packages only after an update where lists is false, and
// none where broken is true.
func fakeApt(t testing.TB, bin string, lists, broken bool) (log string) {
	t.Helper()
	log = filepath.Join(bin, "apt.log")
	state := filepath.Join(bin, "lists")
	if lists {
		harness.WriteFile(t, state, "")
	}
	get := "ln -sf " + harness.Tool(t, "true") + " " + bin + "/shellcheck"
	if broken {
		get = "exit 100"
	}
	script(t, filepath.Join(bin, "apt-get"), `
echo "$*" >>`+log+`
read -r line && echo input >>`+log+`
`+policyFile+` >/dev/null 2>&1; [ $? = 101 ] || echo services >>`+log+`
case $1 in
update) : >`+state+` ;;
install) [ -e `+state+` ] || exit 100; `+get+` ;;
esac
`)
	return log
}

// verbs returns the first word of each line of the log of fakeApt.
func verbs(t testing.TB, log string) []string {
	t.Helper()
	data, err := os.ReadFile(log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var verbs []string
	for line := range strings.Lines(string(data)) {
		verbs = append(verbs, strings.Fields(line)[0])
	}
	return verbs
}

// TestMakeCheckInstalls lets a stand-in for apt-get bring what is missing: on
// a machine with package lists, on one without, where it fails, and where it
// may not be used. It is asked nothing more than is needed, has nobody to ask,
// and may start no service.
func TestMakeCheckInstalls(t *testing.T) {
	harness.NeedRoot(t)
	_, err := os.Stat(policyFile)
	hadPolicy := err == nil
	for _, c := range []struct {
		name          string
		command       []string
		lists, broken bool
		user          string // what id says
		sudo          bool   // as sudo does: Go is not in PATH
		status        bool   // whether it succeeds
		verbs         []string
		says          []string
	}{
		{name: "lists", command: []string{"scripts/deps.sh", "install", "lint"}, lists: true, status: true, verbs: []string{"install"}},
		{name: "no-lists", command: []string{"scripts/deps.sh", "install", "lint"}, status: true, verbs: []string{"install", "update", "install"}},
		{name: "broken", command: []string{"make", "check"}, broken: true, verbs: []string{"install", "update", "install"},
			says: []string{"apt-get could not install"}},
		{name: "sudo", command: []string{"make", "check"}, lists: true, sudo: true,
			says: []string{"Go 1.", `sudo env "PATH=$PATH" make`}},
		{name: "not-root", command: []string{"make", "check"}, lists: true, user: "1000",
			says: []string{"to install: apt-get install ", " shellcheck", "as root"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bin, path := without(t, "gcc", "readelf", "pkg-config", "pod2man", "podchecker")
			log := fakeApt(t, bin, c.lists, c.broken)
			if c.user != "" {
				if err := os.Remove(filepath.Join(bin, "id")); err != nil {
					t.Fatal(err)
				}
				script(t, filepath.Join(bin, "id"), "echo "+c.user+"\n")
			}
			cmd := harness.Command(t, harness.Tool(t, "env"), c.command...)
			cmd.Dir = harness.Root(t)
			cmd.Env = append(os.Environ(), path, "SUDO_USER=")
			if c.sudo {
				cmd.Env = append(cmd.Env, "SUDO_USER=somebody")
				if err := os.Remove(filepath.Join(bin, "go")); err != nil {
					t.Fatal(err)
				}
			}
			stdin, err := os.Open("/dev/zero") // someone who answers everything
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			cmd.Stdin = stdin
			r := harness.RunCmd(t, cmd)
			if (r.Status == 0) != c.status {
				t.Errorf("%q ended with %d:\n%s%s", c.command, r.Status, r.Stdout, r.Stderr)
			}
			if got := verbs(t, log); !slices.Equal(got, c.verbs) {
				t.Errorf("it called apt-get with %q, not %q", got, c.verbs)
			}
			for _, want := range c.says {
				if !strings.Contains(r.Stderr, want) {
					t.Errorf("it does not say %q:\n%s", want, r.Stderr)
				}
			}
			if strings.Contains(r.Stdout+r.Stderr, "== lint") {
				t.Errorf("it began to test all the same:\n%s%s", r.Stdout, r.Stderr)
			}
			if _, err := os.Stat(policyFile); !hadPolicy && err == nil {
				t.Error("it left " + policyFile)
			}
		})
	}
}

// TestMakeCheckIsCI holds CI to the command that the README names: a machine
// that has nothing needs no more than that.
func TestMakeCheckIsCI(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join(harness.Root(t), ".ci/run"))
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			commands = append(commands, line)
		}
	}
	want := regexp.MustCompile(`^cd "\$\(dirname "\$0"\)/\.\." && exec timeout [-=0-9a-z ]+ make check </dev/null$`)
	if len(commands) != 1 || !want.MatchString(commands[0]) {
		t.Errorf(".ci/run does more than make check: %q", commands)
	}
}
