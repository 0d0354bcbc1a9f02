// SPDX-License-Identifier: MIT

package tests

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// messages returns all literal texts of our programs, with … in the place of
// what is filled in.
func messages(t testing.TB) (texts []string) {
	t.Helper()
	verb := regexp.MustCompile(`%[-+#0-9.\[\]]*[a-zA-Z]`)
	for _, dir := range []string{"ctl", "plugin", "internal"} {
		err := filepath.WalkDir(filepath.Join(harness.Root(t), dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
					if text, err := strconv.Unquote(l.Value); err == nil {
						texts = append(texts, verb.ReplaceAllString(text, "…"))
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return texts
}

// TestTroubleshooting checks that each message that docs/TROUBLESHOOTING.md
// explains is one that our programs can print.
func TestTroubleshooting(t *testing.T) {
	t.Parallel()
	all := strings.Join(messages(t), "\x00")
	told := regexp.MustCompile("(?m)^- `(.*)`$").FindAllStringSubmatch(read(t, "docs", "TROUBLESHOOTING.md"), -1)
	if len(told) < 20 {
		t.Fatalf("docs/TROUBLESHOOTING.md explains %d messages only", len(told))
	}
	for _, m := range told {
		if !strings.Contains(all, m[1]) {
			t.Errorf("docs/TROUBLESHOOTING.md explains a message that no program prints: %s", m[1])
		}
	}
}

// logged is a message that a disk logs while it is served.
var logged = map[string]bool{"Log": true, "log": true, "warn": true}

// TestTroubleshootingLog checks that docs/TROUBLESHOOTING.md explains each line
// that the packages of a disk log.
func TestTroubleshootingLog(t *testing.T) {
	t.Parallel()
	verb := regexp.MustCompile(`%[-+#0-9.\[\]]*[a-zA-Z]`)
	text := read(t, "docs", "TROUBLESHOOTING.md")
	found := 0
	for _, dir := range []string{"cache", "chunked", "control", "device", "lease", "logdisk"} {
		paths, err := filepath.Glob(filepath.Join(harness.Root(t), "internal", dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || len(call.Args) == 0 {
					return true
				}
				name := ""
				switch f := call.Fun.(type) {
				case *ast.SelectorExpr:
					name = f.Sel.Name
				case *ast.Ident:
					name = f.Name
				}
				l, ok := call.Args[0].(*ast.BasicLit)
				if !logged[name] || !ok || l.Kind != token.STRING {
					return true
				}
				message, err := strconv.Unquote(l.Value)
				if err != nil {
					t.Fatal(err)
				}
				message, _, _ = strings.Cut(verb.ReplaceAllString(message, "…"), "\n")
				if message == "…" {
					return true // an error, whose own text it is
				}
				found++
				if !strings.Contains(text, "- `"+message+"`\n") {
					t.Errorf("docs/TROUBLESHOOTING.md does not explain what %s logs: %s", filepath.Base(path), message)
				}
				return true
			})
		}
	}
	if found < 15 {
		t.Errorf("only %d messages are found in the sources", found)
	}
}
