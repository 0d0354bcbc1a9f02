// SPDX-License-Identifier: MIT

package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// TestManualReadme checks the README's first commands.
func TestManualReadme(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(harness.Root(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for _, m := range regexp.MustCompile(`(?m)^    (\S.*)$`).FindAllStringSubmatch(string(text), -1) {
		commands = append(commands, m[1])
	}
	if len(commands) < 2 || commands[0] != "make quickstart" || commands[1] != "make check" {
		t.Errorf("the README's first commands are %.2q, want make quickstart and make check", commands)
	}
}

// documents returns the paths of all documents in Markdown, relative to root.
func documents(t testing.TB, root string) (paths []string) {
	t.Helper()
	for _, dir := range []string{"", "docs", "docs/recipes"} {
		files, err := filepath.Glob(filepath.Join(root, dir, "*.md"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			paths = append(paths, filepath.Join(dir, filepath.Base(f)))
		}
	}
	for _, must := range []string{"README.md", "CONTRIBUTING.md", "docs/DESIGN.md", "docs/PROTOCOL.md", "docs/FAULTS.md", "docs/FORMAT.md"} {
		if !slices.Contains(paths, must) {
			t.Errorf("%s does not exist", must)
		}
	}
	return paths
}

// anchors returns the names by which a link reaches the headings of a Markdown
// file, as the usual viewers make them.
func anchors(text string) (names []string) {
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^\w -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

// TestManualLinks checks that each file and each section to which a document
// links exists.
func TestManualLinks(t *testing.T) {
	t.Parallel()
	root := harness.Root(t)
	link := regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`)
	for _, doc := range documents(t, root) {
		text, err := os.ReadFile(filepath.Join(root, doc))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			target := filepath.Join(root, doc)
			if m[1] != "" {
				target = filepath.Join(root, filepath.Dir(doc), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", doc, m[1], err)
				continue
			}
			if m[2] == "" {
				continue
			}
			there, err := os.ReadFile(target)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(anchors(string(there)), m[2]) {
				t.Errorf("%s links to the section %s of %s, which has none of that name", doc, m[2], target)
			}
		}
	}
}

// TestManualTests checks that each test which a document names exists, and that
// each row of the failure table names one.
func TestManualTests(t *testing.T) {
	t.Parallel()
	root := harness.Root(t)
	all := testFunctions(t, root)
	cited := regexp.MustCompile("`((?:Test|Fuzz)\\w+)(\\*)?(?:/\\w+)?`")
	for _, doc := range documents(t, root) {
		text, err := os.ReadFile(filepath.Join(root, doc))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cited.FindAllStringSubmatch(string(text), -1) {
			exists := all[c[1]]
			for name := range all {
				exists = exists || c[2] == "*" && strings.HasPrefix(name, c[1])
			}
			if !exists {
				t.Errorf("%s cites %s%s, which does not exist", doc, c[1], c[2])
			}
		}
	}
	failures := table(t, filepath.Join(root, "docs", "FAULTS.md"), "Failure table")
	if len(failures) == 0 {
		t.Error("docs/FAULTS.md has no failure table")
	}
	for _, row := range failures {
		if !cited.MatchString(row) {
			t.Errorf("no test shows this row of the failure table: %s", row)
		}
	}
}

// TestManualPackages holds the table of packages in docs/DESIGN.md against the
// folders.
func TestManualPackages(t *testing.T) {
	t.Parallel()
	root := harness.Root(t)
	folder := regexp.MustCompile("`((?:ctl|internal|plugin|scripts|tests)(?:/[a-z-]+)*)`")
	var told []string
	for _, row := range table(t, filepath.Join(root, "docs", "DESIGN.md"), "The packages") {
		for _, m := range folder.FindAllStringSubmatch(strings.Split(row, "|")[1], -1) {
			told = append(told, m[1])
		}
	}
	for _, name := range told {
		if info, err := os.Stat(filepath.Join(root, name)); err != nil || !info.IsDir() {
			t.Errorf("docs/DESIGN.md has the package %s, which does not exist", name)
		}
	}
	entries, err := os.ReadDir(filepath.Join(root, "internal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := "internal/" + e.Name(); e.IsDir() && !slices.Contains(told, name) {
			t.Errorf("docs/DESIGN.md lacks the package %s", name)
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
