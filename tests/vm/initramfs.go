// SPDX-License-Identifier: MIT

package vm

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"swiftnbd/tests/harness"
)

// preamble opens every /init: it makes the file system usable, loads the
// modules in their order, and brings up qemu's user network, in which 10.0.2.2
// is the loopback address of the host.
const preamble = `#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
finish() { echo "VM-END $1"; reboot -f; sleep 60; }
while read -r module; do
  insmod "/modules/$module" || finish "insmod $module failed"
done </modules/order
if [ -e /sys/class/net/eth0 ]; then
  ip link set lo up
  ip addr add 10.0.2.15/24 dev eth0
  ip link set eth0 up
fi
set -e
trap 'finish "failed with status $?"' EXIT
`

// postamble closes every /init.
const postamble = `
trap - EXIT
finish ok
`

// Initramfs writes an initial file system into dir and returns its path. Its
// task is a script for busybox's shell that runs under set -e as the first
// process, after the modules were loaded, with the programs in /bin: names, or
// paths. What it prints is on the machine's console.
func (k *Kernel) Initramfs(t testing.TB, dir, task string, modules, programs []string) string {
	t.Helper()
	path := filepath.Join(dir, "initramfs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a := &archive{w: bufio.NewWriter(f)}
	for _, d := range []string{"bin", "dev", "etc", "mnt", "modules", "proc", "sys", "tmp", "usr", "var"} {
		a.tree(d)
	}
	busybox := harness.Tool(t, "busybox")
	a.copy("bin/busybox", busybox)
	paths := []string{busybox}
	for _, name := range programs {
		p := name
		if !filepath.IsAbs(p) {
			p = harness.Tool(t, name)
		}
		a.copy("bin/"+filepath.Base(p), p)
		paths = append(paths, p)
	}
	for _, lib := range libraries(t, paths...) {
		a.tree(filepath.Dir(lib)[1:])
		a.copy(lib[1:], lib)
	}
	order := ""
	for _, m := range k.Modules(t, modules...) {
		order += filepath.Base(m) + "\n"
		a.copy("modules/"+filepath.Base(m), m)
	}
	a.file("modules/order", 0o644, []byte(order))
	a.file("init", 0o755, []byte(preamble+task+postamble))
	a.entry("TRAILER!!!", 0, nil)
	if a.err == nil {
		a.err = a.w.Flush()
	}
	if a.err != nil {
		t.Fatal(a.err)
	}
	return path
}

// archive writes the "newc" form of cpio(5), which the kernel unpacks as its
// first file system (Documentation/driver-api/early-userspace/buffer-format).
// After an error it does nothing more.
type archive struct {
	w     *bufio.Writer
	err   error
	inode int
	dirs  map[string]bool
}

// Modes of stat(2) as they stand in an archive.
const (
	modeDir  = 0o040000
	modeFile = 0o100000
)

func (a *archive) entry(name string, mode int, data []byte) {
	if a.err != nil {
		return
	}
	a.inode++
	// magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor,
	// rdevmajor, rdevminor, namesize with its NUL, check
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.padded(append([]byte(header+name), 0))
	a.padded(data)
}

// padded writes data and then NULs up to a multiple of four bytes. The header
// is 110 bytes, so that name and header together are what is padded.
func (a *archive) padded(data []byte) {
	if a.err != nil {
		return
	}
	if _, a.err = a.w.Write(data); a.err == nil && len(data)%4 != 0 {
		_, a.err = a.w.Write(make([]byte, 4-len(data)%4))
	}
}

func (a *archive) directory(name string) { a.entry(name, modeDir|0o755, nil) }

// tree makes a directory and those above it, each once.
func (a *archive) tree(name string) {
	if name == "." || a.dirs[name] {
		return
	}
	a.tree(filepath.Dir(name))
	if a.dirs == nil {
		a.dirs = make(map[string]bool)
	}
	a.dirs[name] = true
	a.directory(name)
}

func (a *archive) file(name string, mode int, data []byte) {
	a.entry(name, modeFile|mode, data)
}

func (a *archive) copy(name, path string) {
	if a.err != nil {
		return
	}
	f, err := os.Open(path)
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		a.err = err
		return
	}
	a.file(name, 0o755, data)
}
