// SPDX-License-Identifier: MIT

package tests

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
	"swiftnbd/tests/vm"
)

// kernelVolume makes a volume in the real Swift for the machine's ext4.
func kernelVolume(t testing.TB) (name string, account *harness.Account, params []string) {
	t.Helper()
	return volumeOf(t, harness.Real(t), 512)
}

// TestKernelClient has Debian's kernel attach the disk with its own NBD
// client, make a file system, mount it, write, unmount and detach. Then nbdkit
// is started anew, and the kernel reads what it wrote.
func TestKernelClient(t *testing.T) {
	t.Parallel()
	k := vm.Debian(t)
	name, account, params := kernelVolume(t)
	options := harness.Options{Mode: harness.Background, TCP: true, Params: params}
	attach := func(n *harness.Nbdkit, task string) string {
		t.Helper()
		script := fmt.Sprintf("nbd-client 10.0.2.2 %d /dev/nbd0\n%s\nnbd-client -d /dev/nbd0\n", n.Port, task)
		return k.Boot(t, k.Initramfs(t, harness.TempDir(t), script,
			[]string{"virtio_pci", "virtio_net", "nbd", "crc32c_generic", "ext4"},
			[]string{"nbd-client", "mkfs.ext4"}), vm.Network...)
	}

	n := harness.Serve(t, options)
	written := vm.Value(t, attach(n, `
mkfs.ext4 -q /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
dd if=/dev/urandom of=/mnt/data bs=1M count=8 2>/dev/null
mkdir /mnt/dir
echo "kept in Swift" >/mnt/dir/note
sync
echo SUM=$(sha256sum </mnt/data)
umount /mnt
`), "SUM")
	n.Stop(t)
	unlocked(t, account, name)

	n = harness.Serve(t, options)
	out := attach(n, `
mount -t ext4 /dev/nbd0 /mnt
echo SUM=$(sha256sum </mnt/data)
echo NOTE=$(cat /mnt/dir/note)
rm /mnt/data
umount /mnt
`)
	n.Stop(t)
	unlocked(t, account, name)
	if read := vm.Value(t, out, "SUM"); read != written || !regexp.MustCompile(`^[0-9a-f]{64}\b`).MatchString(read) {
		t.Errorf("the kernel wrote a file with SHA-256 %s and read one with %s", written, read)
	}
	if note := vm.Value(t, out, "NOTE"); note != "kept in Swift" {
		t.Errorf("the kernel read %q", note)
	}

	// The file system is sound, looked at from outside.
	n = harness.Serve(t, harness.Options{Params: params})
	image := harness.TempDir(t) + "/image"
	harness.Must(t, "nbdcopy", n.URI, image)
	harness.Must(t, "e2fsck", "-f", "-n", image)
	n.Stop(t)
}

// TestKernelCaptive boots a machine from `nbdkit --run 'qemu …'` with the disk
// as a virtio drive, twice: the second reads what the first wrote.
func TestKernelCaptive(t *testing.T) {
	t.Parallel()
	k := vm.Debian(t)
	name, account, params := kernelVolume(t)
	boot := func(task string) string {
		t.Helper()
		initramfs := k.Initramfs(t, harness.TempDir(t), task,
			[]string{"virtio_pci", "virtio_blk", "crc32c_generic", "ext4"}, []string{"mkfs.ext4"})
		var command strings.Builder
		for _, arg := range k.Args(initramfs) {
			fmt.Fprintf(&command, "'%s' ", arg)
		}
		command.WriteString(`-drive "file=$uri,if=virtio,format=raw"`)
		args := append([]string{"-U", "-", harness.Plugin(t)}, params...)
		r := harness.Run(t, "nbdkit", append(args, "--run", command.String())...)
		vm.Check(t, r.Stdout, r.Stderr)
		if r.Status != 0 {
			t.Errorf("nbdkit --run 'qemu …': exit status %d\n%s", r.Status, r.Stderr)
		}
		unlocked(t, account, name)
		return r.Stdout
	}
	written := vm.Value(t, boot(`
echo SIZE=$(cat /sys/block/vda/size)
mkfs.ext4 -q /dev/vda
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/mnt/data bs=1M count=4 2>/dev/null
echo SUM=$(sha256sum </mnt/data)
umount /mnt
`), "SUM")
	out := boot(`
mount -t ext4 -o ro /dev/vda /mnt
echo SUM=$(sha256sum </mnt/data)
umount /mnt
`)
	if read := vm.Value(t, out, "SUM"); read != written {
		t.Errorf("the machine wrote a file with SHA-256 %s and read one with %s", written, read)
	}
}
