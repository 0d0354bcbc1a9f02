// SPDX-License-Identifier: MIT

package tests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// TestUnits has systemd check the units as they are installed, for a disk.
func TestUnits(t *testing.T) {
	t.Parallel()
	dir := harness.TempDir(t)
	bin := filepath.Dir(harness.Built(t, "swiftnbd-ctl"))
	files, err := filepath.Glob(filepath.Join(harness.Root(t), "scripts", "systemd", "swiftnbd*"))
	if err != nil || len(files) != 3 {
		t.Fatalf("the units are %q, %v", files, err)
	}
	args := []string{"verify", "--man=no"}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(f)
		harness.WriteFile(t, filepath.Join(dir, name), strings.ReplaceAll(string(b), "@bindir@", bin))
		args = append(args, filepath.Join(dir, strings.Replace(name, "@", "@my-disk", 1)))
	}
	r := harness.Run(t, "systemd-analyze", args...)
	if said := r.Stdout + r.Stderr; r.Status != 0 || strings.TrimSpace(said) != "" {
		t.Errorf("systemd-analyze verify: exit status %d\n%s", r.Status, said)
	}
}
