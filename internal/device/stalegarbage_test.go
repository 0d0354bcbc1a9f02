// SPDX-License-Identifier: MIT

package device_test

import (
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// TestLostCollector has a server lose its disk, which is deleted then and made anew under
// its name, and go on. It deletes nothing any more: objects of the new disk have the
// names of those that it was about to delete.
func TestLostCollector(t *testing.T) {
	for name, knows := range map[string]bool{"it does not know yet": false, "it knows": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := mem.NewCluster()
				newLogVolume(t, c.Container("v"), 1<<20)
				a := mustOpen(t, c, "a")
				defer func() {
					a.cut.Store(true)
					a.device.Abandon()
				}()
				for b := range byte(8) {
					a.mustFill(0, b)
					if err := a.device.Sync(); err != nil {
						t.Fatal(err)
					}
				}
				begun := time.Now() // some seconds later a root has only the last object
				time.Sleep(8 * time.Minute)
				a.cut.Store(true)
				time.Sleep(2 * leaseTerm)

				dropVolume(t, c)
				newLogVolume(t, c.Container("v"), 1<<20)
				b := mustOpen(t, c, "b")
				a.deaf.Store(!knows)
				a.cut.Store(false)
				time.Sleep(10*time.Minute - time.Since(begun))
				if lost := a.device.Lost() != nil; lost != knows {
					t.Errorf("the old server knows: %v", lost)
				}
				for n := range int64(8) {
					b.mustFill(n, 100)
					if err := b.device.Sync(); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(9 * time.Second) // and b has not rested for long enough to move them
				for b.cut.Store(true); time.Since(begun) < 12*time.Minute; {
					time.Sleep(time.Second)
				}
				b.device.Abandon()

				d := mustOpen(t, c, "d")
				for n := range int64(8) {
					if got, err := d.read(n); err != nil || got != 100 {
						t.Errorf("block %d of the new disk has %d: %v", n, got, err)
					}
				}
				if err := d.device.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// dropVolume deletes everything, as swiftnbd-ctl delete does.
func dropVolume(t *testing.T, c *mem.Cluster) {
	t.Helper()
	for _, name := range c.Names() {
		box := c.Container(name)
		for page, err := range store.Pages(t.Context(), box, store.ListOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range page {
				if err := box.Delete(t.Context(), o.Name); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := box.DeleteContainer(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
