// SPDX-License-Identifier: MIT

package store

import (
	"cmp"
	"fmt"
	"net/http"
	"strings"
)

// The headers of a container by which Swift keeps older versions of its
// objects (Swift's middleware versioned_writes).
const (
	HeaderStack   = "X-Versions-Location"
	HeaderHistory = "X-History-Location"
	HeaderEnabled = "X-Versions-Enabled"
)

// Versions says what Swift does with an object of the container that is
// replaced or deleted. The parts are independent of each other.
type Versions struct {
	// Stack names the container to which Swift moves older versions. A DELETE
	// moves the latest of them back, so it does not delete.
	Stack string
	// History names the container to which Swift moves older versions and
	// deleted objects.
	History string
	// Enabled says that older versions stay in the container itself, where
	// a plain listing does not show them.
	Enabled bool
	// Suspended says that Enabled was set once, and older versions may be left.
	Suspended bool
}

// ParseVersions reads the headers of a container.
func ParseVersions(h http.Header) Versions {
	v := Versions{Stack: h.Get(HeaderStack), History: h.Get(HeaderHistory)}
	if is := h.Get(HeaderEnabled); is != "" {
		v.Enabled = strings.EqualFold(is, "true")
		v.Suspended = !v.Enabled
	}
	return v
}

// Inside says that the container may hold older versions itself.
func (v Versions) Inside() bool { return v.Enabled || v.Suspended }

// Archive returns the container to which older versions are moved, or "".
func (v Versions) Archive() string { return cmp.Or(v.Stack, v.History) }

// String names the headers that are in force, for people: "X-Versions-Location:
// old1". It is empty where no versions are kept.
func (v Versions) String() string {
	var all []string
	if v.Stack != "" {
		all = append(all, HeaderStack+": "+OneLine(v.Stack))
	}
	if v.History != "" {
		all = append(all, HeaderHistory+": "+OneLine(v.History))
	}
	if v.Enabled {
		all = append(all, HeaderEnabled+": True")
	}
	return strings.Join(all, ", ")
}

// RestoresError says that a DELETE in the container brings an older version
// back (X-Versions-Location). A chunk of zeroes is a DELETE, so no disk may be
// written there.
type RestoresError struct {
	Container string // "" if the caller's message names it
	Archive   string
}

func (e *RestoresError) Error() string {
	return fmt.Sprintf("has %s: %s, so that Swift answers a DELETE by bringing the previous version back, and old data would show where zeroes were written; remove it: swift post %s -H 'X-Remove-Versions-Location: x'",
		HeaderStack, OneLine(e.Archive), cmp.Or(e.Container, "CONTAINER"))
}

// Restores returns a *RestoresError if a DELETE in the container of that name
// brings an older version back, and otherwise nil.
func (v Versions) Restores(container string) error {
	if v.Stack == "" {
		return nil
	}
	return &RestoresError{Container: container, Archive: v.Stack}
}

// Kept returns the words of a warning that the container keeps every version of
// each object. It returns "" if the container does not, or if Restores reports
// it.
func (v Versions) Kept() string {
	switch {
	case v.Stack != "":
		return ""
	case v.History != "":
		return fmt.Sprintf("%s: %s: whatever is overwritten or deleted is kept in that container, and billed", HeaderHistory, OneLine(v.History))
	case v.Enabled:
		return HeaderEnabled + ": whatever is overwritten or deleted is kept as an older version, and billed"
	}
	return ""
}
