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
	Line    int    // from 1; 0 where the fault is in no line
	Section string // empty where no section is concerned
	Key     string // empty where no key is
	Err     error
}

// Error renders "PATH:LINE: [SECTION] KEY: what", without what is not known.
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

// printable keeps an error to one line, whatever the file holds.
func printable(s string) string {
	q := fmt.Sprintf("%q", s)
	if q[1:len(q)-1] == s {
		return s
	}
	return q
}

// place is a key of a section.
type place struct{ section, key string }

// parseINI reads data as Python 3's configparser.RawConfigParser would, for
// that is what swiftnbd 0.11 read its secrets with: every character behind the
// delimiter belongs to the value, quotes, backslashes, "%", ";" and "#" too;
// comments have a line of their own; "=" or ":" delimit where the first of them
// stands; keys are lower-cased and sections are not; a section or key given
// twice is an error. It returns the file and the line of each key.
//
// Only two things differ, on purpose. A byte order mark is skipped. And a
// value that goes on on indented lines is an error here and now: no setting of
// ours can have a line break, and Python's silent joining turns one indented
// "password = …" into a part of the username above it.
func parseINI(path string, data []byte, known func(key string) bool) (*ini.File, map[place]int, error) {
	text, lines, err := rephrase(path, data, known)
	if err != nil {
		return nil, nil, err
	}
	file, err := ini.LoadSources(ini.LoadOptions{KeyValueDelimiters: "="}, text)
	if err != nil {
		// rephrase leaves nothing to complain of. The library's words
		// could quote a password, so they are not passed on.
		return nil, nil, &FileError{Path: path, Err: errors.New("cannot be read as an INI file")}
	}
	return file, lines, nil
}

// rephrase applies Python's rules to the lines of data and writes what they say
// in the one form that ini.v1 reads to the letter: no comments, no blank lines,
// `key=value` with the value between backquotes (the library takes all up to
// the line's last backquote, so that those in the value stay). It is also where
// faults are found, since here their lines are known.
func rephrase(path string, data []byte, known func(key string) bool) ([]byte, map[place]int, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	data = bytes.ReplaceAll(data, []byte("\r"), []byte("\n"))

	var (
		out       bytes.Buffer
		section   string // the section we are in, or ""
		key       string // the option that an indented line would continue, or ""
		indent    int    // characters before the line that opened section or key
		lines     = make(map[place]int)
		sections  = make(map[string]int)
		lineno    int
		failAt    = func(line int, sec, k string, err error) error { return &FileError{path, line, sec, k, err} }
		remaining = string(data)
	)
	for remaining != "" {
		var line string
		line, remaining, _ = strings.Cut(remaining, "\n")
		lineno++
		fail := func(sec, k, format string, a ...any) error {
			return failAt(lineno, sec, k, fmt.Errorf(format, a...))
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
			fmt.Fprintf(&out, "[%s]\n", section)
			continue
		}
		if section == "" {
			return nil, nil, fail("", "", "there must be a [container] line before the first setting")
		}
		i := strings.IndexAny(text, "=:")
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
		fmt.Fprintf(&out, "%s=`%s`\n", key, strings.TrimLeftFunc(text[i+1:], isSpace))
	}
	return out.Bytes(), lines, nil
}

// isSpace is what Python's str.strip and \s take for blank: Unicode's white
// space and the four ASCII separators.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }

// knownKeys returns the keys of a section, sorted.
func knownKeys() []string {
	keys := make([]string, 0, len(settings))
	for k := range settings {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
