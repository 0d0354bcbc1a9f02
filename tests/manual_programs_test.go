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
	"swiftnbd/tests/pod"
)

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
	return helpOf(t, "swiftnbd-ctl", verbs...)
}

// helpOf reads the help of a program of ours.
func helpOf(t testing.TB, program string, verbs ...string) command {
	t.Helper()
	cmd := harness.Command(t, harness.Built(t, program), append(verbs, "--help")...)
	cmd.Env = append(os.Environ(), "TMPDIR=/tmp")
	r := harness.RunCmd(t, cmd)
	if r.Status != 0 {
		t.Fatalf("%s %q --help: status %d\n%s", program, verbs, r.Status, r.Stderr)
	}
	out := r.Stdout
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
				shared[verb] = append(shared[verb], page.Items("COMMANDS", h)...)
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

// TestManualServer holds swiftnbd-server's manual against its --help.
func TestManualServer(t *testing.T) {
	t.Parallel()
	page := manual(t, serverManual)
	c := helpOf(t, "swiftnbd-server")
	items := page.Items("OPTIONS")
	same(t, "option", names(items), c.flags)
	for _, item := range items {
		sameDefault(t, item.Text, item.Body, c.defaults[item.Text])
	}
}

// oldServerOptions are the options of swiftnbd 0.11's server.
var oldServerOptions = []string{
	"-h, --help", "--version", "--secrets", "-a, --auth-url", "-b, --bind-address", "-p, --bind-port", "-c, --cache-limit",
	"-l, --log-file", "--syslog", "-f, --foreground", "--pid-file", "-v, --verbose",
	"-k, --keystone-auth", "--keystone-separator", "--keystone-service", "--keystone-endpoint", "--keystone-region",
}

// TestManualOldOptions holds the options of swiftnbd 0.11's server against
// swiftnbd-server, and the table of docs/FROM-0.11.md against both.
func TestManualOldOptions(t *testing.T) {
	t.Parallel()
	var flags []string
	for _, f := range helpOf(t, "swiftnbd-server").flags {
		name, _, _ := strings.Cut(f, " ") // without the value
		if strings.HasSuffix(name, ",") {
			name = strings.Join(strings.Fields(f)[:2], " ")
		}
		if name != "--cloud" { // 0.11 knew no clouds.yaml
			flags = append(flags, name)
		}
	}
	same(t, "option of 0.11's server", flags, oldServerOptions)

	option := regexp.MustCompile("`(--?[a-z][a-z-]*)[^`]*`")
	var told []string
	for _, row := range table(t, filepath.Join(harness.Root(t), "docs", "FROM-0.11.md"), "Options") {
		for _, m := range option.FindAllStringSubmatch(strings.Split(row, "|")[1], -1) {
			told = append(told, m[1])
		}
	}
	for _, o := range oldServerOptions {
		if o == "-h, --help" || o == "--version" {
			continue
		}
		for name := range strings.SplitSeq(o, ", ") {
			if !slices.Contains(told, name) {
				t.Errorf("the table of docs/FROM-0.11.md lacks %s", name)
			}
		}
	}
	for _, name := range told {
		if !slices.ContainsFunc(oldServerOptions, func(o string) bool { return slices.Contains(strings.Split(o, ", "), name) }) {
			t.Errorf("the table of docs/FROM-0.11.md has %s, which is no option of 0.11", name)
		}
	}
}
