// SPDX-License-Identifier: MIT

package config

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"gopkg.in/ini.v1"
)

// defaultSection is the section whose keys all others inherit.
const defaultSection = "DEFAULT"

// FileError is a fault in the secrets file: where, and what.
type FileError struct {
	Path    string
	Line    int    // from 1; 0 if the fault is in no line
	Section string // empty if the fault is in no section
	Key     string // empty if the fault is in no key
	Err     error
}

// Error returns "PATH:LINE: [SECTION] KEY: what", without the parts that are
// not known.
func (e *FileError) Error() string {
	var b strings.Builder
	b.WriteString(e.Path)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	b.WriteString(": ")
	if e.Section != "" {
		fmt.Fprintf(&b, "[%s] ", printable(e.Section))
	}
	if e.Key != "" {
		b.WriteString(printable(e.Key) + ": ")
	} else if e.Section != "" {
		s := b.String()
		return s[:len(s)-1] + ": " + e.Err.Error()
	}
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap returns what was wrong.
func (e *FileError) Unwrap() error { return e.Err }

// printable makes s safe for an error of one line.
func printable(s string) string {
	q := fmt.Sprintf("%q", s)
	if q[1:len(q)-1] == s {
		return s
	}
	return q
}

// place is a key of a section.
type place struct{ section, key string }

// pythonic are the options with which ini.v1 is most like Python 3's
// configparser.RawConfigParser. inspect does what no option can do.
var pythonic = ini.LoadOptions{
	KeyValueDelimiters:      "=:", // whichever comes first
	InsensitiveKeys:         true, // keys are lower-cased; sections are not
	IgnoreContinuation:      true, // a backslash at the end is a character of the value
	IgnoreInlineComment:     true, // and ";" and "#" are, after a space too
	PreserveSurroundedQuote: true, // and quotes
}

// parseINI reads data as Python 3's configparser.RawConfigParser would, because
// swiftnbd 0.11 read its secrets with it: every character behind the delimiter
// belongs to the value, quotes, backslashes, "%", ";" and "#" too; comments
// have a line of their own; "=" or ":" delimit where the first of them stands;
// keys are lower-cased and sections are not; a section or key given twice is an
// error. ini.v1 parses, and inspect does what it cannot. parseINI returns the
// file and the line of each key.
//
// Only two things differ from Python, on purpose. A byte order mark is skipped.
// And a value that continues on indented lines is an error. None of our
// settings can have a line break, and Python would silently make an indented
// "password = …" a part of the username above it.
func parseINI(path string, data []byte, known func(key string) bool) (*ini.File, map[place]int, error) {
	text, lines, err := inspect(path, data, known)
	if err != nil {
		return nil, nil, err
	}
	file, err := ini.LoadSources(pythonic, text)
	if err != nil {
		// inspect has found every fault already. The library's error could
		// quote a password, so it is not passed on.
		return nil, nil, &FileError{Path: path, Err: errors.New("cannot be read as an INI file")}
	}
	return file, lines, nil
}

// inspect does what ini.v1 has no option for. It finds the faults: ini.v1 names
// no line, lets the last of two equal keys win, joins two equal sections, and
// takes an indented line for a setting. And it returns the lines for ini.v1 to
// parse, which are those of the sections and keys as they stand in the file, but
// for what ini.v1 would read differently:
//
//   - a carriage return ends a line, alone and before a line feed;
//   - the four ASCII separators are blanks (see isSpace), and are cut off where
//     they stand at the edge of a line, a key or a value;
//   - a value that begins with ` or """ is put between backquotes. ini.v1 takes
//     these marks for quotes, over many lines, and no option stops that; between
//     backquotes it takes all up to the last one of the line.
func inspect(path string, data []byte, known func(key string) bool) ([]byte, map[place]int, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	data = bytes.ReplaceAll(data, []byte("\r"), []byte("\n"))

	var (
		out      bytes.Buffer
		section  string // the section we are in, or ""
		key      string // the option that an indented line would continue, or ""
		indent   int    // characters before the line that opened section or key
		lines    = make(map[place]int)
		sections = make(map[string]int)
		lineno   int
	)
	for line := range strings.Lines(string(data)) {
		lineno++
		fail := func(sec, k, format string, a ...any) error {
			return &FileError{path, lineno, sec, k, fmt.Errorf(format, a...)}
		}
		if !utf8.ValidString(line) {
			return nil, nil, fail("", "", "not UTF-8 text")
		}
		if strings.ContainsRune(line, 0) {
			return nil, nil, fail("", "", "holds a NUL character: not a text file")
		}
		text := strings.TrimFunc(line, isSpace)
		if text == "" || text[0] == '#' || text[0] == ';' {
			continue
		}
		before := utf8.RuneCountInString(line[:strings.Index(line, text)])
		if section != "" && key != "" && before > indent {
			return nil, nil, fail(section, key,
				"goes on in an indented line: a setting is one line, and begins as far left as the one above it")
		}
		indent = before

		if end := strings.LastIndexByte(text, ']'); text[0] == '[' && end > 1 {
			section, key = text[1:end], ""
			if first, ok := sections[section]; ok && section != defaultSection {
				return nil, nil, fail(section, "", "given twice, first in line %d", first)
			}
			sections[section] = lineno
			out.WriteString(text + "\n")
			continue
		}
		if section == "" {
			return nil, nil, fail("", "", "there must be a [container] line before the first setting")
		}
		i := strings.IndexAny(text, pythonic.KeyValueDelimiters)
		if i < 0 {
			return nil, nil, fail(section, "", "a line is neither a [container] nor `key = value`")
		}
		key = strings.ToLower(strings.TrimRightFunc(text[:i], isSpace))
		if key == "" {
			return nil, nil, fail(section, "", "no key before the %q", text[i])
		}
		if !known(key) {
			return nil, nil, fail(section, key, "unknown key (known: %s)", strings.Join(knownKeys(), ", "))
		}
		at := place{section, key}
		if first, ok := lines[at]; ok {
			return nil, nil, fail(section, key, "given twice, first in line %d", first)
		}
		lines[at] = lineno

		value := strings.TrimLeftFunc(text[i+1:], isSpace)
		switch {
		case strings.HasPrefix(value, "`"), strings.HasPrefix(value, `"""`):
			text = key + "=`" + value + "`"
		case strings.ContainsFunc(text, isSeparator):
			text = key + "=" + value
		}
		out.WriteString(text + "\n")
	}
	return out.Bytes(), lines, nil
}

// isSpace says whether Python's str.strip and \s take r for blank: Unicode's
// white space and the four ASCII separators.
func isSpace(r rune) bool { return unicode.IsSpace(r) || isSeparator(r) }

func isSeparator(r rune) bool { return r >= 0x1c && r <= 0x1f }

// knownKeys returns the keys of a section, sorted.
func knownKeys() []string {
	keys := make([]string, 0, len(settings))
	for k := range settings {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
