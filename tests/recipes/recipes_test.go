// SPDX-License-Identifier: MIT

// Package recipes runs the recipes of docs/recipes, as they stand, with the real
// programs: some on this machine, those that need the kernel's devices in a virtual
// machine. They take minutes, and programs that nothing else here needs, so they
// run only with -full (make check-recipes).
package recipes

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/tests/harness"
	"swiftnbd/tests/vm"
)

var full = flag.Bool("full", false, "run the recipes; without it, the tests are skipped")
var limit = flag.Duration("limit", time.Hour, "how long the commands of one page may take")

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// block is a block of a document: commands (sh), or what the commands before it
// print (text).
type block struct {
	kind, text string
	line       int // in the document
}

var fence = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

// blocks returns the blocks of a document of docs/recipes.
func blocks(t testing.TB, document string) (all []block) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(harness.Root(t), "docs", "recipes", document))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range fence.FindAllStringSubmatchIndex(string(text), -1) {
		b := block{kind: string(text[m[2]:m[3]]), text: string(text[m[4]:m[5]]), line: 1 + strings.Count(string(text[:m[0]]), "\n")}
		if b.kind != "sh" && b.kind != "text" {
			t.Fatalf("%s:%d: a block of the kind %q; the test knows sh and text", document, b.line, b.kind)
		}
		if b.kind == "text" && (len(all) == 0 || all[len(all)-1].kind != "sh") {
			t.Fatalf("%s:%d: no commands stand before what they print", document, b.line)
		}
		all = append(all, b)
	}
	return all
}

// need fails the test unless the programs of all recipes are there.
func need(t *testing.T) {
	t.Helper()
	if !*full {
		t.Skip("it takes minutes: make check-recipes runs it")
	}
	harness.NeedRoot(t)
	r := harness.Run(t, filepath.Join(harness.Root(t), "scripts", "deps.sh"), "check", "recipes")
	if r.Status != 0 {
		t.Fatalf("scripts/deps.sh install recipes brings what is missing:\n%s%s", r.Stdout, r.Stderr)
	}
}

// mark is the line that stands before the output of the block at a line.
func mark(line int) string { return fmt.Sprintf("== block %d ==", line) }

