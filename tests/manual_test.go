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
	serverManual = "ctl/swiftnbd-server.pod"
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
		ctlManual: {"NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "COMMANDS", "GLOBAL OPTIONS", "RESTARTING THE SERVER OF AN ATTACHED DISK", "UNITS OF SYSTEMD", "EXIT STATUS", "FILES",
			"ENVIRONMENT VARIABLES", "VERSION", "SEE ALSO", "AUTHORS", "COPYRIGHT"},
		serverManual: {"NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "OPTIONS", "EXIT STATUS", "FILES",
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
// of a disk of each version that was read, written and flushed.
func TestManualCounters(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	chunks, account, _ := volume(t, c)
	logged := harness.Name(t) + "-log"
	account.SetupLog(t, logged, diskSize)
	address := fmt.Sprintf("127.0.0.1:%d", harness.FreePort(t))
	n := serve(t, "secrets="+harness.Secrets(t, c.Section(chunks), c.Section(logged)), "metrics="+address)
	harness.Nbdsh(t, n.Export(chunks), `h.pwrite(b"x" * 65536, 0)`)
	out := harness.Nbdsh(t, n.Export(logged), fmt.Sprintf(`
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
	ca := harness.Authority(t)
	for _, text := range examples {
		secrets := harness.Secrets(t, strings.ReplaceAll(text, "/etc/swiftnbd/ca.pem", ca))
		r := harness.Run(t, "nbdkit", "-U", "-", harness.Plugin(t), "secrets="+secrets, "--run", "exit 42")
		if r.Status != 42 {
			t.Errorf("the plugin does not take this example: %s\n%s", r.Stderr, text)
		}
	}
}

// TestManualEnvironment holds ENVIRONMENT VARIABLES against the variables that
// internal/config and internal/clouds read.
func TestManualEnvironment(t *testing.T) {
	t.Parallel()
	var source []byte
	for _, file := range []string{"config/environ.go", "config/export.go", "config/cloud.go", "clouds/files.go"} {
		one, err := os.ReadFile(filepath.Join(harness.Root(t), "internal", filepath.FromSlash(file)))
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, one...)
	}
	var variables []string
	for _, m := range regexp.MustCompile(`"((?:OS|ST)_[A-Z_]+)"`).FindAllStringSubmatch(string(source), -1) {
		if !slices.Contains(variables, m[1]) {
			variables = append(variables, m[1])
		}
	}
	same(t, "environment variable", names(manual(t, pluginManual).Items("ENVIRONMENT VARIABLES")), variables)
}

// TestManualExample has the plugin take the secrets file that is installed as an
// example, with every comment that holds a setting uncommented as well.
func TestManualExample(t *testing.T) {
	t.Parallel()
	example, err := os.ReadFile(filepath.Join(harness.Root(t), "docs", "secrets.conf.example"))
	if err != nil {
		t.Fatal(err)
	}
	full := regexp.MustCompile(`(?m)^#(\[|[a-z-]+ = )`).ReplaceAllString(string(example), "$1")
	if full == string(example) {
		t.Error("no setting stands behind a #")
	}
	for _, text := range []string{string(example), full} {
		r := harness.Run(t, "nbdkit", "-U", "-", harness.Plugin(t), "secrets="+harness.Secrets(t, text), "--run", "exit 42")
		if r.Status != 42 || r.Stderr != "" {
			t.Errorf("the plugin does not take it: status %d, %s\n%s", r.Status, r.Stderr, text)
		}
	}
}
