// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// lateNotes is a container whose listing may lack the notes of clones.
type lateNotes struct {
	store.Store
	late atomic.Bool
}

func (l *lateNotes) List(ctx context.Context, o store.ListOptions) ([]store.ObjectInfo, error) {
	page, err := l.Store.List(ctx, o)
	if l.late.Load() {
		page = slices.DeleteFunc(page, func(info store.ObjectInfo) bool { return strings.HasPrefix(info.Name, layout.ChildPrefix) })
	}
	return page, err
}

// TestCloneUnlisted: a snapshot is not deleted though the container's listing does
// not have the note of its clone yet. When the clone is gone it can be deleted,
// and nothing stays of either.
func TestCloneUnlisted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		do := doer(t)
		cluster := mem.NewCluster()
		parent, child := cluster.Container("parent"), cluster.Container("child")
		_, err := child.CreateContainer(t.Context(), nil)
		do(err)
		o := Options{Cache: 8 << 20, GC: 70, Horizon: horizon}
		v := (&opener{box: parent, uuid: layout.UUID{1}, t: t, o: o}).create(t, 64*blockSize)
		s := newScript(t, 64)
		f := &lateNotes{Store: parent}
		d, err := v.open(t.Context(), f)
		do(err)
		do(errors.Join(s.write(d, 1, 2, 3), d.Snapshot(t.Context(), "s")))
		f.late.Store(true)

		do(makeClone(t.Context(), parent, child, o))
		if notes, err := Children(t.Context(), f, layout.Position{}); err != nil || len(notes) != 0 {
			t.Fatalf("the listing has the note: %v, %v: this test shows nothing", notes, err)
		}
		var children *ChildrenError
		if err := d.DeleteSnapshot(t.Context(), "s", false); !errors.As(err, &children) || len(children.Notes) != 1 || children.Notes[0].Container != "child" {
			t.Errorf("the snapshot is deleted: %v", err)
		}
		f.late.Store(false)
		do(DropNotes(t.Context(), parent, layout.SameAccount, "child"))
		f.late.Store(true)
		do(d.DeleteSnapshot(t.Context(), "s", false))
		f.late.Store(false)
		do(s.flush(d))
		time.Sleep(26 * time.Hour)
		atRest(t, d, parent)
		d.Close()
		for page, err := range store.Pages(t.Context(), parent, store.ListOptions{Prefix: layout.ChildPrefix}) {
			do(err)
			for _, info := range page {
				t.Errorf("%s stays", info.Name)
			}
		}
	})
}
