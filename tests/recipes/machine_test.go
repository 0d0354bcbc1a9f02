// SPDX-License-Identifier: MIT

package recipes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"swiftnbd/tests/harness"
	"swiftnbd/tests/vm"
)

// A machine sees this machine's files, and may change them for itself: they are
// the lower layer of an overlay, whose upper one is in its memory. So it has all
// programs that are installed here. Its kernel is Debian's, with its modules in
// the usual place.
const (
	// mountHost makes the root directory and goes there.
	mountHost = `
mkdir /host /upper /files
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /host
mount -t tmpfs -o size=80%% tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/host,upperdir=/upper/files,workdir=/upper/work overlay /files
umount /proc /sys /dev
exec switch_root /files /bin/bash %s/init
`
	// initScript is the first process there.
	initScript = `#!/bin/bash
finish() { echo "VM-END $1"; sync; /bin/busybox reboot -f; sleep 60; }
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
exec </dev/null >/dev/console 2>&1
mkdir -p /run/lock /lib/modules
mount --bind %[1]s/modules /lib/modules
/bin/busybox ip link set lo up
# What an nbdkit in the background says is the cause of most failures.
/bin/busybox syslogd -n -O /dev/console &
timeout %[2]d bash -x %[1]s/script || {
  status=$?
  dmesg | tail -n 30
  for p in /proc/[0-9]*; do
    [ -z "$(readlink "$p/exe")" ] || echo "$p $(tr '\0' ' ' <"$p/cmdline" | cut -c-150) $(cat "$p/wchan")"
  done
  finish "failed with status $status"
}
finish ok
`
)

// there runs a document in a machine of its own, with more arguments for qemu.
func there(t *testing.T, document string, more ...string) {
	t.Helper()
	need(t)
	k := vm.Debian(t)
	all := blocks(t, document)
	dir := directory(t, all)
	if err := os.WriteFile(filepath.Join(dir, "init"), []byte(fmt.Sprintf(initScript, dir, int(limit.Seconds()))), 0o755); err != nil {
		t.Fatal(err)
	}
	modules(t, dir)
	harness.Must(t, "ln", "-s", "lib/modules", filepath.Join(dir, "modules"))
	initramfs := k.Initramfs(t, harness.TempDir(t), fmt.Sprintf(mountHost, dir), []string{"virtio_pci", "9pnet_virtio", "9p", "overlay"}, nil)
	m := k.Start(t, initramfs, append([]string{"-m", "2048", "-smp", "2",
		"-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"}, more...)...)
	for end := time.Now().Add(*limit + 3*time.Minute); m.Running() && !strings.Contains(m.Console(), "VM-END "); time.Sleep(time.Second) {
		if time.Now().After(end) {
			t.Fatalf("%s: the machine has not come to the end after %v; console:\n%s", document, *limit, m.Console())
		}
	}
	console := m.End(t)
	printed(t, document, all, console)
}

// modules makes a tree of the kernel's modules in dir, as modprobe wants it, and
// returns the kernel's version and the path of the tree.
func modules(t testing.TB, dir string) (version, tree string) {
	t.Helper()
	kernel := filepath.Join(harness.Root(t), "build", "kernel")
	name, err := os.ReadFile(filepath.Join(kernel, "complete"))
	if err != nil {
		t.Fatal(err)
	}
	version = strings.TrimPrefix(strings.TrimSpace(string(name)), "linux-image-")
	tree = filepath.Join(dir, "lib", "modules", version)
	harness.Must(t, "mkdir", "-p", tree)
	harness.Must(t, "cp", "-r", filepath.Join(kernel, "modules"), filepath.Join(tree, "kernel"))
	harness.Must(t, "touch", filepath.Join(tree, "modules.order"), filepath.Join(tree, "modules.builtin"))
	harness.Must(t, "depmod", "-b", dir, version)
	return version, tree
}

// TestRecipesGuestfish runs the recipes with libguestfs. It makes its machine from
// this one's packages, and from Debian's kernel: this machine may have none in /boot.
func TestRecipesGuestfish(t *testing.T) {
	need(t)
	k := vm.Debian(t)
	version, tree := modules(t, harness.TempDir(t))
	// supermin, which makes the machine, fails without this directory, although it
	// takes the modules from elsewhere.
	const usual = "/lib/modules"
	switch err := os.Mkdir(usual, 0o755); {
	case err == nil:
		t.Cleanup(func() { os.Remove(usual) })
	case !errors.Is(err, fs.ErrExist):
		t.Fatal(err)
	}
	here(t, "GUESTFISH.md", "SUPERMIN_KERNEL="+k.Image, "SUPERMIN_KERNEL_VERSION="+version, "SUPERMIN_MODULES="+tree)
}

// TestRecipesMachines runs those with virtual machines: qemu and libvirt.
func TestRecipesMachines(t *testing.T) { here(t, "MACHINES.md") }

// TestRecipesKernel runs the recipes with the kernel's own NBD client.
func TestRecipesKernel(t *testing.T) { there(t, "KERNEL.md") }

// TestRecipesVolumes runs those with LVM and dm-crypt.
func TestRecipesVolumes(t *testing.T) { there(t, "VOLUMES.md") }

// TestRecipesData runs the recipes with programs that keep files on the disk.
func TestRecipesData(t *testing.T) { there(t, "DATA.md") }
