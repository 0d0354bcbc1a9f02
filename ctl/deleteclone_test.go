// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/volume"
)

// TestDeleteBesideClone makes a clone after delete has looked for clones, and before
// it has the lock: nothing is deleted. A clone that begins after that is refused.
func TestDeleteBesideClone(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web", "late")
	const size = 1 << 20
	was := bytes.Clone(b.fillLog("golden", size, 1))
	b.ok("snapshot", "golden", "v1")

	var once, late atomic.Bool
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		// The lease of delete is being made.
		if r.Method == http.MethodPut && strings.HasPrefix(r.Container, "golden.swiftnbd-lease") {
			if once.CompareAndSwap(false, true) {
				if r := b.run("clone", "golden@v1", "web"); r.code != 0 {
					t.Errorf("clone: %+v", r)
				}
			}
		}
		return nil
	})
	b.fails(1, []string{"golden: not deleted: it is needed by its clone web"}, "delete", "golden", "-y")
	b.swift.SetFault(nil)
	checkUnlocked(b, "golden")
	if got := b.content("web", size); !bytes.Equal(got, was) {
		t.Error("the clone is not what was in the snapshot")
	}
	if names := b.names("golden", layout.GonePrefix); len(names) > 0 {
		t.Errorf("%q are left", names)
	}
	b.ok("clone", "golden@v1", "late") // nothing stays of the attempt
	b.ok("delete", "late", "-y")
	b.ok("delete", "web", "-y")

	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		// delete lists what it deletes. The lock before that removes a lease that is over.
		if r.Method == http.MethodDelete && r.Container == "golden" || r.Method == http.MethodPost && r.Query.Has("bulk-delete") {
			if late.CompareAndSwap(false, true) {
				if r := b.run("clone", "golden@v1", "late"); r.code == 0 {
					t.Error("a clone was made of a disk that is being deleted")
				}
			}
		}
		return nil
	})
	b.ok("delete", "golden", "-y")
	b.swift.SetFault(nil)
	if !late.Load() {
		t.Error("no clone was tried: this test shows nothing")
	}
	b.gone("golden")
}

// TestDeleteNoteStays deletes clones whose notes in the parent cannot be deleted, or
// not be found: it says so.
func TestDeleteNoteStays(t *testing.T) {
	t.Parallel()
	b := accounts(t)
	b.fillLog("golden", 1<<20, 1)
	b.ok("snapshot", "golden", "v1")
	allow(t, b, "golden", "other:guest")
	b.ok("clone", "golden@v1", "web")
	// The guest's credentials may read the parent only.
	b.writeSecrets("[DEFAULT]\nauthurl = " + b.auth + "\nusername = other:guest\npassword = pass\n[golden]\nstorage-url = " + b.server() + "/v1/AUTH_test\n[web]\n[web2]\n")
	if r := b.run("clone", "golden@v1", "web2"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if r := b.run("delete", "web", "-y"); r.code != 0 || !strings.Contains(r.err, "web: the note of it in golden stays, and protects a snapshot there: these credentials may not delete it") {
		t.Errorf("%+v", r)
	}
	// There is none of this one.
	if r := b.run("delete", "web2", "-y"); r.code != 0 || r.err != "" {
		t.Errorf("%+v", r)
	}

	b = newBench(t, devswift.Options{}, "golden", "web", "web2")
	b.fillLog("golden", 1<<20, 1)
	b.ok("snapshot", "golden", "v1")
	b.ok("clone", "golden@v1", "web")
	b.ok("clone", "golden@v1", "web2")
	b.swift.ResetRequests()
	b.ok("delete", "web2", "-y")
	for _, r := range b.swift.Requests() {
		if r.Method == http.MethodDelete && strings.Contains(r.Path, layout.ChildPrefix) {
			t.Errorf("a note is deleted by itself: %s", r.Path)
		}
	}
	if notes := b.notes("golden"); len(notes) != 1 {
		t.Errorf("notes %q", notes)
	}
	// Of this one neither the roots nor the metadata say what its parent is.
	b.setItem("web", volume.KeyParent, volume.FormatParent("", ""))
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == http.MethodGet && r.Container == "web" && strings.HasPrefix(r.Object, layout.RootPrefix) {
			return &devswift.Action{Status: http.StatusForbidden}
		}
		return nil
	})
	r := b.run("delete", "web", "-y", "--force")
	b.swift.SetFault(nil)
	if r.code != 0 || !strings.Contains(r.err, "web: its parent is not known: if that has a note of it, the note stays and protects a snapshot there: ") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("%+v", r)
	}
	b.gone("web")
}

// TestDeleteCloneKilled ends the deletion of a clone when its container has just been
// deleted: nothing could delete the note of it any more.
func TestDeleteCloneKilled(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web")
	b.fillLog("golden", 1<<20, 1)
	b.ok("snapshot", "golden", "v1")
	b.ok("clone", "golden@v1", "web")
	var dead atomic.Bool
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if !strings.HasPrefix(r.Path, "/v1/") {
			return nil
		}
		if dead.Load() {
			return &devswift.Action{Status: http.StatusForbidden}
		}
		if r.Method == http.MethodDelete && r.Container == "web" && r.Object == "" {
			dead.Store(true)
			return &devswift.Action{Status: http.StatusForbidden, After: true}
		}
		return nil
	})
	if r := b.run("delete", "web", "-y"); r.code != 1 {
		t.Errorf("%+v", r)
	}
	b.swift.SetFault(nil)
	b.gone("web")
	if names := b.notes("golden"); len(names) > 0 {
		t.Errorf("notes %q", names)
	}
	b.ok("snapshot", "--delete", "golden", "v1")
}
