// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Note lies in the container of a disk that has a clone, and says so: the root
// that it names must be kept. Who makes a clone writes it without the disk's
// lease, so it is an object of its own and not part of a root.
type Note struct {
	Snapshot  string // the pin's name, for people
	URL       string // of the clone's storage; SameAccount
	Container string // of the clone
	UUID      UUID
	Made      time.Time // for people only
}

const note = "note of a clone"

// noteDigits is how many digits of a note's name stand for the clone.
const noteDigits = 16

// ChildName returns the name of the note that the clone in a container has its
// base in the root at p. A clone that is made once more gets the same one.
func ChildName(p Position, url, container string) string {
	return name(ChildPrefix, p, runDigits) + ChildSuffix(url, container)
}

// ChildSuffix returns how the names of the notes of a clone end.
func ChildSuffix(url, container string) string {
	sum := md5.Sum([]byte(url + "\n" + container))
	return "-" + hex.EncodeToString(sum[:])[:noteDigits]
}

// ParseChildName returns the root that a note's name is about.
func ParseChildName(s string) (Position, bool) {
	i := len(s) - noteDigits - 1
	if i < 0 || s[i] != '-' || strings.Trim(s[i+1:], lowerHex) != "" {
		return Position{}, false
	}
	return parseName(s[:i], ChildPrefix, runDigits)
}

// RecentName returns the name of the object that names the newest of the notes of
// the root at p, of those whose suffixes begin with the same digit: by it a note
// is found before the container's listing has it.
func RecentName(p Position, url, container string) string {
	return name(ChildPrefix, p, runDigits) + ChildSuffix(url, container)[:2]
}

// RecentNames returns all that RecentName may return for the root at p.
func RecentNames(p Position) (names []string) {
	for _, digit := range lowerHex {
		names = append(names, name(ChildPrefix, p, runDigits)+"-"+string(digit))
	}
	return names
}

// ParseRecentName returns the root that such an object is about.
func ParseRecentName(s string) (Position, bool) {
	i := len(s) - 2
	if i < 0 || s[i] != '-' || !strings.Contains(lowerHex, s[i+1:]) {
		return Position{}, false
	}
	return parseName(s[:i], ChildPrefix, runDigits)
}

// GoneName returns the name of the note that the pin of the root at p is being
// deleted, or was.
func GoneName(p Position) string { return name(GonePrefix, p, runDigits) }

// ParseGoneName is the inverse of GoneName. It takes exactly what GoneName makes.
func ParseGoneName(s string) (Position, bool) { return parseName(s, GonePrefix, runDigits) }

type noteText struct {
	Snapshot, Url, Container string
	Uuid                     UUID
	Made                     time.Time
}

// Marshal returns the bytes of a note.
func (n Note) Marshal() ([]byte, error) {
	line, err := json.Marshal(noteText{n.Snapshot, n.URL, n.Container, n.UUID, n.Made.UTC().Truncate(time.Millisecond)})
	if err == nil {
		err = checkContainer(n.URL, n.Container, n.UUID)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", note, err)
	}
	return seal(line), nil
}

// ParseNote is the inverse of Marshal.
func ParseNote(b []byte) (Note, error) {
	line, _, ok := bytes.Cut(b, []byte("\n"))
	if !ok || !bytes.Equal(b, seal(line)) {
		return Note{}, damaged(note, "wrong checksum of %d bytes", len(b))
	}
	var t noteText
	if err := decode(line, &t); err != nil {
		return Note{}, damaged(note, "%v", err)
	}
	if err := checkContainer(t.Url, t.Container, t.Uuid); err != nil {
		return Note{}, damaged(note, "%v", err)
	}
	return Note{Snapshot: t.Snapshot, URL: t.Url, Container: t.Container, UUID: t.Uuid, Made: t.Made}, nil
}
