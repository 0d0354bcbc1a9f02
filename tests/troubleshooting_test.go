// SPDX-License-Identifier: MIT

package tests

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// sources has visit see the files of our programs, with their names below the top.
func sources(t testing.TB, visit func(name string, file *ast.File)) {
	t.Helper()
	for _, dir := range []string{"ctl", "plugin", "internal"} {
		err := filepath.WalkDir(filepath.Join(harness.Root(t), dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			name, err := filepath.Rel(harness.Root(t), path)
			if err != nil {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			visit(name, file)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// below says whether a file is one of those, or in a directory that is.
func below(name string, is func(path string) bool) bool {
	for ; name != "."; name = filepath.Dir(name) {
		if is(name) {
			return true
		}
	}
	return false
}

// filled is a verb of fmt.
var filled = regexp.MustCompile(`%[-+#0-9.\[\]]*[a-zA-Z]`)

// messages returns all literal texts of our programs, with … in the place of
// what is filled in.
func messages(t testing.TB) (texts []string) {
	t.Helper()
	sources(t, func(_ string, file *ast.File) {
		ast.Inspect(file, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok {
				if text := literal(l); text != "" {
					texts = append(texts, filled.ReplaceAllString(text, "…"))
				}
			}
			return true
		})
	})
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
// Errorf is nbdkit's.
var logged = map[string]bool{"Log": true, "log": true, "warn": true, "Errorf": true}

// logging are the files of the programs that log while a disk is served.
var logging = []string{
	"internal/cache/*.go", "internal/chunked/*.go", "internal/control/*.go", "internal/device/*.go", "internal/lease/*.go",
	"internal/logdisk/*.go", "internal/nbd/bridge/*.go", "internal/store/swift/again.go", "plugin/*.go", "ctl/attach*.go",
}

// TestTroubleshootingLog checks that docs/TROUBLESHOOTING.md explains each line
// that a server or "attach" logs.
func TestTroubleshootingLog(t *testing.T) {
	t.Parallel()
	text := read(t, "docs", "TROUBLESHOOTING.md")
	found := 0
	for _, files := range logging {
		paths, err := filepath.Glob(filepath.Join(harness.Root(t), files))
		if err != nil || len(paths) == 0 {
			t.Fatalf("the files %s: %v, %v", files, paths, err)
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
					if of, ok := f.X.(*ast.Ident); ok && of.Name == "fmt" {
						return true // an error, which is logged or returned elsewhere
					}
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
				message, _, _ = strings.Cut(filled.ReplaceAllString(message, "…"), "\n")
				if strings.Trim(message, "…: ") == "" {
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

// hidden are errors with a name that nobody sees, with the reason.
var hidden = map[string]string{
	"no faster than writing zeroes":            "NBD's ENOTSUP, which a client asks for",
	"it has changed":                           "ends a walk in ctl",
	"failed":                                   "ctl has printed the error already",
	"a field is cut off or too long":           "is printed behind the object that is damaged",
	"a field is not in its shortest form":      "is printed behind the object that is damaged",
	"a field is too large":                     "is printed behind the object that is damaged",
	"the cluster does not check signed writes": "is printed in the line that writes are not fenced",
}

// TestTroubleshootingErrors checks that docs/TROUBLESHOOTING.md explains each error
// of our programs that has a name: a variable of a package.
func TestTroubleshootingErrors(t *testing.T) {
	t.Parallel()
	text := read(t, "docs", "TROUBLESHOOTING.md")
	found := make(map[string]bool)
	programs := func(path string) bool { // for tests
		return slices.Contains([]string{"devswift", "faulty", "storetest", "testdata"}, filepath.Base(path))
	}
	sources(t, func(name string, file *ast.File) {
		if below(name, programs) {
			return
		}
		for _, decl := range file.Decls {
			g, ok := decl.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, spec := range g.Specs {
				for _, value := range spec.(*ast.ValueSpec).Values {
					if message := newError(t, value); message != "" {
						found[message] = true
						if hidden[message] == "" && !strings.Contains(text, "- `"+message+"`\n") {
							t.Errorf("docs/TROUBLESHOOTING.md does not explain the error of %s: %s", filepath.Base(name), message)
						}
					}
				}
			}
		}
	})
	if len(found) < 40 {
		t.Errorf("only %d errors are found in the sources", len(found))
	}
	for message := range hidden {
		if !found[message] {
			t.Errorf("no package has the error %q any more", message)
		}
	}
}

// newError returns the text of errors.New, of which the first literal counts, or "".
func newError(t testing.TB, value ast.Expr) string {
	call, ok := value.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 {
		return ""
	}
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if of, is := f.X.(*ast.Ident); !is || of.Name != "errors" || f.Sel.Name != "New" {
		return ""
	}
	arg := call.Args[0]
	for {
		sum, ok := arg.(*ast.BinaryExpr)
		if !ok {
			break
		}
		arg = sum.X
	}
	l, ok := arg.(*ast.BasicLit)
	if !ok {
		return ""
	}
	message, err := strconv.Unquote(l.Value)
	if err != nil {
		t.Fatal(err)
	}
	return message
}
