// SPDX-License-Identifier: MIT

package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/ini.v1"
)

// asPython reads each text with Python 3's RawConfigParser, as swiftnbd 0.11
// does its secrets file, and prints what it made of it: per text either the
// name of the exception or the sections with their own keys.
const asPython = `
import configparser, io, json, sys
out = []
for text in json.load(sys.stdin):
    p = configparser.RawConfigParser()
    try:
        p.read_file(io.StringIO(text, newline=None))
        s = {name: dict(p._sections[name]) for name in p.sections()}
        out.append({"sections": p.sections(), "values": s, "defaults": dict(p.defaults())})
    except Exception as ex:
        out.append({"error": type(ex).__name__})
json.dump(out, sys.stdout)
`

type pythonFile struct {
	Error    string
	Sections []string
	Values   map[string]map[string]string
	Defaults map[string]string
}

// pythonReads has Python read every text. Without a Python the comparison
// cannot be made: the test is skipped, or fails where none may be.
func pythonReads(t *testing.T, texts []string) []pythonFile {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("SWIFTNBD_TEST_REQUIRE") != "" {
			t.Fatal("SWIFTNBD_TEST_REQUIRE is set, and there is no python3 here to compare with")
		}
		t.Skip("no python3 here to compare with")
	}
	in, err := json.Marshal(texts)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, "-c", asPython)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var files []pythonFile
	if err := json.Unmarshal(out, &files); err != nil {
		t.Fatal(err)
	}
	return files
}

// plain is a key such as ours are. All others are unknown to parseINI's caller.
var plain = regexp.MustCompile(`^[a-z][a-z -]*$`)

// compare holds our reading of text against Python's. What Python refuses we
// refuse; what it reads we read the same, unless a value has a line break or a
// key is unknown, which we refuse on purpose.
func compare(text string, want pythonFile) error {
	file, _, err := parseINI("f", []byte(text), plain.MatchString)
	if want.Error != "" {
		if err == nil {
			return fmt.Errorf("Python ends with %s, we read it", want.Error)
		}
		return nil
	}
	for _, section := range append([]string{""}, want.Sections...) {
		values := want.Values[section]
		if section == "" {
			values = want.Defaults
		}
		for key, v := range values {
			if strings.Contains(v, "\n") || !plain.MatchString(key) {
				if err == nil {
					return fmt.Errorf("%q has a line break or is unknown, we read it", key)
				}
				return nil
			}
		}
	}
	if err != nil {
		return err
	}
	return agree(file, want)
}

// agree says where file is not what Python read.
func agree(file *ini.File, want pythonFile) error {
	var names []string
	for _, s := range file.Sections() {
		values := want.Values[s.Name()]
		if s.Name() == defaultSection {
			values = want.Defaults
		} else {
			names = append(names, s.Name())
		}
		got := s.KeysHash()
		if len(got) != len(values) {
			return fmt.Errorf("[%s] has %d keys, Python's %d", s.Name(), len(got), len(values))
		}
		for k, v := range values {
			if g, ok := got[k]; !ok || g != v {
				return fmt.Errorf("[%s] %s is %q, Python's %q", s.Name(), k, g, v)
			}
		}
	}
	if strings.Join(names, "\n") != strings.Join(want.Sections, "\n") {
		return fmt.Errorf("sections %q, Python's %q", names, want.Sections)
	}
	return nil
}

