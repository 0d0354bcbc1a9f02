// SPDX-License-Identifier: MIT

package tests

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
	"swiftnbd/tests/pod"
)

const (
	pluginManual = "plugin/nbdkit-swift-plugin.pod"
	ctlManual    = "ctl/swiftnbd-ctl.pod"
)

func manual(t testing.TB, path string) *pod.Page {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(harness.Root(t), path))
	if err != nil {
		t.Fatal(err)
	}
	return pod.Parse(string(text))
}

// same fails the test where the manual and the program name different things.
func same(t testing.TB, what string, documented, real []string) {
	t.Helper()
	if len(real) == 0 {
		t.Errorf("%s: the program names none, so nothing is compared", what)
	}
	for _, r := range real {
		if !slices.Contains(documented, r) {
			t.Errorf("%s: %q is not in the manual", what, r)
		}
	}
	for i, d := range documented {
		if !slices.Contains(real, d) {
			t.Errorf("%s: %q is in the manual only", what, d)
		}
		if slices.Contains(documented[:i], d) {
			t.Errorf("%s: %q stands twice in the manual", what, d)
		}
	}
}

// sameDefault fails the test unless the item says "The default is WORDS" just
// where the program does.
func sameDefault(t testing.TB, what, body, want string) {
	t.Helper()
	_, got, found := strings.Cut(body, "The default is ")
	switch {
	case want == "" && found:
		t.Errorf("%s: the manual gives a default (%.30q), the program none", what, got)
	case want != "" && !found:
		t.Errorf("%s: the manual does not say that %q is the default", what, want)
	case want != "" && !regexp.MustCompile("^"+regexp.QuoteMeta(want)+`([,.:;\s]|$)`).MatchString(got):
		t.Errorf("%s: the default is %q, in the manual %.30q", what, want, got)
	}
}

func names(items []pod.Item) []string {
	out := make([]string, len(items))
	for i, item := range items {
		out[i] = item.Text
	}
	return out
}

// TestManualPages checks the form of both pages: podchecker has nothing to
// say, groff neither, and the sections are the agreed ones in their order.
func TestManualPages(t *testing.T) {
	t.Parallel()
	for path, sections := range map[string][]string{
		pluginManual: {"NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "PARAMETERS", "CONSISTENCY AND DURABILITY",
			"CACHE", "LOCKING", "CREDENTIALS", "PERFORMANCE", "DUMP-PLUGIN OUTPUT", "DEBUG FLAGS", "FILES",
			"ENVIRONMENT VARIABLES", "VERSION", "SEE ALSO", "AUTHORS", "COPYRIGHT"},
		ctlManual: {"NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "COMMANDS", "GLOBAL OPTIONS", "EXIT STATUS", "FILES",
			"ENVIRONMENT VARIABLES", "VERSION", "SEE ALSO", "AUTHORS", "COPYRIGHT"},
	} {
		r := harness.Run(t, "podchecker", "-warnings", "-warnings", filepath.Join(harness.Root(t), path))
		if said := r.Stdout + r.Stderr; r.Status != 0 || strings.Contains(said, "***") {
			t.Errorf("podchecker, status %d:\n%s", r.Status, said)
		}
		page := manual(t, path)
		if got := page.Sections(); !slices.Equal(got, sections) {
			t.Errorf("%s has the sections\n%q, want\n%q", path, got, sections)
		}
		for _, line := range page.Long(79) {
			t.Errorf("%s: longer than 79 characters in an 80 column terminal: %s", path, line)
		}
	}
}

