// SPDX-License-Identifier: MIT

package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// fence is a block of a document that begins with ```sh or ```text.
var fence = regexp.MustCompile("(?ms)^```(sh|text)\n(.*?)^```$")

// TestTutorial runs the commands of the tutorial.
func TestTutorial(t *testing.T) {
	t.Parallel()
	runDocument(t, "TUTORIAL.md", 5)
}

// TestRecipes runs the commands of the recipes.
func TestRecipes(t *testing.T) {
	t.Parallel()
	runDocument(t, "RECIPES.md", 8)
}

// TestFrom011 runs the commands of the page for those who come from swiftnbd 0.11,
// and checks that what it calls a common error is a message of ours.
func TestFrom011(t *testing.T) {
	t.Parallel()
	const name = "FROM-0.11.md"
	runDocument(t, name, 12)
	all := strings.Join(messages(t), "\x00")
	rows := table(t, filepath.Join(harness.Root(t), "docs", name), "Common errors")
	if len(rows) < 8 {
		t.Errorf("%s explains %d errors only", name, len(rows))
	}
	for _, row := range rows {
		message := strings.Split(row, "`")[1]
		if message != "Address already in use" && !strings.Contains(all, message) { // that one is nbdkit's
			t.Errorf("%s explains a message that no program prints: %s", name, message)
		}
	}
}

// runDocument runs the commands of a document as they stand, one after the other
// in one shell, and looks for the lines that it says they print, which are so many
// at least.
func runDocument(t *testing.T, name string, least int) {
	t.Helper()
	dir := harness.TempDir(t)
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"swiftnbd-ctl", "swiftnbd-server", "swiftdev"} {
		if err := os.Symlink(harness.Built(t, program), filepath.Join(bin, program)); err != nil {
			t.Fatal(err)
		}
	}
	// nbdkit knows the short name of an installed plugin only.
	script(t, filepath.Join(bin, "nbdkit"), `for a do
  shift
  case $a in swift) set -- "$@" '`+harness.Plugin(t)+`' ;; *) set -- "$@" "$a" ;; esac
done
exec `+harness.Tool(t, "nbdkit")+` "$@"
`)
	var commands strings.Builder
	commands.WriteString("set -eu\nswiftdev=\ntrap '[ -z \"$swiftdev\" ] || kill $swiftdev; [ ! -e pid ] || kill -9 $(cat pid) 2>/dev/null || true' EXIT\n")
	var prints []string
	for _, m := range fence.FindAllStringSubmatch(read(t, "docs", name), -1) {
		if m[1] == "sh" {
			commands.WriteString(m[2])
		} else {
			prints = append(prints, strings.Split(strings.TrimSpace(m[2]), "\n")...)
		}
	}
	// The last command ends swiftdev; there is no more to clean up then.
	commands.WriteString("swiftdev=\n")
	if len(prints) < least {
		t.Fatalf("%s prints %q only", name, prints)
	}
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := harness.Command(t, "bash", "-c", commands.String())
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+dir,
		"SWIFTNBD_PLUGIN="+harness.Plugin(t), fmt.Sprintf("PORT=%d", harness.FreePort(t)))
	r := harness.RunCmd(t, cmd)
	if r.Status != 0 {
		t.Fatalf("status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
	printed := make(map[string]bool)
	for line := range strings.Lines(r.Stdout) {
		printed[strings.Join(strings.Fields(line), " ")] = true
	}
	for _, line := range prints {
		if !printed[strings.Join(strings.Fields(line), " ")] {
			t.Errorf("nothing prints the line %q:\n%s", line, r.Stdout)
		}
	}
}