// directory makes a directory with the script of a document's commands, which run
// one after the other in one shell, in an empty directory beside it. Whatever they
// have started ends with it.
func directory(t testing.TB, all []block) (dir string) {
	t.Helper()
	dir = harness.TempDir(t)
	for _, d := range []string{"bin", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{"swiftnbd-ctl", "swiftdev"} {
		if err := os.Symlink(harness.Built(t, program), filepath.Join(dir, "bin", program)); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// nbdkit knows the short name of an installed plugin only.
	write("bin/nbdkit", `#!/bin/bash
args=()
for a; do
  [ "$a" != swift ] || a='`+harness.Plugin(t)+`'
  args+=("$a")
done
exec `+harness.Tool(t, "nbdkit")+` "${args[@]}"
`)
	var script strings.Builder
	fmt.Fprintf(&script, `set -eu
export PATH=%[1]s/bin:$PATH:/usr/sbin:/sbin HOME=%[1]s TMPDIR=%[1]s
cd %[1]s/work
end() {
  for pid in *.pid; do
    [ ! -s "$pid" ] || kill $(cat "$pid") 2>/dev/null || true
  done
  kill $(jobs -p) 2>/dev/null || true
}
trap end EXIT
`, dir)
	for _, b := range all {
		if b.kind == "sh" {
			fmt.Fprintf(&script, "echo; echo '%s'\n%s", mark(b.line), b.text)
		}
	}
	fmt.Fprintf(&script, "echo; echo '%s'\n", mark(0))
	write("script", script.String())
	return dir
}

// missing returns what is wrong with the output of a document's commands: each
// block must have printed the lines that the document says, in their order.
func missing(document string, all []block, output string) (wrong []string) {
	lines := strings.Split(strings.ReplaceAll(output, "\r", ""), "\n")
	compared := 0
	for i, b := range all {
		if b.kind != "text" {
			continue
		}
		from := slices.Index(lines, mark(all[i-1].line))
		if from < 0 {
			return append(wrong, fmt.Sprintf("%s:%d was not reached", document, all[i-1].line))
		}
		rest := lines[from+1:]
		if to := slices.IndexFunc(rest, func(s string) bool { return strings.HasPrefix(s, "== block ") }); to >= 0 {
			rest = rest[:to]
		}
		said := strings.Join(rest, "\n")
		for want := range strings.Lines(b.text) {
			at := slices.IndexFunc(rest, func(s string) bool { return same(s, want) })
			if at < 0 {
				wrong = append(wrong, fmt.Sprintf("%s:%d: nothing prints, in this order, the line %q; what was printed:\n%s",
					document, b.line, strings.TrimSpace(want), said))
				break
			}
			rest = rest[at+1:]
			compared++
		}
	}
	if compared < 3 && len(wrong) == 0 {
		wrong = append(wrong, fmt.Sprintf("%s has %d lines to compare: too few to be true", document, compared))
	}
	return wrong
}

// printed fails the test for what missing finds.
func printed(t *testing.T, document string, all []block, output string) {
	t.Helper()
	for _, w := range missing(document, all, output) {
		t.Error(w)
	}
}

// TestMissing checks that a line is missed that is not printed, in another order, or
// by other commands than those it stands behind.
func TestMissing(t *testing.T) {
	all := []block{{"sh", "", 1}, {"text", "a b\nc\n", 5}, {"sh", "", 9}, {"text", "d\n", 12}}
	for output, want := range map[string]int{
		"1 a   b\r\nmore\nc 9 d 0 ": 0,
		"1 a b\nc 9 c\nd 0 ":        0,
		"1 a b 9 d 0 ":              1,
		"1 c\na b 9 d 0 ":           1,
		"1 a b\nc\nd 9 x 0 ":        1,
		"1 a b 9 c 0 d":             2,
		"1 a b\nc ":                 1,
	} {
		marked := regexp.MustCompile(`([019]) `).ReplaceAllString(output, "\n== block $1 ==\n")
		if wrong := missing("X.md", all, marked); len(wrong) != want {
			t.Errorf("%q: %d are missing, want %d: %q", output, len(wrong), want, wrong)
		}
	}
	if wrong := missing("X.md", nil, ""); len(wrong) != 1 {
		t.Errorf("a document without anything to compare: %q", wrong)
	}
}

// same compares lines without regard to how they are aligned.
func same(a, b string) bool {
	return strings.Join(strings.Fields(a), " ") == strings.Join(strings.Fields(b), " ")
}

// here runs a document on this machine, with variables added to the environment.
func here(t *testing.T, document string, environment ...string) {
	t.Helper()
	need(t)
	all := blocks(t, document)
	dir := directory(t, all)
	environment = append(environment, emulated(t, dir)...)
	// After a signal of timeout the script still ends what it has started.
	cmd := harness.Command(t, "timeout", fmt.Sprint(int(limit.Seconds())), "bash", filepath.Join(dir, "script"))
	cmd.Env = append(os.Environ(), environment...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second // a daemon may be left behind
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", document, err, stdout.String(), stderr.String())
	}
	printed(t, document, all, stdout.String())
	t.Logf("%s", stdout.String())
}

var (
	kvm  sync.Once // a machine is started to find out
	idle bool      // there is a /dev/kvm in which no machine runs
)

// emulated makes the commands of a document emulate where KVM does not run machines
// although /dev/kvm is there: what the documents say for that case.
func emulated(t *testing.T, dir string) (environment []string) {
	t.Helper()
	kvm.Do(func() {
		_, err := os.Stat("/dev/kvm")
		idle = err == nil && !vm.Debian(t).Accelerates(t)
	})
	if !idle {
		return nil
	}
	t.Log("/dev/kvm is there and runs no machine: the recipes emulate")
	err := os.WriteFile(filepath.Join(dir, "bin", "qemu-system-x86_64"), []byte(`#!/bin/bash
args=()
for a; do
  if [ "$a" = kvm ]; then unset 'args[-1]'; else args+=("$a"); fi
done
exec `+harness.Tool(t, "qemu-system-x86_64")+` "${args[@]}"
`), 0o755)
	if err != nil {
		t.Fatal(err)
	}
	return []string{"LIBGUESTFS_BACKEND_SETTINGS=force_tcg"}
}

// TestRecipesClients runs the recipes that need no device of the kernel.
func TestRecipesClients(t *testing.T) { here(t, "CLIENTS.md") }
