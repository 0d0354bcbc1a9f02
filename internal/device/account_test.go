// SPDX-License-Identifier: MIT

package device_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/devswift"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/volume"
)

// TestAccountAway has the account servers stay away for some requests of a flush. Swift
// answers then that the disk's container, the lease and the objects are not there
// (devswift.Server.SetAccountAway). The lease is not lost by that, and no chunk is a hole.
// The embedded Swift forgets the account at once, so no 404 is believed without a question.
func TestAccountAway(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 2} {
		for _, policy := range []string{"", "gold"} {
			t.Run(fmt.Sprintf("version %d/policy %q", version, policy), func(t *testing.T) {
				const size, objects = 1 << 20, 6
				c := newCloud(t, devswift.Options{Journal: -1, Policy: policy}, swiftstore.Options{Believe: -1})
				w := newCloudWorld(t, c, version, size, objects)
				want := make([]byte, size*objects)
				noise(rand.New(rand.NewPCG(1, 1)), want[:4*size])
				w.mustOpen()
				// comesBack ends the outage after so many requests.
				comesBack := func(requests int64) {
					c.server.SetAccountAway(true)
					var seen atomic.Int64
					c.harm(func(r *devswift.Request) *devswift.Action {
						if strings.HasPrefix(r.Path, "/v1/") && seen.Add(1) == requests {
							c.server.SetAccountAway(false)
						}
						return nil
					})
				}
				write := func(from, to int64) {
					t.Helper()
					if _, err := w.device.WriteAt(want[from:to], from); err != nil {
						t.Fatal(err)
					}
				}
				write(0, 2*size)
				if err := w.device.Sync(); err != nil {
					t.Fatal(err)
				}
				write(2*size, 3*size)
				comesBack(40)
				if err := w.device.Sync(); err != nil {
					t.Fatalf("flush: %v", err)
				}
				write(3*size, 4*size)
				if err := w.device.Close(); err != nil {
					t.Fatalf("close: %v", err)
				}
				// The next session knows nothing of the chunks.
				c.harm(nil)
				if err := w.inner.SetMetadata(t.Context(), map[string]string{volume.KeyMap: ""}); err != nil {
					t.Fatal(err)
				}
				w.mustOpen()
				comesBack(10)
				got := make([]byte, len(want))
				if _, err := w.device.ReadAt(got, 0); err != nil {
					t.Fatalf("read: %v", err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("read: %s", firstDifference(got, want))
				}
				c.harm(nil)
				c.server.SetAccountAway(false)
				if err := w.device.Close(); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}
