// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/volume"
)

// lateStore lists names that are gone, until a moment, and does not find some until
// another.
type lateStore struct {
	store.Store
	gone   []string
	listed time.Time
	away   string
	back   time.Time
}

func (s lateStore) List(ctx context.Context, o store.ListOptions) ([]store.ObjectInfo, error) {
	page, err := s.Store.List(ctx, o)
	for _, n := range s.gone {
		if err == nil && time.Now().Before(s.listed) && n > o.Marker && strings.HasPrefix(n, o.Prefix) {
			page = append(page, store.ObjectInfo{Name: n, Size: 100})
		}
	}
	slices.SortFunc(page, func(a, b store.ObjectInfo) int { return strings.Compare(a.Name, b.Name) })
	return page, err
}

func (s lateStore) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	if name == s.away && time.Now().Before(s.back) {
		return store.ObjectInfo{}, store.ErrNotFound
	}
	return s.Store.Get(ctx, name, p, o)
}

// TestFindConversionLate has roots listed that are gone: they are waited for as long as
// the listing has them, all together, and not each for its own time. A root that is only
// away is found.
func TestFindConversionLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.NewCluster().Container("v")
		if _, err := s.CreateContainer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		c := Conversion{Store: s, UUID: volume.NewUUID(), Epoch: 7, Objects: 16, ObjectSize: 65536}
		name, err := c.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var gone []string
		for n := range uint64(5) {
			gone = append(gone, layout.RootName(layout.Position{Epoch: 3, N: n + 1}))
		}
		for what, late := range map[string]lateStore{
			"gone": {Store: s, gone: gone},
			"away": {Store: s, away: layout.RootPrefix + name},
		} {
			begun := time.Now()
			late.listed, late.back = begun.Add(4*time.Second), begun.Add(9*time.Second)
			found, err := FindConversion(t.Context(), late)
			if err != nil || found.UUID != c.UUID || found.Epoch != 7 {
				t.Errorf("%s: %+v, %v", what, found, err)
			}
			if d := time.Since(begun); d > 12*time.Second {
				t.Errorf("%s: it has taken %v", what, d)
			}
		}
		// The listing has them for ever.
		begun := time.Now()
		late := lateStore{Store: s, gone: gone, listed: begun.Add(time.Hour)}
		if found, err := FindConversion(t.Context(), late); err != nil || found.UUID != c.UUID || found.Epoch != 7 {
			t.Errorf("%+v, %v", found, err)
		}
		if d := time.Since(begun); d > patience+10*time.Second {
			t.Errorf("it has taken %v", d)
		}
	})
}
