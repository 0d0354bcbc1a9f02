// SPDX-License-Identifier: MIT

package clouds

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// maxSize bounds the bytes that are read of a file. A user who names a disk by
// mistake gets an error.
const maxSize = 16 << 20

// Places are where the files are looked for. They are found out once: a server
// in the background has another working directory.
type Places struct {
	Config, Secure, Public []string // paths, the first that exists counts
	Named, SecureNamed     bool     // a variable names Config's, Secure's only path
	Directory, Home        string   // for paths in the files; Home may be empty
}

// PlacesOf returns where openstacksdk would look: at OS_CLIENT_CONFIG_FILE and
// OS_CLIENT_SECURE_FILE, or in the working directory, in openstack/ under
// XDG_CONFIG_HOME and under ~/.config, and in /etc/openstack.
func PlacesOf(env func(string) string) (p Places, err error) {
	if p.Directory, err = os.Getwd(); err != nil {
		return p, err
	}
	p.Home = env("HOME")
	folders := []string{p.Directory}
	if xdg := env("XDG_CONFIG_HOME"); filepath.IsAbs(xdg) {
		folders = append(folders, filepath.Join(xdg, "openstack"))
	}
	if p.Home != "" {
		folders = append(folders, filepath.Join(p.Home, ".config", "openstack"))
	}
	folders = append(folders, "/etc/openstack")
	for _, folder := range folders {
		for _, suffix := range []string{".yaml", ".yml", ".json"} {
			add := func(to *[]string, name string) {
				if path := filepath.Join(folder, name+suffix); !slices.Contains(*to, path) {
					*to = append(*to, path)
				}
			}
			add(&p.Config, "clouds")
			add(&p.Secure, "secure")
			add(&p.Public, "clouds-public")
		}
	}
	if path := env("OS_CLIENT_CONFIG_FILE"); path != "" {
		p.Config, p.Named = []string{p.absolute(path)}, true
	}
	if path := env("OS_CLIENT_SECURE_FILE"); path != "" {
		p.Secure, p.SecureNamed = []string{p.absolute(path)}, true
	}
	return p, nil
}

// absolute makes a path absolute, as openstacksdk reads it.
func (p *Places) absolute(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok && p.Home != "" {
		return filepath.Join(p.Home, rest)
	}
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(p.Directory, path)
}

// File is one file that was read. It may hold passwords.
type File struct {
	Path string
	Data []byte
}

// Format implements fmt.Formatter: no verb prints what the file holds.
func (f File) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, f.Path) }

// orNone returns the path of the first of two files that exists, or "".
func (f *File) orNone(other *File) string {
	switch {
	case f != nil:
		return f.Path
	case other != nil:
		return other.Path
	}
	return ""
}

// Files are the files that were found; nil stands for none. One process may hand
// them to another.
type Files struct {
	Places                 Places
	Clouds, Secure, Public *File
	// Trouble says why a file could not be read. It concerns whoever names a
	// cloud, and nobody else: the home directory may be somebody else's.
	Trouble string
}

// Load finds and reads the files. A failure is in Files.Trouble.
func Load(env func(string) string) Files {
	p, err := PlacesOf(env)
	var files Files
	if err == nil {
		files, err = p.Read()
	}
	if err != nil {
		files.Trouble = err.Error()
	}
	return files
}

// Read reads the files. That there is none is no error, unless a variable names
// it.
func (p Places) Read() (files Files, err error) {
	files.Places = p
	if files.Clouds, err = first(p.Config); err != nil {
		return files, err
	}
	if p.Named && files.Clouds == nil {
		return files, fmt.Errorf("OS_CLIENT_CONFIG_FILE: %s: %w", p.Config[0], fs.ErrNotExist)
	}
	secure, public := p.Secure, p.Public
	if files.Clouds != nil {
		folder := filepath.Dir(files.Clouds.Path)
		if !p.SecureNamed {
			secure = append([]string{filepath.Join(folder, "secure.yaml")}, secure...)
		}
		public = append([]string{filepath.Join(folder, "clouds-public.yaml")}, public...)
	}
	if files.Secure, err = first(secure); err != nil {
		return files, err
	}
	if p.SecureNamed && files.Secure == nil {
		return files, fmt.Errorf("OS_CLIENT_SECURE_FILE: %s: %w", secure[0], fs.ErrNotExist)
	}
	files.Public, err = first(public)
	return files, err
}

// first reads the first of these files that exists, and returns nil if none
// does.
func first(paths []string) (*File, error) {
	for _, path := range paths {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, bare(err))
		}
		data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
		f.Close()
		if err == nil && len(data) > maxSize {
			err = fmt.Errorf("larger than %d MiB", maxSize>>20)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, bare(err))
		}
		return &File{path, data}, nil
	}
	return nil, nil
}

// bare removes the operation and path from an error of package os.
func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
