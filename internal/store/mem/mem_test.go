// SPDX-License-Identifier: MIT

package mem_test

import (
	"testing"

	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return mem.New() })
}

// TestSiblings has two containers of one cluster, which share nothing.
func TestSiblings(t *testing.T) {
	c := mem.NewCluster()
	a, b := c.Container("a"), c.Container("b")
	for _, s := range []store.Store{a, b} {
		if _, err := s.CreateContainer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Put(t.Context(), "o", []byte("x"), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Head(t.Context(), "o"); err == nil {
		t.Error("an object of one container is in the other")
	}
	if created, err := c.Container("a").CreateContainer(t.Context(), nil); err != nil || created {
		t.Errorf("the same container again: created %v, %v", created, err)
	}
}
