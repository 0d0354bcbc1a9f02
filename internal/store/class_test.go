// SPDX-License-Identifier: MIT

package store_test

import (
	"testing"

	"swiftnbd/internal/store"
)

// TestClassOf: a lease's requests do not stand behind uploads, and a read does
// not stand behind write-back.
func TestClassOf(t *testing.T) {
	for kind, want := range map[store.Kind]store.Class{
		store.OpGet: store.Foreground, store.OpHead: store.Foreground, store.OpList: store.Foreground,
		store.OpPut: store.Background, store.OpDelete: store.Background, store.OpBulkDelete: store.Background,
		store.OpMetadata: store.Unlimited, store.OpSetMetadata: store.Unlimited,
		store.OpCreateContainer: store.Unlimited, store.OpDeleteContainer: store.Unlimited,
	} {
		if got := store.ClassOf(store.Op{Kind: kind}); got != want {
			t.Errorf("%s: class %d, want %d", kind, got, want)
		}
	}
}