// TestManualParameters holds PARAMETERS, in alphabetical order, against
// nbdkit --help, and SYNOPSIS against PARAMETERS.
func TestManualParameters(t *testing.T) {
	t.Parallel()
	page := manual(t, pluginManual)
	items := page.Items("PARAMETERS")
	_, help, found := strings.Cut(harness.Must(t, "nbdkit", "--help", harness.Plugin(t)), "(Swift).\n")
	if !found {
		t.Fatalf("nbdkit --help does not end with the parameters:\n%s", help)
	}
	defaults := make(map[string]string)
	var usages []string
	for line := range strings.Lines(help) {
		usage, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		usages = append(usages, usage)
		if m := regexp.MustCompile(`\(default: (.*)\)`).FindStringSubmatch(rest); m != nil {
			defaults[usage] = m[1]
		}
	}
	same(t, "parameter", names(items), usages)
	for _, item := range items {
		sameDefault(t, item.Text, item.Body, defaults[item.Text])
	}
	key := func(item pod.Item) string {
		return strings.TrimPrefix(strings.SplitN(item.Text, "=", 2)[0], "[")
	}
	if !slices.IsSortedFunc(items, func(a, b pod.Item) int { return strings.Compare(key(a), key(b)) }) {
		t.Errorf("PARAMETERS are not in alphabetical order: %q", names(items))
	}
	synopsis := page.Text("SYNOPSIS")
	for _, usage := range usages {
		if !strings.Contains(synopsis, "["+usage+"]") && !strings.Contains(synopsis, " "+usage+" ") {
			t.Errorf("SYNOPSIS lacks %s", usage)
		}
	}
}

// TestManualDumpPlugin holds DUMP-PLUGIN OUTPUT against the keys of ours that
// nbdkit --dump-plugin prints.
func TestManualDumpPlugin(t *testing.T) {
	t.Parallel()
	out := harness.Must(t, "nbdkit", harness.Plugin(t), "--dump-plugin")
	var keys []string
	for _, m := range regexp.MustCompile(`(?m)^(swift_\w+=)`).FindAllStringSubmatch(out, -1) {
		keys = append(keys, m[1]+"...")
	}
	same(t, "key of --dump-plugin", names(manual(t, pluginManual).Items("DUMP-PLUGIN OUTPUT")), keys)
}

// TestManualDebugFlags holds DEBUG FLAGS against plugin/debug.c and against
// what nbdkit finds in the plugin.
func TestManualDebugFlags(t *testing.T) {
	t.Parallel()
	documented := names(manual(t, pluginManual).Items("DEBUG FLAGS"))
	source, err := os.ReadFile(filepath.Join(harness.Root(t), "plugin", "debug.c"))
	if err != nil {
		t.Fatal(err)
	}
	var flags []string
	for _, m := range regexp.MustCompile(`(?m)^int swift_debug_(\w+)`).FindAllStringSubmatch(string(source), -1) {
		flags = append(flags, "-D swift."+m[1]+"=1")
	}
	same(t, "debug flag", documented, flags)

	plugin, err := elf.Open(harness.Plugin(t))
	if err != nil {
		t.Fatal(err)
	}
	defer plugin.Close()
	symbols, err := plugin.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	flags = nil
	for _, s := range symbols {
		if name, ok := strings.CutPrefix(s.Name, "swift_debug_"); ok && s.Section != elf.SHN_UNDEF {
			flags = append(flags, "-D swift."+name+"=1")
		}
	}
	same(t, "exported debug flag", documented, flags)
}

