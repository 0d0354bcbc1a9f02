// SPDX-License-Identifier: MIT

package bridge

import (
	"regexp"

	"swiftnbd/internal/nbd"
)

// session is what the plugin says in an export's description of the session of
// the disk that it serves: its mark, and the mark of the session that was the
// last to write before it. Whoever opens a disk for writing sets a mark, and
// leaves it in the container, however it ends, unless it has changed nothing.
type session struct{ mark, after string }

var inDescription = regexp.MustCompile(`(?:^|, )session ([^ ,]+)(?: after ([^ ,]+))?$`)

func sessionOf(e nbd.Export) session {
	m := inDescription.FindStringSubmatch(e.Description)
	if m == nil {
		return session{}
	}
	return session{m[1], m[2]}
}

// follows says that nobody else has written to the disk between the session
// before and this one.
func (s session) follows(before session) bool {
	switch {
	case before.mark == "" || s.mark == "":
		return false
	case s == before: // it goes on: only the connection has ended
		return true
	case s.after == before.mark: // it was the last to write, and has ended or was killed
		return true
	}
	// It has written nothing, and so has everybody since.
	return s.after != "" && s.after == before.after
}
