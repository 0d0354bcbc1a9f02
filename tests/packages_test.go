// SPDX-License-Identifier: MIT

package tests

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// TestMakeDist makes the tarball twice from the same commit, and asks Go for all
// packages in it without network and without a cache of modules: none lacks.
func TestMakeDist(t *testing.T) {
	root := harness.Root(t)
	if _, err := os.Stat(filepath.Join(root, ".git")); err != nil {
		t.Log("this is an unpacked tarball, of which make dist makes none")
		return
	}
	tarball := filepath.Join(root, "dist", "swiftnbd-"+makeVersion(t)+".tar.gz")
	status := func() string { return harness.Must(t, "git", "-C", root, "status", "--porcelain") }
	before := status()
	var first []byte
	for range 2 {
		runMake(t, "-s", "dist")
		data, err := os.ReadFile(tarball)
		if err != nil {
			t.Fatal(err)
		}
		if first != nil && !slices.Equal(first, data) {
			t.Error("the second tarball of the same commit is another one")
		}
		first = data
	}
	if after := status(); after != before {
		t.Errorf("make dist leaves in the checkout:\n%s", after)
	}
	dir := harness.TempDir(t)
	harness.Must(t, "tar", "-x", "-f", tarball, "-C", dir, "--strip-components=1")
	cmd := harness.Command(t, harness.Tool(t, "go"), "list", "-deps", "-test", "-f", "{{with .Error}}{{.}}{{end}}", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=vendor", "GOPROXY=off", "GOMODCACHE="+filepath.Join(dir, "no-modules"))
	r := harness.RunCmd(t, cmd)
	if r.Status != 0 || strings.TrimSpace(r.Stdout) != "" {
		t.Errorf("packages are missing in the tarball (status %d):\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
	// Built with neither make nor git, the programs know their version, unless
	// whoever links them has another one.
	for flags, version := range map[string]string{"": makeVersion(t), "-X swiftnbd/internal/version.Version=7.7": "7.7"} {
		cmd := harness.Command(t, harness.Tool(t, "go"), "build", "-trimpath", "-ldflags", flags, "-o", filepath.Join(dir, "program"), "./ctl")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=", "GOPROXY=off", "GOMODCACHE="+filepath.Join(dir, "no-modules"))
		if r := harness.RunCmd(t, cmd); r.Status != 0 {
			t.Fatalf("the tarball does not build: %s%s", r.Stdout, r.Stderr)
		}
		if got := harness.Must(t, filepath.Join(dir, "program"), "--version"); got != "swiftnbd-ctl "+version+"\n" {
			t.Errorf("built from the tarball with the flags %q, the program is %q; want version %s", flags, got, version)
		}
	}
}

// makeVersion returns the version that the Makefile gives.
func makeVersion(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(harness.Root(t), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^VERSION = (\S+)$`).FindSubmatch(data)
	if m == nil {
		t.Fatal("the Makefile has no VERSION")
	}
	return string(m[1])
}

// TestPackageVersions checks that the packages have the version of the Makefile.
func TestPackageVersions(t *testing.T) {
	t.Parallel()
	version := makeVersion(t)
	for path, line := range map[string]string{
		"scripts/debian/changelog":  `(?m)\Aswiftnbd \((.*)-\d+\) `,
		"scripts/rpm/swiftnbd.spec": `(?m)^Version: +(.*)$`,
		"CHANGES":                   `\Aswiftnbd (\S+?),? `,
	} {
		data, err := os.ReadFile(filepath.Join(harness.Root(t), path))
		if err != nil {
			t.Fatal(err)
		}
		if m := regexp.MustCompile(line).FindSubmatch(data); m == nil || string(m[1]) != version {
			t.Errorf("the version in %s is %q, the Makefile's is %s", path, m, version)
		}
	}
}

// complete returns what bash offers, with the installed completion of a program
// and Debian's bash-completion, where the last of these words is being typed.
func complete(t testing.TB, program string, words ...string) []string {
	t.Helper()
	root := harness.Root(t)
	const script = `
. /usr/share/bash-completion/bash_completion
. "$1"
PATH=$2:$PATH
COMP_LINE=$3
COMP_WORDBREAKS+=@ # as it has where hosts are completed (hostcomplete)
shift 3
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_POINT=${#COMP_LINE}
COMP_TYPE=9
COMP_KEY=9
compopt() { :; } # it works while a person types only
function=$(complete -p "$1" | sed 's/.* -F \([^ ]*\) .*/\1/')
"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}"
`
	args := []string{"-c", script, "bash", filepath.Join(root, "build", "completions", program+".bash"),
		filepath.Join(root, "build"), strings.Join(append([]string{program}, words...), " "), program}
	for _, word := range words {
		// Bash begins a word before and after an @ (COMP_WORDBREAKS).
		before, after, found := strings.Cut(word, "@")
		if args = append(args, before); found {
			args = append(args, "@")
		}
		if after != "" {
			args = append(args, after)
		}
	}
	var offered []string
	for line := range strings.Lines(harness.Must(t, "bash", args...)) {
		// A list of several has descriptions.
		if word := strings.Fields(line); len(word) > 0 {
			offered = append(offered, word[0])
		}
	}
	slices.Sort(offered)
	return offered
}

// TestCompletions types TAB: what bash offers are the commands and the options
// that --help tells of, and the disks of the secrets file.
func TestCompletions(t *testing.T) {
	t.Parallel()
	root := harness.Root(t)
	secrets := filepath.Join(harness.TempDir(t), "secrets.conf")
	harness.WriteFile(t, secrets, "[alpha]\n[beta]\n")
	if got := complete(t, "swiftnbd-ctl", "--secrets", secrets, "info", ""); !slices.Equal(got, []string{"alpha", "beta"}) {
		t.Errorf("for a disk bash offers %q", got)
	}
	c := harness.Dev(t)
	name := harness.Name(t)
	for _, args := range [][]string{{"setup", name, "--size", "1M", "--format", "2"}, {"snapshot", name, "monday"}, {"snapshot", name, "moon"}, {"snapshot", name, "tuesday"}} {
		harness.Must(t, harness.Built(t, "swiftnbd-ctl"), append([]string{"--secrets", harness.Secrets(t, c.Section(name))}, args...)...)
	}
	for prefix, want := range map[string][]string{"mo": {"monday", "moon"}, "": {"monday", "moon", "tuesday"}, "t": {"tuesday"}} {
		// Bash puts behind the @ what is offered.
		got := complete(t, "swiftnbd-ctl", "--secrets", harness.Secrets(t, c.Section(name)), "download", name+"@"+prefix)
		if !slices.Equal(got, want) {
			t.Errorf("for a snapshot that begins with %q bash offers %q, want %q", prefix, got, want)
		}
	}
	long := regexp.MustCompile(`(?m)^ +(?:-\w, )?(--[a-z0-9-]+)`)
	help := func(program string, verb ...string) string {
		return harness.Must(t, filepath.Join(root, "build", program), append(verb, "--help")...)
	}
	options := func(program string, verb ...string) {
		var want []string
		for _, m := range long.FindAllStringSubmatch(help(program, verb...), -1) {
			want = append(want, m[1])
		}
		var got []string
		for _, word := range complete(t, program, append(slices.Clone(verb), "--")...) {
			got = append(got, strings.TrimSuffix(word, "="))
		}
		slices.Sort(want)
		slices.Sort(got)
		if got = slices.Compact(got); len(want) < 5 || !slices.Equal(got, want) {
			t.Errorf("%s %q: bash offers the options\n%q, and --help tells of\n%q", program, verb, got, want)
		}
	}
	options("swiftnbd-server")
	_, commands, _ := strings.Cut(help("swiftnbd-ctl"), "Available Commands:\n")
	commands, _, _ = strings.Cut(commands, "\n\n")
	var verbs []string
	for line := range strings.Lines(commands) {
		verbs = append(verbs, strings.Fields(line)[0])
	}
	if !slices.Contains(verbs, "setup") {
		t.Fatalf("swiftnbd-ctl --help names the commands %q", verbs)
	}
	if got := complete(t, "swiftnbd-ctl", ""); !slices.Equal(got, verbs) {
		t.Errorf("bash offers the commands %q, and --help tells of %q", got, verbs)
	}
	for _, verb := range verbs {
		if verb != "help" && verb != "completion" {
			options("swiftnbd-ctl", verb)
		}
	}
}
