// SPDX-License-Identifier: MIT

package device

import (
	"sync"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
)

// versionsWatch looks at the container's headers about older versions each time
// the lease reads the metadata. A user may switch them on while the disk is
// served.
type versionsWatch struct {
	log  func(format string, args ...any)
	name string // the container's, for a command to type

	mu   sync.Mutex // guards all below
	last store.Versions
	seen bool
	vol  *chunked.Volume // nil: not open yet
}

// see gets the container's metadata, which was just read.
func (w *versionsWatch) see(md store.Metadata) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was, before := w.last, w.seen
	w.last, w.seen = md.Versions, true
	if w.vol == nil {
		return // Open looks for itself
	}
	if md.Versions.Stack != "" {
		w.vol.Distrust()
	}
	if before && was == md.Versions {
		return
	}
	switch {
	case md.Versions.Stack != "":
		w.log("the container has %s now: Swift answers a DELETE by bringing the previous version back, so zeroes are written in place of each DELETE, and every overwrite is kept and billed; to remove it: %s", md.Versions, removeStack(w.name))
	case md.Versions.Kept() != "":
		w.log("warning: %s", md.Versions.Kept())
	case was.Stack != "":
		w.log("the container keeps no older versions any more; zeroes are written in place of each DELETE until the disk is opened anew")
	}
}

// watch begins to pass changes to vol. opened are the headers with which vol
// was opened.
func (w *versionsWatch) watch(vol *chunked.Volume, opened store.Versions) {
	vol.OnRestoring(w.restored)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last.Stack != "" {
		vol.Distrust()
	}
	w.vol, w.last, w.seen = vol, opened, true
}

// restored is called after a DELETE that has left an object.
func (w *versionsWatch) restored(i geometry.ChunkIndex, versions store.Versions) {
	if versions.Stack == "" {
		w.log("chunk %d was there after its DELETE had succeeded, though the container keeps no older versions that come back: zeroes are written in its place", i)
		return
	}
	w.log("chunk %d came back after its DELETE had succeeded, as the container has %s: zeroes are written in its place, and in place of each DELETE from now on; to remove it: %s", i, versions, removeStack(w.name))
}

// removeStack returns the command that removes X-Versions-Location.
func removeStack(container string) string {
	return "swift post " + container + " -H 'X-Remove-Versions-Location: x'"
}
