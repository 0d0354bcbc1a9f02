// SPDX-License-Identifier: MIT

package tests

import (
	"go/ast"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// unlisted are packages and files whose messages docs/MESSAGES.md does not have, with
// the reason.
var unlisted = map[string]string{
	"internal/devswift":         "a program for tests",
	"internal/store/faulty":     "for tests",
	"internal/store/mem":        "for tests",
	"internal/store/storetest":  "for tests",
	"internal/logdisk/layout":   "printed behind the object that is damaged",
	"internal/increment":        "printed behind the file that is damaged",
	"internal/chunked/map.go":   "printed behind \"damaged map\"",
	"internal/chunked/shard.go": "printed behind \"damaged map\"",
	"plugin/nbdkit":             "the binding: what it says is about the plugin's code",
}

// unseen are messages that nobody sees, apart from hidden, with the reason.
var unseen = map[string]string{
	"exit status 0": "printed in the line that nbdkit has ended",
	"for …":         "printed behind what did not come in that time",
	"… is …":        "is locked by: the holder's name follows",
	"swiftstore: request without an exchange":                 "a defect of the program",
	"read object …: … of … bytes have come in":                "a defect of the program",
	"read … bytes at … of chunk …: they are not whole blocks": "a defect of the program",
	"nothing is known of what the disk has at …":              "a defect of the program",
}

// TestMessages checks that docs/TROUBLESHOOTING.md or docs/MESSAGES.md has each error
// and warning of our programs, and that docs/MESSAGES.md has no other. What says only
// what was being done, before another error, does not count, nor does what is wrong
// with a command line.
func TestMessages(t *testing.T) {
	t.Parallel()
	told := read(t, "docs", "MESSAGES.md")
	text := told + read(t, "docs", "TROUBLESHOOTING.md")
	printed := make(map[string]bool)
	wanted := 0
	sources(t, func(name string, file *ast.File) {
		if below(name, func(path string) bool { return unlisted[path] != "" || filepath.Base(path) == "testdata" }) {
			return
		}
		ast.Inspect(file, func(n ast.Node) bool {
			message := printedBy(n)
			if message == "" {
				return true
			}
			printed[message] = true
			if hidden[message] != "" || unseen[message] != "" {
				return true
			}
			wanted++
			if !strings.Contains(text, "- `"+message+"`\n") {
				t.Errorf("docs/MESSAGES.md does not have what %s prints: %s", name, message)
			}
			return true
		})
	})
	if wanted < 300 {
		t.Errorf("only %d messages are found in the sources", wanted)
	}
	for _, m := range regexp.MustCompile("(?m)^- `(.*)`$").FindAllStringSubmatch(told, -1) {
		if !printed[m[1]] {
			t.Errorf("docs/MESSAGES.md has a message that no program prints: %s", m[1])
		}
	}
	for message := range unseen {
		if !printed[message] {
			t.Errorf("no package has the error %q any more", message)
		}
	}
}

// saying matches what has words.
var saying = regexp.MustCompile(`[A-Za-z]{2}`)

// printedBy returns the message of a call that makes an error or prints a warning,
// with … for what is filled in; "" if it is no such call, or has no words after those
// for what was being done.
func printedBy(n ast.Node) string {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return ""
	}
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	of := ""
	if x, ok := f.X.(*ast.Ident); ok {
		of = x.Name
	}
	if !slices.Contains([]string{"fmt.Errorf", "errors.New"}, of+"."+f.Sel.Name) && f.Sel.Name != "warn" && f.Sel.Name != "tell" {
		return ""
	}
	message := filled.ReplaceAllString(literal(call.Args[0]), "…")
	if strings.HasSuffix(message, ": …") || !saying.MatchString(message) {
		return ""
	}
	return message
}

// literal returns the text of a literal, or of several that are added.
func literal(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if s, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
			return s
		}
	case *ast.BinaryExpr:
		return literal(e.X) + literal(e.Y)
	}
	return ""
}