// TestReadsAsPython holds files that people write, and a few that nobody
// should, against Python.
func TestReadsAsPython(t *testing.T) {
	texts := []string{
		"[a]\nusername = test:tester\npassword = testing\n",
		"[a]\nusername=u\npassword=p%s%(x)s%%\n",
		"[a]\npassword = p;q#r ; s # t\n",
		"[a]\npassword = \"quoted\"\n[b]\npassword = 'single'\n[c]\npassword = \"half\n",
		"[a]\npassword = `back`quote\n[b]\npassword = `all`\n[c]\npassword = ```\n[d]\npassword = `\n",
		"[a]\npassword = \"\"\"triple\"\"\"\n[b]\npassword = \"\"\"open\n",
		"[a]\npassword = ends\\\nusername = u\\\n",
		"[a]\npassword = a=b:c\n[b]\npassword: a=b\n[c]\npassword : x\n[d]\npassword =: x\n",
		"[a]\npassword = in side\t tab  \nusername =\t  u\v\f\n",
		"[a]\npassword =\nusername = \n",
		"[a]\npassword = pässwörd \u00a0\u2003\n[ü]\npassword = 日本語\n",
		"[a]\npassword = \x1cx\x1f y\x1d\x1e\n",
		"# c\n; c\n   # c\n[a]\n  # c\nusername = u\n    ; c\npassword = p\n",
		"[a]\r\nusername = u\r\npassword = p \r\n\r\n",
		"[a]\rusername = u\rpassword = p\r",
		"[a]\nUserName = u\nPASSWORD = P\nRead-Only = 1\n",
		"[A]\nusername = 1\n[a]\nusername = 2\n",
		"[a.b]\nusername = 1\n[a]\npassword = 2\n[a.b.c]\n",
		"[DEFAULT]\nusername = u\n[a]\n[default]\nusername = v\n[DEFAULT]\npassword = p\n",
		"[DEFAULT]\nusername = u\n[DEFAULT]\nusername = v\n",
		"[ a ]\nusername = u\n[a]\n[a ]\n",
		"[a]b]\nusername = u\n", "[a] # comment\nusername = u\n", "[[a]]\nusername = u\n", "[]\n", "[]]\n", "[a\nx = y\n",
		"[a]\nusername = u\n[a]\npassword = p\n",
		"[a]\nusername = u\nUSERNAME = v\n",
		"username = u\n[a]\n", "nonsense\n", "[a]\nnonsense\n", "[a]\n= x\n", "[a]\n: x\n",
		"[a]\nusername = u\n  password = p\n", "[a]\n  username = u\n  password = p\n", "[a]\n  username = u\npassword = p\n",
		"[a]\nusername =\n  u\n", "[a]\nusername = u\n\n\n  more\n", "[a]\nusername = u\n  [b]\npassword = p\n",
		"  [a]\n username = u\n", "[a]\nusername = u\n\n", "", "\n\n", "[a]", "[a]\nusername = u",
		"[a]\n- = 1\n-- = 2\n", "[a]\n\"quoted key\" = 1\n", "[a]\n`key` = 1\n", "[a]\nkey with spaces = 1\n",
	}
	for i, want := range pythonReads(t, texts) {
		if err := compare(texts[i], want); err != nil {
			t.Errorf("%q: %v", texts[i], err)
		}
	}
}

// TestLibraryAlone holds what inspect does against ini.v1 without it: each of
// these texts ini.v1 reads differently from Python, whatever its options are.
// A text that fails here has become ini.v1's own to read: take it out of inspect.
func TestLibraryAlone(t *testing.T) {
	multiline, skip, shadows, unique, quotes, spaced := pythonic, pythonic, pythonic, pythonic, pythonic, pythonic
	multiline.AllowPythonMultilineValues = true
	skip.SkipUnrecognizableLines = true
	shadows.AllowShadows, shadows.AllowDuplicateShadowValues = true, true
	unique.AllowNonUniqueSections = true
	quotes.UnescapeValueDoubleQuotes = true
	spaced.IgnoreInlineComment, spaced.SpaceBeforeInlineComment = false, true
	cases := []struct {
		name, text string
		options    ini.LoadOptions
	}{
		{"backquotes", "[a]\npassword = `x`\n", pythonic},
		{"backquotes over lines", "[a]\npassword = `x\nusername = u`\n", pythonic},
		{"three quotes", "[a]\npassword = \"\"\"x\"\"\"\n", pythonic},
		{"three quotes, unescaped", "[a]\npassword = \"\"\"x\"\"\"\n", quotes},
		{"one quote, unescaped", "[a]\npassword = \"x\"y\n", quotes},
		{"a comment after a space", "[a]\npassword = x #y\n", spaced},
		{"a carriage return", "[a]\rpassword = x\r", pythonic},
		{"a separator", "[a]\npassword = x\x1f\n", pythonic},
		{"a separator before a section", "\x1c[a]\npassword = x\n", pythonic},
		{"a key twice", "[a]\npassword = x\npassword = y\n", pythonic},
		{"a key twice, shadows", "[a]\npassword = x\npassword = y\n", shadows},
		{"a section twice", "[a]\npassword = x\n[a]\nusername = y\n", pythonic},
		{"a section twice, not unique", "[a]\npassword = x\n[a]\nusername = y\n", unique},
		{"a setting before the sections", "password = x\n[a]\n", pythonic},
		{"a line that is nothing, skipped", "[a]\nnonsense\n", skip},
		{"an indented line", "[a]\nusername = u\n  password = p\n", pythonic},
		{"lines that are all indented, multi-line", "[a]\n  username = u\n  password = p\n", multiline},
		{"an indented section, multi-line", "[a]\nusername = u\n  [b]\npassword = p\n", multiline},
		{"an indented comment, multi-line", "[a]\nusername = u\n  # c\npassword = p\n", multiline},
		{"an indented line after a quoted one, multi-line", "[a]\nusername = `u`\n  password\n", multiline},
	}
	var texts []string
	for _, c := range cases {
		texts = append(texts, c.text)
	}
	for i, want := range pythonReads(t, texts) {
		c := cases[i]
		file, err := ini.LoadSources(c.options, []byte(c.text))
		if err == nil && agree(file, want) == nil {
			t.Errorf("%s: ini.v1 reads %q as Python does", c.name, c.text)
		}
		if err != nil && want.Error != "" {
			t.Errorf("%s: ini.v1 refuses %q as Python does", c.name, c.text)
		}
	}
}

