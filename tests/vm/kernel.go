// SPDX-License-Identifier: MIT

// Package vm owns the virtual machine of the black-box tests: Debian's kernel,
// an initial file system made for one task, and the qemu that runs them by
// emulation (TCG), which needs neither /dev/kvm nor a disk image. In it the
// kernel's own NBD client and ext4 are tried.
package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

// Kernel is Debian's kernel, opened but not installed.
type Kernel struct {
	Image   string            // the path of vmlinuz
	modules map[string]string // name, with dashes as underscores, to the path of the .ko
}

var fetch sync.Mutex // held while scripts/kernel.sh runs

// Debian returns Debian's kernel, which scripts/kernel.sh fetches once.
func Debian(t testing.TB) *Kernel {
	t.Helper()
	root := harness.Root(t)
	dir := filepath.Join(root, "build", "kernel")
	fetch.Lock()
	defer fetch.Unlock()
	if out, err := exec.Command(filepath.Join(root, "scripts", "kernel.sh"), dir).CombinedOutput(); err != nil {
		t.Fatalf("scripts/kernel.sh: %v\n%s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(dir, "modules", "*.ko"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no modules in %s: %v", dir, err)
	}
	k := &Kernel{Image: filepath.Join(dir, "vmlinuz"), modules: make(map[string]string)}
	for _, f := range files {
		k.modules[moduleName(strings.TrimSuffix(filepath.Base(f), ".ko"))] = f
	}
	return k
}

// Accelerates reports whether KVM runs machines here. A /dev/kvm that can be opened
// does not mean that: in a machine without nested virtualization there may be one
// in which no instruction of a guest is ever executed. So a machine is started, and
// has to say a first word.
func (k *Kernel) Accelerates(t testing.TB) bool {
	t.Helper()
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	kvm.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, harness.Tool(t, "qemu-system-x86_64"), "-accel", "kvm", "-m", "256", "-nodefaults", "-no-user-config",
		"-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", k.Image, "-append", "console=ttyS0 panic=-1")
	out, _ := cmd.Output() // it has no root file system, so it ends by a panic
	return bytes.Contains(out, []byte("Linux version"))
}

func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// Modules returns the paths of the named modules and of all that they depend
// on, in an order in which insmod takes them.
func (k *Kernel) Modules(t testing.TB, names ...string) []string {
	t.Helper()
	var order []string
	seen := make(map[string]bool)
	var visit func(name, whose string)
	visit = func(name, whose string) {
		if seen[name] {
			return
		}
		seen[name] = true
		path, ok := k.modules[name]
		if !ok {
			t.Fatalf("the kernel's package has no module %s, which %s needs", name, whose)
		}
		depends, err := dependencies(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range depends {
			visit(d, name)
		}
		order = append(order, path)
	}
	for _, name := range names {
		visit(moduleName(name), "the test")
	}
	return order
}

// dependencies reads what a module says of itself: the .modinfo section holds
// NUL-terminated KEY=VALUE strings, of which depends= is a list with commas.
func dependencies(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s: no .modinfo section", path)
	}
	data, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: .modinfo: %w", path, err)
	}
	for _, kv := range strings.Split(string(data), "\x00") {
		if list, ok := strings.CutPrefix(kv, "depends="); ok && list != "" {
			names := strings.Split(list, ",")
			for i := range names {
				names[i] = moduleName(names[i])
			}
			return names, nil
		}
	}
	return nil, nil
}

// libraries returns the shared libraries of programs, the dynamic linker among
// them, each once.
func libraries(t testing.TB, programs ...string) []string {
	t.Helper()
	var libs []string
	for _, p := range programs {
		out, err := exec.Command("ldd", p).CombinedOutput()
		if err != nil {
			// ldd says so of a static program, with status 1.
			if strings.Contains(string(out), "not a dynamic executable") {
				continue
			}
			t.Fatalf("ldd %s: %v\n%s", p, err, out)
		}
		for _, field := range strings.Fields(string(out)) {
			if !strings.HasPrefix(field, "/") || slices.Contains(libs, field) {
				continue
			}
			if _, err := os.Stat(field); err == nil {
				libs = append(libs, field)
			}
		}
	}
	return libs
}
