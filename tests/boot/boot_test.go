// SPDX-License-Identifier: MIT

// Package boot runs the units under a real systemd: a small Debian 12 in a virtual
// machine attaches a disk at its start, mounts the file system on it, restarts the
// server, and shuts down. It takes minutes, so it runs only with -full (make
// check-crash).
package boot

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
	"swiftnbd/tests/vm"
)

var full = flag.Bool("full", false, "boot the machines; without it, the tests are skipped")

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// trial is what the machine does when it is up: the first time it sets the disk up
// and is busy on it while the server is restarted and killed; the second time it
// finds the file system mounted, with all that was written.
const trial = `#!/bin/bash
exec >/dev/ttyS0 2>&1
fail() {
  systemctl status --no-pager -l swiftnbd@NAME.socket swiftnbd@NAME.service swiftnbd-attach@NAME.service srv.mount
  echo "VM-END failed: $*"
  systemctl poweroff
  exit 1
}
saved() { journalctl -q -u swiftnbd-attach@NAME -b | grep -c 'nothing is lost'; }
until_saved() { until [ "$(saved)" -ge "$1" ]; do kill -0 "$busy" || fail "$2: the busy program has ended"; sleep 0.5; done; }
busy() {
  i=$(wc -l </sums)
  while [ ! -e "$1" ]; do
    head -c 65536 /dev/urandom >/srv/f$i && sum=$(sha256sum /srv/f$i) || exit 1
    echo "$sum" >>/sums
    i=$((i + 1))
    [ $((i % 16)) != 0 ] || sync -f /srv || exit 1
  done
}
grown() { local n; n=$(wc -l </sums); until [ "$(wc -l </sums)" -gt $((n + 8)) ]; do kill -0 "$busy" || fail "$1: the busy program has ended"; sleep 0.2; done; }
touch /sums
if [ ! -e /second ]; then
  systemctl enable --now swiftnbd@NAME.socket || fail socket
  systemctl start swiftnbd-attach@NAME || fail attach
  udevadm settle
  mkfs.ext4 -q /dev/swiftnbd/NAME || fail mkfs
  options=_netdev,nofail,x-systemd.requires=swiftnbd-attach@NAME.service
  echo "/dev/swiftnbd/NAME /srv ext4 $options 0 2" >>/etc/fstab
  systemctl daemon-reload
  systemctl start srv.mount || fail mount
  busy /stop & busy=$!
  grown begin
  systemctl restart swiftnbd@NAME.service || fail restart
  until_saved 1 restart
  grown restart
  systemctl kill -s KILL swiftnbd@NAME.service || fail kill
  until_saved 2 kill
  grown kill
  touch /stop
  wait $busy || fail busy
  touch /second
else
  mountpoint -q /srv || fail "it is not mounted"
fi
echo 3 >/proc/sys/vm/drop_caches
[ "$(wc -l </sums)" -gt 20 ] || fail "little was written"
sha256sum --quiet -c /sums || fail sums
journalctl -q -k -b | grep -E 'I/O error|EXT4-fs (error|warning)' && fail "the kernel saw an error"
echo FILES=$(wc -l </sums)
echo "VM-END ok"
systemctl poweroff
`

// TestUnits is the life of a machine with a disk in /etc/fstab.
func TestUnits(t *testing.T) {
	if !*full {
		t.Skip("it takes minutes: make check-crash runs it")
	}
	harness.NeedRoot(t)
	root := harness.Root(t)
	k := vm.Debian(t)
	archive := filepath.Join(root, "build", "systemd-image.tar")
	if out, err := exec.Command(filepath.Join(root, "scripts", "systemd-image.sh"), archive).CombinedOutput(); err != nil {
		t.Fatalf("scripts/systemd-image.sh: %v\n%s", err, out)
	}

	c := harness.Dev(t)
	name, account := harness.Name(t), c.Account(t)
	account.Setup(t, name, 1024, 64<<10)
	dir := harness.TempDir(t)
	files := filepath.Join(dir, "root")
	harness.Must(t, "mkdir", files)
	harness.Must(t, "tar", "-x", "-C", files, "-f", archive)
	harness.Must(t, "make", "-s", "-C", root, "install", "DESTDIR="+files, "prefix=/usr")
	write := func(path, content string) string {
		t.Helper()
		path = filepath.Join(files, path)
		harness.Must(t, "mkdir", "-p", filepath.Dir(path))
		return harness.WriteFile(t, path, content)
	}
	// The machine reaches the host's Swift by another address than the host.
	there := func(s string) string { return strings.ReplaceAll(s, "127.0.0.1", "10.0.2.2") }
	harness.Must(t, "chmod", "600", write("etc/swiftnbd/secrets.conf", there(c.Section(name, "storage-url = "+account.StorageURL))))
	harness.Must(t, "chmod", "755", write("trial", strings.ReplaceAll(trial, "NAME", name)))
	write("etc/systemd/system/trial.service", "[Unit]\nAfter=remote-fs.target srv.mount\n[Service]\nType=simple\nExecStart=/trial\nTimeoutStopSec=10\n")
	write("etc/fstab", "/dev/vda / ext4 defaults 0 0\n")
	harness.Must(t, "mkdir", "-p", files+"/etc/systemd/system/multi-user.target.wants")
	harness.Must(t, "ln", "-s", "../trial.service", files+"/etc/systemd/system/multi-user.target.wants/")
	harness.Must(t, "ln", "-s", "/dev/null", files+"/etc/systemd/system/serial-getty@ttyS0.service")
	image := filepath.Join(dir, "image")
	harness.Must(t, "mke2fs", "-q", "-t", "ext4", "-d", files, image, "1G")

	initramfs := k.Initramfs(t, dir, "mount -t ext4 /dev/vda /mnt\nexec switch_root /mnt /lib/systemd/systemd\n",
		[]string{"virtio_pci", "virtio_net", "virtio_blk", "nbd", "crc32c_generic", "ext4"}, nil)
	more := append([]string{"-m", "768", "-drive", "file=" + image + ",if=virtio,format=raw"}, vm.Network...)
	for _, what := range []string{"the first start", "the second start"} {
		m := k.Start(t, initramfs, more...)
		console := m.End(t)
		t.Logf("%s:\n%s", what, console)
		// It was given back before the machine was off, and the network was there for
		// that: of the lease nothing is left.
		if holder := account.Holder(t, name); holder != "" {
			t.Errorf("after %s the disk is locked by %s", what, holder)
		}
		if leases := account.Leases(t, name); len(leases) > 0 {
			t.Errorf("after %s there are the leases %q", what, leases)
		}
	}
}
