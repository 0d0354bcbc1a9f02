// SPDX-License-Identifier: MIT

package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
)

// DefaultPath is the path of the secrets file unless the user names another.
// swiftnbd 0.11 had the same default.
const DefaultPath = "/etc/swiftnbd/secrets.conf"

// maxSecretsSize bounds the bytes that are read of a secrets file. A user who
// names a disk by mistake gets an error, and the memory is not filled.
const maxSecretsSize = 16 << 20

// ErrNoContainer says that a container has no section in the secrets file, and
// that the environment gives no credentials instead.
var ErrNoContainer = errors.New("no such container in the secrets file")

// noContainerError is ErrNoContainer in the words of swiftnbd 0.11, with what
// the environment lacks.
type noContainerError struct{ container, path, lacks string }

func (e *noContainerError) Error() string {
	return fmt.Sprintf("%s not found in %s%s", printable(e.container), e.path, e.lacks)
}
func (e *noContainerError) Is(target error) bool { return target == ErrNoContainer }

// Secrets is a secrets file that has been read and whose values have been
// checked one by one. It is immutable.
type Secrets struct {
	path       string
	containers []string                     // in the file's order
	values     map[string]map[string]string // section -> key -> value, DEFAULT's apart
	lines      map[place]int
}

// ParseSecrets reads the content of a secrets file. path serves for messages,
// and a relative cacert is looked for in its folder. An error is a *FileError:
// a line that is no INI, a key or section given twice, an unknown key, a value
// that its key does not take, a section that cannot be a container's name.
func ParseSecrets(path string, data []byte) (*Secrets, error) {
	known := func(key string) bool { _, ok := settings[key]; return ok }
	file, lines, err := parseINI(path, data, known)
	if err != nil {
		return nil, err
	}
	s := &Secrets{path: path, values: make(map[string]map[string]string), lines: lines}
	for _, section := range file.Sections() {
		name := section.Name()
		if name != defaultSection {
			if err := CheckContainer(name); err != nil {
				return nil, &FileError{Path: path, Section: name, Err: err}
			}
			s.containers = append(s.containers, name)
		}
		// KeysHash has only the section's own keys. Key would give the section
		// "a.b" the keys of "a" too.
		s.values[name] = section.KeysHash()
		for _, key := range section.KeyStrings() {
			check := settings[key]
			if check == nil {
				continue
			}
			if err := check(s.values[name][key]); err != nil {
				return nil, s.fault(name, key, err)
			}
		}
	}
	return s, nil
}

// NoSecrets returns Secrets without a file: every container uses the
// environment. path is the file that was looked for.
func NoSecrets(path string) *Secrets { return &Secrets{path: path} }

// ReadSecrets reads and parses the secrets file at path. warning, when not
// empty, is one line for the user: others can read the file. An error names
// the file; it is fs.ErrNotExist where there is none, for callers who then go
// on with NoSecrets.
func ReadSecrets(path string) (s *Secrets, warning string, err error) {
	data, info, err := ReadFile(path)
	if err != nil {
		return nil, "", err
	}
	if info.Mode().IsRegular() {
		warning = WorldReadable(path, info.Mode())
	}
	s, err = ParseSecrets(path, data)
	return s, warning, err
}

// ReadFile reads the secrets file at path. An error names the file.
func ReadFile(path string) (data []byte, info fs.FileInfo, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("secrets file %s: %w", path, bare(err))
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, nil, fmt.Errorf("secrets file %s: %w", path, bare(err))
	}
	if info.IsDir() {
		return nil, nil, fmt.Errorf("secrets file %s: is a directory", path)
	}
	if data, err = io.ReadAll(io.LimitReader(f, maxSecretsSize+1)); err != nil {
		return nil, nil, fmt.Errorf("secrets file %s: %w", path, bare(err))
	}
	if len(data) > maxSecretsSize {
		return nil, nil, fmt.Errorf("secrets file %s: larger than %d MiB", path, maxSecretsSize>>20)
	}
	return data, info, nil
}

// ReadOnce says that the file gives its content once, as a pipe does. Who reads it
// again waits for somebody who writes, or finds it empty.
func ReadOnce(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.Mode().IsRegular()
}

// WorldReadable returns a warning if others can read a secrets file of this
// mode, or "".
func WorldReadable(path string, mode fs.FileMode) string {
	if mode.Perm()&0o004 == 0 {
		return ""
	}
	return fmt.Sprintf("%s is world readable, please consider changing its permissions to 0600", path)
}

// bare removes the operation and path from an error of package os. The caller's
// message has them.
func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Path returns the file's path as it was given.
func (s *Secrets) Path() string { return s.path }

// Containers returns the file's sections in their order, without [DEFAULT].
func (s *Secrets) Containers() []string { return slices.Clone(s.containers) }

// Has says whether the container has a section of its own.
func (s *Secrets) Has(container string) bool { return slices.Contains(s.containers, container) }

// Validate resolves every section with these defaults and this environment. It
// returns the errors of all sections, joined, or nil.
func (s *Secrets) Validate(d Defaults, env Environ) error {
	var errs []error
	for _, c := range s.containers {
		if _, err := s.Export(c, d, env); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Format implements fmt.Formatter: under every verb only the file's name and
// the number of its sections are printed, since fmt would not ask the values
// in unexported fields to redact themselves.
func (s *Secrets) Format(f fmt.State, _ rune) {
	if s == nil {
		_, _ = io.WriteString(f, "<nil>")
		return
	}
	_, _ = fmt.Fprintf(f, "secrets(%s, %d containers)", s.path, len(s.containers))
}

// get returns the value of a key from the section itself or from [DEFAULT], and
// which of the two has it; "" if neither has.
func (s *Secrets) get(section, key string) (value, from string) {
	if v, ok := s.values[section][key]; ok {
		return v, section
	}
	if v, ok := s.values[defaultSection][key]; ok {
		return v, defaultSection
	}
	return "", ""
}

// fault returns an error about a key, with the line on which it is set.
func (s *Secrets) fault(section, key string, err error) error {
	return &FileError{Path: s.path, Line: s.lines[place{section, key}], Section: section, Key: key, Err: err}
}

// blame is fault for a key that the section may have from [DEFAULT].
func (s *Secrets) blame(section, key string, err error) error {
	if _, from := s.get(section, key); from != "" {
		section = from
	}
	return s.fault(section, key, err)
}
