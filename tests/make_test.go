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
			c.prefix + "/share/man/man1/nbdkit-swift-plugin.1",
			c.prefix + "/share/man/man1/swiftnbd-ctl.1",
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
		"install", "uninstall", "dist", "clean", "help"} {
		if !regexp.MustCompile(`(?m)^` + target + ` +[a-z]`).MatchString(out) {
			t.Errorf("make help does not tell of %s:\n%s", target, out)
		}
		if !regexp.MustCompile(`(?m)^` + target + `:`).Match(makefile) {
			t.Errorf("there is no target %s", target)
		}
	}
}

// TestMakeMissing takes the compiler and nbdkit's headers away: make says
// which Debian package brings each, and stops.
func TestMakeMissing(t *testing.T) {
	t.Parallel()
	bin := harness.TempDir(t)
	for _, name := range []string{"bash", "sh", "make", "cat", "sort", "cut", "grep", "sed", "tr", "head", "go", "ld", "env", "dirname"} {
		if err := os.Symlink(harness.Tool(t, name), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := harness.Command(t, "make", "-C", harness.Root(t), "all")
	cmd.Env = append(os.Environ(), "PATH="+bin)
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