// TestManualCounters holds PERFORMANCE, "Counters", against what metrics= serves
// of a disk that was read, written and flushed.
func TestManualCounters(t *testing.T) {
	t.Parallel()
	_, _, params := volume(t, harness.Dev(t))
	address := fmt.Sprintf("127.0.0.1:%d", harness.FreePort(t))
	n := serve(t, append(params, "metrics="+address)...)
	out := harness.Nbdsh(t, n.URI, fmt.Sprintf(`
import urllib.request
h.pread(4096, 65536)
h.pwrite(b"x" * 65536, 0)
h.flush()
urllib.request.urlopen("http://%[1]s/metrics").read() # brings the clients' bytes in
print(urllib.request.urlopen("http://%[1]s/metrics").read().decode())
`, address))
	n.Stop(t)
	var counters []string
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) `).FindAllStringSubmatch(out, -1) {
		counters = append(counters, m[1])
	}
	same(t, "counter", names(manual(t, pluginManual).Items("PERFORMANCE", "Counters")), counters)
}

// TestManualSecrets holds the keys of the secrets file in CREDENTIALS against
// those that the plugin says it knows, and has it take every example.
func TestManualSecrets(t *testing.T) {
	t.Parallel()
	page := manual(t, pluginManual)
	refused := harness.Fail(t, harness.Options{Mode: harness.Foreground,
		Params: []string{"secrets=" + harness.Secrets(t, harness.Section("c", "nonesuch = x"))}})
	m := regexp.MustCompile(`\(known: (.*)\)`).FindStringSubmatch(refused.Line(t))
	if m == nil {
		t.Fatal("the error about an unknown key does not name the known ones")
	}
	same(t, "key of the secrets file", names(page.Items("CREDENTIALS", "The secrets file")), strings.Split(m[1], ", "))

	var examples []string
	for _, text := range page.Verbatim("CREDENTIALS", "Examples") {
		if strings.HasPrefix(text, "[") {
			examples = append(examples, text)
		}
	}
	if len(examples) < 5 {
		t.Errorf("CREDENTIALS has %d examples of a secrets file, want one for each kind of login at least", len(examples))
	}
	ca := authority(t)
	for _, text := range examples {
		secrets := harness.Secrets(t, strings.ReplaceAll(text, "/etc/swiftnbd/ca.pem", ca))
		r := harness.Run(t, "nbdkit", "-U", "-", harness.Plugin(t), "secrets="+secrets, "--run", "exit 42")
		if r.Status != 42 {
			t.Errorf("the plugin does not take this example: %s\n%s", r.Stderr, text)
		}
	}
}

// TestManualEnvironment holds ENVIRONMENT VARIABLES against the variables that
// internal/config reads.
func TestManualEnvironment(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile(filepath.Join(harness.Root(t), "internal", "config", "environ.go"))
	if err != nil {
		t.Fatal(err)
	}
	var variables []string
	for _, m := range regexp.MustCompile(`"((?:OS|ST)_[A-Z_]+)"`).FindAllStringSubmatch(string(source), -1) {
		if !slices.Contains(variables, m[1]) {
			variables = append(variables, m[1])
		}
	}
	same(t, "environment variable", names(manual(t, pluginManual).Items("ENVIRONMENT VARIABLES")), variables)
}

// command is what --help says of one command of swiftnbd-ctl.
type command struct {
	usage    string   // without the program's name and "[flags]"
	flags    []string // "-a, --auth-url URL", upper case in the variable part
	defaults map[string]string
	verbs    []string
}

var (
	flagLine  = regexp.MustCompile(`^ +(-\w, )?(--[\w-]+)(?: (\S+))?  +(.*)$`)
	defaultOf = regexp.MustCompile(`\(default "?([^"]*)"?\)$`)
)

// help reads the help of `swiftnbd-ctl VERBS...`.
func help(t testing.TB, verbs ...string) command {
	t.Helper()
	out := harness.Must(t, harness.Built(t, "swiftnbd-ctl"), append(verbs, "--help")...)
	c := command{defaults: make(map[string]string)}
	section := ""
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasSuffix(line, ":") && !strings.HasPrefix(line, " "):
			section = line
		case section == "Usage:" && c.usage == "" && line != "":
			usage := strings.TrimPrefix(strings.TrimSpace(line), "swiftnbd-ctl ")
			c.usage = strings.TrimSuffix(usage, " [flags]")
		case section == "Available Commands:" && line != "":
			c.verbs = append(c.verbs, strings.Fields(line)[0])
		case section == "Flags:" && strings.HasPrefix(line, " "):
			m := flagLine.FindStringSubmatch(line)
			if m == nil {
				t.Fatalf("a flag that this test cannot read: %q", line)
			}
			flag := strings.TrimSpace(m[1] + m[2] + " " + strings.ToUpper(m[3]))
			c.flags = append(c.flags, flag)
			if d := defaultOf.FindStringSubmatch(m[4]); d != nil {
				c.defaults[flag] = d[1]
			}
		}
	}
	return c
}

