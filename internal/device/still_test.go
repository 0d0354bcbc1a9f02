// SPDX-License-Identifier: MIT

package device_test

import (
	"errors"
	"testing"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/cloud"
	"swiftnbd/internal/device"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store/mem"
)

// TestReadSinceConverted reads a disk of version 1 that is converted meanwhile, and whose
// chunks are deleted when its content is in the log: a hole is zeroes, and a chunk that is
// gone is not. Nor is one of a disk that was deleted.
func TestReadSinceConverted(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		inLease(t, func(t *testing.T, c *mem.Cluster) {
			a := mustOpen(t, c, "a")
			for n := range int64(4) {
				a.mustFill(n, 7)
			}
			if err := a.device.Close(); err != nil {
				t.Fatal(err)
			}
			r, err := open(t, c, "r", true)
			if err != nil {
				t.Fatal(err)
			}
			wants := func(chunk int64, want byte) {
				t.Helper()
				if got, err := r.read(chunk); err != nil || got != want {
					t.Errorf("chunk %d has %d: %v", chunk, got, err)
				}
			}
			wants(0, 7)
			wants(60, 0)
			time.Sleep(10 * time.Minute)
			wants(1, 7)
			wants(61, 0)

			if deleted {
				dropVolume(t, c)
				if _, err := c.Container("v").CreateContainer(t.Context(), nil); err != nil { // or Swift's 404 was the same
					t.Fatal(err)
				}
			} else {
				way := cloud.New(mem.Account{Cluster: c}, cloud.Options{Connections: 4})
				s, take := way.Writer("v", leaseTerm)
				if _, err := device.Convert(t.Context(), device.Options{Store: s, Holder: "c", Lease: take}, nil); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Minute) // a server deletes them after that
				for i := range a.device.Size() / 4096 {
					_ = c.Container("v").Delete(t.Context(), chunked.ObjectName(geometry.ChunkIndex(i)))
				}
			}
			time.Sleep(2 * time.Minute)
			if got, err := r.read(2); !errors.Is(err, device.ErrGone) {
				t.Errorf("deleted %v: the chunk has %d: %v", deleted, got, err)
			}
			if err := r.device.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
