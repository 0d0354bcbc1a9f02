// SPDX-License-Identifier: MIT

package vm

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

// endLine is how /init says how it went.
var endLine = regexp.MustCompile(`(?m)^VM-END (.*?)\r?$`)

// Args returns the command line of a qemu that boots the kernel with the
// initial file system, prints its console on standard output, and ends when
// the machine does. More devices may be appended.
func (k *Kernel) Args(initramfs string) []string {
	return []string{
		"qemu-system-x86_64", "-accel", "tcg", "-m", "384", "-smp", "1",
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", k.Image, "-initrd", initramfs, "-append", "console=ttyS0 quiet panic=-1",
	}
}

// Network is what gives the machine qemu's user network, which needs no root.
var Network = []string{"-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="}

// Boot boots a machine, waits for its end, and returns what it printed. The
// test fails unless the task came to its end.
func (k *Kernel) Boot(t testing.TB, initramfs string, more ...string) string {
	t.Helper()
	args := append(k.Args(initramfs), more...)
	start := time.Now()
	r := harness.RunCmd(t, exec.Command(harness.Tool(t, args[0]), args[1:]...))
	Check(t, r.Stdout, r.Stderr)
	t.Logf("the machine ran for %v", time.Since(start).Round(100*time.Millisecond))
	return r.Stdout
}

// Check fails the test unless a machine with that console came to the end of
// its task.
func Check(t testing.TB, console, stderr string) {
	t.Helper()
	m := endLine.FindStringSubmatch(console)
	if m == nil || m[1] != "ok" {
		t.Fatalf("the machine did not come to the end of its task; console:\n%s\nqemu said: %s", console, stderr)
	}
}

// Value returns what the task printed in a line "NAME=...".
func Value(t testing.TB, console, name string) string {
	t.Helper()
	for line := range strings.Lines(console) {
		if v, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), name+"="); ok {
			return v
		}
	}
	t.Fatalf("the machine printed no %s=; console:\n%s", name, console)
	return ""
}

// Machine is a machine that runs beside the test.
type Machine struct{ process *harness.Process }

// Start boots a machine as Boot does, and does not wait for its end.
func (k *Kernel) Start(t testing.TB, initramfs string, more ...string) *Machine {
	t.Helper()
	args := append(k.Args(initramfs), more...)
	return &Machine{harness.Start(t, exec.Command(harness.Tool(t, args[0]), args[1:]...))}
}

// Console returns what the machine has printed so far, without its carriage
// returns.
func (m *Machine) Console() string {
	return strings.ReplaceAll(m.process.Output(), "\r", "")
}

// Running reports whether the machine has not ended yet.
func (m *Machine) Running() bool { return m.process.Running() }

// Until waits until the machine has printed a line that contains text.
func (m *Machine) Until(t testing.TB, text string) {
	t.Helper()
	harness.EventuallyWithin(t, 15*time.Minute, fmt.Sprintf("the machine prints %q", text), func() bool {
		running := m.process.Running() // before: what it has printed then is all
		console := m.Console()
		if i := strings.Index(console, text); i >= 0 && strings.Contains(console[i:], "\n") {
			return true
		}
		whole := console[:strings.LastIndex(console, "\n")+1] // the last line may be half there
		if endLine.MatchString(whole) || !running {
			t.Fatalf("the machine ended without printing %q; console:\n%s", text, console)
		}
		return false
	})
}

// End waits for the end of the machine and returns what it printed. The test
// fails unless the task came to its end.
func (m *Machine) End(t testing.TB) string {
	t.Helper()
	m.Until(t, "VM-END ")
	m.process.Wait(t)
	Check(t, m.Console(), "")
	return m.Console()
}