// TestManualCtl holds swiftnbd-ctl's manual against its --help, that of each
// command, and that of the commands of commands.
func TestManualCtl(t *testing.T) {
	t.Parallel()
	page := manual(t, ctlManual)
	root := help(t)
	check := func(what string, items []pod.Item, c command) {
		t.Helper()
		same(t, what, names(items), append(c.flags, c.verbs...))
		for _, item := range items {
			sameDefault(t, what+" "+item.Text, item.Body, c.defaults[item.Text])
		}
	}
	check("option", page.Items("GLOBAL OPTIONS"), command{flags: root.flags, defaults: root.defaults})

	headings := make(map[string]string) // verb to heading
	shared := make(map[string][]pod.Item)
	var documented []string
	for _, h := range page.Subsections("COMMANDS") {
		if of, ok := strings.CutPrefix(h, "Options of "); ok {
			for _, verb := range strings.Split(of, " and ") {
				shared[verb] = page.Items("COMMANDS", h)
			}
			continue
		}
		verb, _, _ := strings.Cut(h, " ")
		headings[verb] = h
		documented = append(documented, verb)
	}
	same(t, "command", documented, root.verbs)
	if !slices.IsSorted(documented) {
		t.Errorf("COMMANDS are not in alphabetical order: %q", documented)
	}
	synopsis := page.Text("SYNOPSIS")
	for _, verb := range root.verbs {
		if !strings.Contains(synopsis, "swiftnbd-ctl "+verb) {
			t.Errorf("SYNOPSIS lacks %s", verb)
		}
		c := help(t, verb)
		if verb == "help" {
			c = command{usage: "help [command]"} // `help --help` is the whole program's
		}
		if headings[verb] != c.usage {
			t.Errorf("the heading of %s is %q, the usage %q", verb, headings[verb], c.usage)
		}
		for _, sub := range c.verbs {
			for _, flag := range help(t, verb, sub).flags {
				if !slices.Contains(c.flags, flag) {
					c.flags = append(c.flags, flag)
				}
			}
		}
		// -h is told once, among the options of all.
		c.flags = slices.DeleteFunc(c.flags, func(f string) bool { return f == "-h, --help" })
		items := append(page.Items("COMMANDS", headings[verb]), shared[verb]...)
		if len(c.flags)+len(c.verbs) == 0 {
			if len(items) > 0 {
				t.Errorf("%s takes no options, the manual has %q", verb, names(items))
			}
			continue
		}
		check("option of "+verb, items, c)
	}
}

// TestManualReadme checks the README's first commands, that each file which it
// or the other documents link to exists, and that no parameter is unknown.
func TestManualReadme(t *testing.T) {
	t.Parallel()
	root := harness.Root(t)
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	for _, doc := range []string{"README.md", "CONTRIBUTING.md", "docs/DESIGN.md", "docs/FORMAT.md"} {
		text, err := os.ReadFile(filepath.Join(root, doc))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", doc, m[1], err)
			}
		}
		if doc != "README.md" {
			continue
		}
		var commands []string
		for _, m := range regexp.MustCompile(`(?m)^    (\S.*)$`).FindAllStringSubmatch(string(text), -1) {
			commands = append(commands, m[1])
		}
		if len(commands) < 2 || commands[0] != "make quickstart" || commands[1] != "make check" {
			t.Errorf("the README's first commands are %.2q, want make quickstart and make check", commands)
		}
	}
	failures := table(t, filepath.Join(root, "docs", "DESIGN.md"), "Failure table")
	if len(failures) == 0 {
		t.Error("docs/DESIGN.md has no failure table")
	}
	all := testFunctions(t, root)
	for _, row := range failures {
		cited := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(row, -1)
		if len(cited) == 0 {
			t.Errorf("no test shows this row of the failure table: %s", row)
		}
		for _, c := range cited {
			if !all[c[1]] {
				t.Errorf("the failure table cites %s, which does not exist", c[1])
			}
		}
	}
}

// table returns the rows of the table in a section of a Markdown file.
func table(t testing.TB, path, section string) (rows []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\n## "+section+"\n")
	rest, _, _ = strings.Cut(rest, "\n## ")
	for line := range strings.Lines(rest) {
		if strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "|--") {
			rows = append(rows, strings.TrimSpace(line))
		}
	}
	if len(rows) > 0 {
		rows = rows[1:] // the head
	}
	return rows
}

// testFunctions returns the names of all tests of the project.
func testFunctions(t testing.TB, root string) map[string]bool {
	t.Helper()
	found := make(map[string]bool)
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, dir := range []string{"tests", "internal", "ctl", "plugin", "scripts"} {
		for _, name := range filesUnder(t, filepath.Join(root, dir)) {
			if !strings.HasSuffix(name, "_test.go") {
				continue
			}
			text, err := os.ReadFile(filepath.Join(root, dir, name))
			if err != nil {
				t.Fatal(fmt.Errorf("look for tests: %w", err))
			}
			for _, m := range function.FindAllStringSubmatch(string(text), -1) {
				found[m[1]] = true
			}
		}
	}
	return found
}