// TestPasswordsAsPython is the property behind the table: whatever characters
// a password has, we read what Python reads.
func TestPasswordsAsPython(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const awkward = " \t%;#=:'\"`\\[]()$&!?*{}|<>~^,.@/-_+\v\f\u0085\u00a0\u2028\ufeff\x1c\x7fäß語"
	alphabet := []rune(awkward + "abcXYZ019")
	var texts []string
	for range 2000 {
		var b strings.Builder
		b.WriteString("[a]\nusername = u\npassword")
		b.WriteString([]string{" = ", "=", ":", " : ", "\t=\t"}[r.IntN(5)])
		for range r.IntN(14) {
			b.WriteRune(alphabet[r.IntN(len(alphabet))])
		}
		b.WriteString([]string{"\n", "\r\n", "", "\n[b]\nusername = v\n"}[r.IntN(4)])
		texts = append(texts, b.String())
	}
	// And whole files of awkward pieces.
	pieces := []string{"[a]", "[b]", "[DEFAULT]", "username", "password", " = ", ":", "x", "`", "\"\"\"", "\\", "\n", "\n", "\n", " ", "\t", "#", ";", "\r\n"}
	for range 3000 {
		b := strings.Builder{}
		for range r.IntN(16) {
			b.WriteString(pieces[r.IntN(len(pieces))])
		}
		texts = append(texts, b.String())
	}
	for i, want := range pythonReads(t, texts) {
		if err := compare(texts[i], want); err != nil {
			t.Errorf("%q: %v", texts[i], err)
		}
	}
}

