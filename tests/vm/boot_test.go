// SPDX-License-Identifier: MIT

package vm

import (
	"os"
	"os/exec"
	"testing"

	"swiftnbd/tests/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// TestEndByHalf has a machine whose console is slow: its last line is there by half
// when somebody looks.
func TestEndByHalf(t *testing.T) {
	t.Parallel()
	m := &Machine{harness.Start(t, exec.Command("sh", "-c", "echo begin; printf 'VM-END '; sleep 0.5; printf 'ok\\r\\n'"))}
	if got := m.End(t); got != "begin\nVM-END ok\n" {
		t.Errorf("the console is %q", got)
	}
}
