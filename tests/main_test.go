// SPDX-License-Identifier: MIT

// Package tests drives the built plugin and the built tools from the outside:
// real nbdkit in all its modes, real NBD clients, the embedded Swift and the
// real one. Run `make` before `go test ./tests/...`.
package tests

import (
	"os"
	"testing"

	"swiftnbd/tests/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// The volume that most tests use: an ordinary one, small enough to be read
// whole in no time.
const (
	objects    = 512
	objectSize = 64 << 10
	diskSize   = objects * objectSize
)

// volume makes an ordinary volume as 0.11 would, and returns its name, the
// account it is in, and the plugin's parameters that serve it.
func volume(t testing.TB, c *harness.Cloud) (name string, account *harness.Account, params []string) {
	t.Helper()
	return volumeOf(t, c, objects)
}

// volumeOf is volume with n objects.
func volumeOf(t testing.TB, c *harness.Cloud, n int64) (name string, account *harness.Account, params []string) {
	t.Helper()
	name = harness.Name(t)
	account = c.Account(t)
	account.Setup(t, name, n, objectSize)
	return name, account, []string{name, "secrets=" + harness.Secrets(t, c.Section(name))}
}

// serve serves a volume in the foreground, the shortest way to a disk.
func serve(t testing.TB, params ...string) *harness.Nbdkit {
	t.Helper()
	return harness.Serve(t, harness.Options{Params: params})
}
