// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// TestEndedAtItsMoment: a root has the ends of the epochs whose objects its map has,
// also if these have died while the root was being written. Otherwise whoever opens the
// disk after a crash would have objects of an epoch that nobody knows to have ended.
func TestEndedAtItsMoment(t *testing.T) {
	v := newClosing(t, 64*blockSize)
	v.o = inlineOptions()
	s := newScript(t, 64)
	do := doer(t)
	arrived, goOn := make(chan bool), make(chan bool)
	var hold atomic.Bool
	st := store.Wrap(v.box, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
		if op.Kind == store.OpPut && strings.HasPrefix(op.Name, layout.RunPrefix) && hold.Swap(false) {
			arrived <- true
			<-goOn
		}
		return call(ctx)
	})
	d, err := v.open(t.Context(), st)
	do(err)
	do(s.write(d, 1, 2, 3))
	do(s.flush(d))
	d = v.again(t, d, st)
	do(s.write(d, 9))
	do(s.flush(d))
	hold.Store(true)
	saved := make(chan error)
	go func() { saved <- d.Save(t.Context()) }()
	<-arrived
	do(s.write(d, 1, 2, 3))
	do(s.flush(d))
	d.mu.RLock()
	gone := !d.objects.has(layout.Position{Epoch: 1, N: 1})
	d.mu.RUnlock()
	close(goOn)
	do(<-saved)
	root := newest(t, d, v.box)
	got, err := v.tableOf(t, root)
	do(err)
	if _, ok := got[layout.Position{Epoch: 1, N: 1}]; !ok || !gone {
		t.Errorf("the object of epoch 1 is gone: %t, and the root has it: %t", gone, ok)
	}
	if !slices.Contains(root.Ended, layout.Position{Epoch: 1, N: 1}) {
		t.Errorf("the root has an object of epoch 1, and these epochs have ended for it: %v", root.Ended)
	}
	do(d.Save(t.Context()))
	if root = newest(t, d, v.box); len(root.Ended) > 0 {
		t.Errorf("nothing of epoch 1 is left, and these have ended: %v", root.Ended)
	}
}