// TestErrorsNameThePlace wants every fault to say where it is.
func TestErrorsNameThePlace(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"[a]\nusername = u\n  password = p\n", "/s.conf:3: [a] username: goes on in an indented line: a setting is one line, and begins as far left as the one above it"},
		{"[a]\nusername = u\nUSERNAME = v\n", "/s.conf:3: [a] username: given twice, first in line 2"},
		{"[a]\n\n[b]\n[a]\n", "/s.conf:4: [a]: given twice, first in line 1"},
		{"x = 1\n", "/s.conf:1: there must be a [container] line before the first setting"},
		{"[a]\nx\n", "/s.conf:2: [a]: a line is neither a [container] nor `key = value`"},
		{"[a]\nuser = u\n", "/s.conf:2: [a] user: unknown key (known: " + strings.Join(knownKeys(), ", ") + ")"},
		{"[a]\nread-only = perhaps\n", `/s.conf:2: [a] read-only: "perhaps" is neither 0 nor 1 (no, yes, false, true, off, on)`},
		{"[DEFAULT]\nendpoint-type = secret\n", `/s.conf:2: [DEFAULT] endpoint-type: "secret" is not public, internal or admin`},
		{"[a]\nauthurl = keystone:5000\n", `/s.conf:2: [a] authurl: "keystone:5000" does not begin with http:// or https://`},
		{"[a]\nauthurl = http://u:p@h/\n", "/s.conf:2: [a] authurl: holds a user name: credentials belong into username and password"},
		{"[a]\nauth-version = 4\n", `/s.conf:2: [a] auth-version: "4" is not 1, 2 or 3`},
		{"[a/b]\n", "/s.conf: [a/b]: a container's name cannot contain a slash"},
		{"[a\x00]\n", "/s.conf:1: holds a NUL character: not a text file"},
		{"[\xff]\n", "/s.conf:1: not UTF-8 text"},
		{"[" + strings.Repeat("x", 257) + "]\n", "/s.conf: [" + strings.Repeat("x", 257) + "]: a container's name has at most 256 bytes, this one has 257"},
	} {
		_, err := ParseSecrets("/s.conf", []byte(c.text))
		if err == nil || err.Error() != c.want {
			t.Errorf("%q:\n got %v\nwant %s", c.text, err, c.want)
			continue
		}
		var fe *FileError
		if !errors.As(err, &fe) || fe.Path != "/s.conf" {
			t.Errorf("%q: %T is no *FileError", c.text, err)
		}
	}
}

// TestByteOrderMark: Python would stumble over it, an editor on Windows writes
// it, and we skip it.
func TestByteOrderMark(t *testing.T) {
	s, err := ParseSecrets("f", []byte("\ufeff[a]\r\nusername = u\r\n"))
	if err != nil || len(s.Containers()) != 1 || s.Containers()[0] != "a" {
		t.Fatalf("%v, %v", s, err)
	}
}

// FuzzParseSecrets puts a password between two pieces of a file. It wants no
// panic, no error that is more than one line, and none that quotes the password.
func FuzzParseSecrets(f *testing.F) {
	const marker = "s3cr3t-m4rk3r"
	f.Add([]byte("[a]\nusername = u\n"), []byte("read-only = 1\n"))
	f.Add([]byte("\ufeff[DEFAULT]\nauthurl=http://h/v3\n"), []byte("[b]\napplication-credential-id: x\r\n"))
	f.Add([]byte("[a]\n x = `\n  y"), []byte("  z"))
	f.Add([]byte("[a]\npassword = 1"), []byte("[a]\npassword = 2"))
	f.Add([]byte(""), []byte("\x00\xff"))
	f.Fuzz(func(t *testing.T, before, after []byte) {
		check := func(err error) {
			if err == nil {
				return
			}
			if msg := err.Error(); strings.ContainsAny(msg, "\n\r") || strings.Contains(msg, marker) {
				t.Fatalf("error of more than one line, or with the password: %q", msg)
			}
		}
		data := slices.Concat(before, []byte("\npassword = "+marker+"\n"), after)
		s, err := ParseSecrets("f", data)
		check(err)
		if err != nil {
			return
		}
		for _, c := range s.Containers() {
			_, err := s.Export(c, Defaults{AuthURL: "http://h/v1.0"}, nil)
			check(err)
		}
		if err := s.Validate(Defaults{}, nil); err != nil { // one line a section
			for line := range strings.SplitSeq(err.Error(), "\n") {
				check(errors.New(line))
			}
		}
		if out := fmt.Sprintf("%v %+v %#v", s, s, s); strings.Contains(out, marker) {
			t.Fatalf("printed with the password: %q", out)
		}
	})
}

// FuzzParseSize takes no size that is negative, or that means more than one.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"64M", "0", "9223372036854775807", "8E", "1KiB", "-1", "1.5G", "\u0661M"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			if n != 0 || strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("%q: %d, %q", s, n, err)
			}
			return
		}
		if again, err := ParseSize(fmt.Sprint(n)); n < 0 || err != nil || again != n {
			t.Errorf("%q is %d, which is %d again, %v", s, n, again, err)
		}
	})
}
