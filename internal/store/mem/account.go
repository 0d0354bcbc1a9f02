// SPDX-License-Identifier: MIT

package mem

import (
	"context"
	"fmt"

	"swiftnbd/internal/store"
)

// Account is a cluster as a cloud.Account. Its writers are fenced, and none of
// their writes is late.
type Account struct{ *Cluster }

// Container returns the container of that name.
func (a Account) Container(name string) store.Store { return a.Cluster.Container(name) }

// Fenced returns the container of that name for its writer.
func (a Account) Fenced(name string, f *store.Fence, _ *store.Stragglers) store.Store {
	return a.Cluster.Container(name).Fenced(f)
}

// CheckFence ends with store.ErrFenced unless g has the container's key.
func (a Account) CheckFence(ctx context.Context, name string, g store.Grant) error {
	md, err := a.Cluster.Container(name).Metadata(ctx)
	if err == nil && md.Items[fenceKey] != g.Key {
		err = fmt.Errorf("%s: another key: %w", name, store.ErrFenced)
	}
	return err
}
