// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"swiftnbd/tests/harness"
	"swiftnbd/tests/vm"
)

// attachModules and attachPrograms are what a machine needs to attach a disk
// with an ext4 on it.
var attachModules = []string{"virtio_pci", "virtio_net", "nbd", "crc32c_generic", "ext4"}

func attachPrograms(t testing.TB) []string {
	return []string{harness.Built(t, "swiftnbd-ctl"), "mkfs.ext4", "sha256sum", "dd"}
}

// hostURI is the URI under which the machine reaches the host's nbdkit.
func hostURI(n *harness.Nbdkit) string { return fmt.Sprintf("nbd://10.0.2.2:%d/", n.Port) }

// TestAttach has Debian's kernel attach a disk by netlink, use it, and detach it,
// and tries what must be refused.
func TestAttach(t *testing.T) {
	t.Parallel()
	k := vm.Debian(t)
	name, account, params := volumeOf(t, harness.Dev(t), 512)
	n := harness.Serve(t, harness.Options{TCP: true, Params: params})
	task := strings.NewReplacer("$URI", hostURI(n), "$NAME", name).Replace(`
fails() { if "$@" >/tmp/out 2>&1; then echo "succeeds: $*"; false; else sed 's/^/SAID: /' /tmp/out; fi; }
fails swiftnbd-ctl detach $NAME
fails swiftnbd-ctl attach --uri nbd://10.0.2.2:1/ $NAME
echo DEVICE=$(swiftnbd-ctl attach --uri $URI $NAME)
echo BACKEND=$(cat /sys/block/nbd0/backend)
echo SIZE=$(cat /sys/block/nbd0/size)
fails swiftnbd-ctl attach --uri $URI $NAME
fails swiftnbd-ctl attach --uri $URI other /dev/nbd0
mkfs.ext4 -q /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
dd if=/dev/urandom of=/mnt/data bs=1M count=4 2>/dev/null
echo WRITTEN=$(sha256sum </mnt/data)
fails swiftnbd-ctl detach $NAME
umount /mnt
swiftnbd-ctl detach $NAME
fails cat /sys/block/nbd0/pid
echo SECOND=$(swiftnbd-ctl attach --uri $URI -r --nbd-connections 1 --timeout 0 $NAME /dev/nbd7)
mount -t ext4 -o ro /dev/nbd7 /mnt
echo READ=$(sha256sum </mnt/data)
umount /mnt
swiftnbd-ctl detach /dev/nbd7
`)
	out := k.Boot(t, k.Initramfs(t, harness.TempDir(t), task, attachModules, attachPrograms(t)), vm.Network...)
	unlocked(t, account, name)
	n.Stop(t)
	for key, want := range map[string]string{
		"DEVICE": "/dev/nbd0", "SECOND": "/dev/nbd7", "BACKEND": "swiftnbd/" + name, "SIZE": fmt.Sprint(512 * objectSize / 512),
		"READ": vm.Value(t, out, "WRITTEN"),
	} {
		if got := vm.Value(t, out, key); got != want {
			t.Errorf("%s is %q; want %q", key, got, want)
		}
	}
	for _, want := range []string{
		name + " is not attached", "connection refused", name + " is attached already, as /dev/nbd0",
		"/dev/nbd0: it is connected already", "/dev/nbd0 is in use: unmount its file system",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the machine printed no %q", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

// TestAttachJSON holds attach and detach to the manual's form of --json, on a real
// device: one object after success, and after an error no byte of standard output, one
// line of standard error, and a device that is as before.
func TestAttachJSON(t *testing.T) {
	t.Parallel()
	k := vm.Debian(t)
	name, account, params := volumeOf(t, harness.Dev(t), 64)
	n := harness.Serve(t, harness.Options{TCP: true, Params: params})
	task := strings.NewReplacer("$URI", hostURI(n), "$PORT", fmt.Sprint(n.Port), "$NAME", name).Replace(`
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >/etc/passwd
fails() { # KEY COMMAND...
  key=$1; shift
  if "$@" >/tmp/out 2>/tmp/err; then echo "succeeds: $*"; false; fi
  echo $key=$(wc -c </tmp/out) $(wc -l </tmp/err) $(cat /tmp/err)
}
fails UNREACHED swiftnbd-ctl attach --json --uri nbd://10.0.2.2:1/ $NAME
fails NOBODY su nobody -c "swiftnbd-ctl attach --json --uri $URI $NAME"
fails FREE cat /sys/block/nbd0/pid
echo ATTACHED=$(swiftnbd-ctl attach --json --uri $URI $NAME /dev/nbd3)
fails AGAIN swiftnbd-ctl attach --json --uri $URI $NAME
fails TAKEN swiftnbd-ctl attach --json --uri $URI other /dev/nbd3
fails NOBODYS su nobody -c "swiftnbd-ctl detach --json $NAME"
mkfs.ext4 -q /dev/nbd3
mount -t ext4 /dev/nbd3 /mnt
fails BUSY swiftnbd-ctl detach --json $NAME
umount /mnt
cat /sys/block/nbd3/pid >/dev/null
echo DETACHED=$(swiftnbd-ctl detach --json $NAME)
fails GONE swiftnbd-ctl detach --json $NAME
fails UNCONNECTED swiftnbd-ctl detach --json /dev/nbd3

swiftnbd-ctl attach --persist --json --uri $URI $NAME /dev/nbd4 >/tmp/device &
attach=$!
while ! grep -q '}' /tmp/device; do kill -0 $attach; sleep 0.1; done
echo DETACHED4=$(swiftnbd-ctl detach --json /dev/nbd4)
wait $attach
echo ATTACHED4=$(cat /tmp/device)

nbd-client 10.0.2.2 $PORT /dev/nbd5 >/dev/null
echo DETACHED5=$(swiftnbd-ctl detach --json /dev/nbd5)
`)
	out := k.Boot(t, k.Initramfs(t, harness.TempDir(t), task, attachModules, append(attachPrograms(t), "nbd-client")), vm.Network...)
	unlocked(t, account, name)
	n.Stop(t)
	for key, want := range map[string]map[string]any{
		"ATTACHED":  {"container": name, "device": "/dev/nbd3"},
		"DETACHED":  {"container": name, "device": "/dev/nbd3"},
		"ATTACHED4": {"container": name, "device": "/dev/nbd4"},
		"DETACHED4": {"container": name, "device": "/dev/nbd4"},
		"DETACHED5": {"container": nil, "device": "/dev/nbd5"},
	} {
		text := vm.Value(t, out, key)
		var got map[string]any
		if err := json.Unmarshal([]byte(text), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v: %s; want %v", key, err, text, want)
		}
	}
	for key, says := range map[string]string{
		"UNREACHED":   "connection refused",
		"NOBODY":      onlyRoot,
		"NOBODYS":     onlyRoot,
		"AGAIN":       name + " is attached already, as /dev/nbd3",
		"TAKEN":       "/dev/nbd3: it is connected already",
		"BUSY":        "/dev/nbd3 is in use: unmount its file system, or end what else has it",
		"GONE":        name + " is not attached",
		"UNCONNECTED": "/dev/nbd3 is not connected",
	} {
		if got := vm.Value(t, out, key); !strings.HasPrefix(got, "0 1 swiftnbd-ctl: ") || !strings.HasSuffix(got, says) {
			t.Errorf("%s: %q (bytes of the result, lines of the error, the error); want the error %q alone", key, got, says)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

const onlyRoot = "only root may attach a disk to the kernel or detach it: run the command as root"

// TestAttachNotRoot: who is not root is told so in one line, before nbdkit is started
// and Swift is asked.
func TestAttachNotRoot(t *testing.T) {
	t.Parallel()
	dir := harness.TempDir(t)
	program := filepath.Join(dir, "swiftnbd-ctl") // where everybody may run it
	data, err := os.ReadFile(harness.Built(t, "swiftnbd-ctl"))
	if err == nil {
		err = os.WriteFile(program, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"attach", "disk"}, {"attach", "disk", "/dev/nbd0", "--persist", "--json"}, {"attach", "disk", "--uri", "nbd://127.0.0.1:1/"}} {
		cmd := harness.Command(t, program, append([]string{"--secrets", filepath.Join(dir, "none")}, args...)...)
		if os.Geteuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		if r := harness.RunCmd(t, cmd); r.Status != 1 || r.Stdout != "" || r.Stderr != "swiftnbd-ctl: "+onlyRoot+"\n" {
			t.Errorf("%q: status %d, %q, %q", args, r.Status, r.Stdout, r.Stderr)
		}
	}
}

// TestAttachOwn has attach start nbdkit itself: in the background, where it ends
// with the device, and beside it with --persist, where SIGUSR1 restarts it.
func TestAttachOwn(t *testing.T) {
	t.Parallel()
	k := vm.Debian(t)
	c := harness.Dev(t)
	name, account, _ := volumeOf(t, c, 64)
	filters := ""
	for line := range strings.Lines(harness.Must(t, "nbdkit", "--dump-config")) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "filterdir="); ok {
			filters = v
		}
	}
	const filter = "nbdkit-exitlast-filter.so"
	section := strings.ReplaceAll(c.Section(name, "storage-url = "+account.StorageURL), "127.0.0.1", "10.0.2.2")
	task := strings.NewReplacer("$NAME", name, "$FILTERS", filters, "$SECTION", section).Replace(`
mkdir -p $FILTERS /run /etc/swiftnbd
mv /bin/` + filter + ` $FILTERS/
cat >/etc/swiftnbd/secrets.conf <<END
$SECTION
END
export SWIFTNBD_PLUGIN=/bin/nbdkit-swift-plugin.so
echo DEVICE=$(swiftnbd-ctl attach $NAME -- cache=16M)
yes direct | dd of=/dev/nbd0 bs=64k count=1 iflag=fullblock 2>/dev/null
swiftnbd-ctl detach $NAME
while pidof nbdkit >/dev/null; do sleep 0.1; done

swiftnbd-ctl attach --persist $NAME /dev/nbd1 -- lease=10 >/tmp/device 2>/tmp/log &
attach=$!
while ! grep -q nbd1 /tmp/device; do kill -0 $attach; sleep 0.1; done
echo READ=$(dd if=/dev/nbd1 bs=64k count=1 2>/dev/null | head -n 1)
yes persist | dd of=/dev/nbd1 bs=64k count=1 oflag=direct iflag=fullblock 2>/dev/null
kill -USR1 $attach
while ! grep -q "nothing is lost" /tmp/log; do kill -0 $attach; sleep 0.1; done
kill -KILL $(pidof nbdkit)
yes again | dd of=/dev/nbd1 bs=64k seek=1 count=1 oflag=direct iflag=fullblock 2>/dev/null
echo AGAIN=$(dd if=/dev/nbd1 bs=64k skip=1 count=1 iflag=direct 2>/dev/null | head -n 1)
echo PERSIST=$(dd if=/dev/nbd1 bs=64k count=1 iflag=direct 2>/dev/null | head -n 1)
kill -TERM $attach
wait $attach
sed 's/^/LOG: /' /tmp/log
echo LEFT=$(ls /run)
`)
	programs := append(attachPrograms(t), "nbdkit", harness.Plugin(t), filepath.Join(filters, filter), "yes")
	out := k.Boot(t, k.Initramfs(t, harness.TempDir(t), task, attachModules, programs), vm.Network...)
	for key, want := range map[string]string{"DEVICE": "/dev/nbd0", "READ": "direct", "PERSIST": "persist", "AGAIN": "again", "LEFT": ""} {
		if got := vm.Value(t, out, key); got != want {
			t.Errorf("%s is %q; want %q", key, got, want)
		}
	}
	if holder := account.Holder(t, name); holder != "" {
		t.Errorf("the disk is locked by %s", holder)
	}
	if t.Failed() || testing.Verbose() {
		t.Log(out)
	}
}

// TestAttachPersist restarts nbdkit under a mounted and busy ext4, in good order
// and by kill -9. Programs wait, none of them sees an error, and not a byte is
// lost.
func TestAttachPersist(t *testing.T) {
	t.Parallel()
	k := vm.Debian(t)
	name, account, params := volumeOf(t, harness.Dev(t), 512)
	// A short lease: the next nbdkit waits for that of the one that was killed.
	options := harness.Options{TCP: true, Port: harness.FreePort(t), Params: append(params, "lease=5")}
	n := harness.Serve(t, options)
	task := strings.NewReplacer("$URI", hostURI(n), "$NAME", name).Replace(`
swiftnbd-ctl attach --persist --uri $URI $NAME /dev/nbd0 >/tmp/device 2>/tmp/log &
attach=$!
while ! grep -q nbd0 /tmp/device; do kill -0 $attach; sleep 0.1; done
mkfs.ext4 -q /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
# The busy program: files of 64 KiB, of which some are flushed, and a list of their
# sums which is not on the disk.
(i=0; while [ ! -e /tmp/stop ]; do
  dd if=/dev/urandom of=/mnt/f$((i % 128)) bs=64k count=1 2>/dev/null || exit 1
  sha256sum /mnt/f$((i % 128)) >/tmp/sum$((i % 128)) || exit 1
  [ $((i % 16)) != 0 ] || sync || exit 1
  i=$((i + 1)); echo $i >/tmp/count
done) &
busy=$!
grown() { from=$(cat /tmp/count); while [ $(cat /tmp/count) -lt $((from + 16)) ]; do kill -0 $busy; sleep 0.1; done; }
while [ ! -e /tmp/count ]; do sleep 0.1; done
grown; echo READY 1
while ! grep -q "nothing is lost" /tmp/log; do kill -0 $attach; sleep 0.1; done
grown; echo READY 2
while [ $(grep -c "nothing is lost" /tmp/log) -lt 2 ]; do kill -0 $attach; sleep 0.1; done
grown
touch /tmp/stop; wait $busy
sync; echo 3 >/proc/sys/vm/drop_caches
cat /tmp/sum* | sha256sum -c >/tmp/check || { cat /tmp/check; false; }
echo FILES=$(grep -c OK /tmp/check)
umount /mnt
sed 's/^/LOG: /' /tmp/log
swiftnbd-ctl detach $NAME
wait $attach
`)
	m := k.Start(t, k.Initramfs(t, harness.TempDir(t), task, attachModules, attachPrograms(t)), vm.Network...)
	m.Until(t, "READY 1")
	n.Stop(t)
	n = harness.Serve(t, options)
	m.Until(t, "READY 2")
	n.Kill(t)
	n = serveAgain(t, options)
	out := m.End(t)
	if files := vm.Value(t, out, "FILES"); files == "0" {
		t.Errorf("%s files have what was written", files)
	}
	for _, bad := range []string{"I/O error", "EXT4-fs error", "EXT4-fs warning"} {
		if strings.Contains(out, bad) {
			t.Errorf("the machine printed %q", bad)
		}
	}
	if t.Failed() || testing.Verbose() {
		t.Log(out)
	}
	unlocked(t, account, name)
	n.Stop(t)
	image := harness.TempDir(t) + "/image"
	n = serve(t, params...)
	harness.Must(t, "nbdcopy", n.URI, image)
	harness.Must(t, "e2fsck", "-f", "-n", image)
	n.Stop(t)
}

// TestAttachGivenUp has another client write to the disk while the server of an
// attached one is away. The disk is given up: what is kept is not written over
// what the other has written.
func TestAttachGivenUp(t *testing.T) {
	t.Parallel()
	k := vm.Debian(t)
	name, account, params := volumeOf(t, harness.Dev(t), 64)
	options := harness.Options{TCP: true, Port: harness.FreePort(t), Params: append(params, "lease=5")}
	n := harness.Serve(t, options)
	task := strings.NewReplacer("$URI", hostURI(n), "$NAME", name).Replace(`
swiftnbd-ctl attach --persist --uri $URI $NAME /dev/nbd0 >/tmp/device 2>/tmp/log &
attach=$!
while ! grep -q nbd0 /tmp/device; do kill -0 $attach; sleep 0.1; done
yes ours | dd of=/dev/nbd0 bs=64k count=1 oflag=direct iflag=fullblock 2>/dev/null
echo WRITTEN
status=0; wait $attach || status=$?
sed 's/^/LOG: /' /tmp/log
echo STATUS=$status
echo READ=$(dd if=/dev/nbd0 bs=64k count=1 2>/dev/null | wc -c)
`)
	m := k.Start(t, k.Initramfs(t, harness.TempDir(t), task, attachModules, attachPrograms(t)), vm.Network...)
	m.Until(t, "WRITTEN")
	n.Kill(t)
	other := serveOther(t, append(params, "lease=5"))
	harness.Upload(t, other.URI, harness.Random(7, objectSize))
	other.Stop(t)
	n = harness.Serve(t, options)
	out := m.End(t)
	n.Stop(t)
	unlocked(t, account, name)
	for _, want := range []string{"somebody else has had the disk meanwhile", "Unmount the file system, attach the disk again", "STATUS=1\n", "READ=0\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the machine printed no %q:\n%s", want, out)
		}
	}
	n = serve(t, params...)
	if got := harness.Download(t, n.URI)[:objectSize]; !bytes.Equal(got, harness.Random(7, objectSize)) {
		t.Error("what the other client has written is not there")
	}
	n.Stop(t)
}

// serveOther is serveAgain on another socket.
func serveOther(t testing.TB, params []string) *harness.Nbdkit {
	return serveAgain(t, harness.Options{Params: params})
}

// serveAgain starts nbdkit as soon as the lease of one that was killed is over,
// as systemd does.
func serveAgain(t testing.TB, options harness.Options) (n *harness.Nbdkit) {
	t.Helper()
	harness.Eventually(t, "nbdkit serves again", func() bool {
		n, _ = harness.TryServe(t, options)
		return n != nil
	})
	return n
}

// TestAttachTrouble has nothing to attach: Swift is away, the password is wrong, there
// is no disk, or somebody has it. The nbdkit that attach starts says why, attach
// fails, and nothing of either is left.
func TestAttachTrouble(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, account, _ := volume(t, c)
	held, _, _ := volume(t, c)
	if r := harness.Run(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", harness.Secrets(t, c.Section(held)), "lock", held); r.Status != 0 {
		t.Fatal(r.Stderr)
	}
	away, wrong := *c, *c
	away.AuthURL = fmt.Sprintf("http://127.0.0.1:%d/auth/v1.0", harness.FreePort(t))
	wrong.Key = "wrong"
	bare := harness.Name(t)
	account.Create(t, bare, nil)
	for _, x := range []struct {
		cloud     *harness.Cloud
		name, why string
	}{
		{&away, name, "connection refused"},
		{&wrong, name, "401 Unauthorized"},
		{c, bare, "(see swiftnbd-ctl setup)"},
		{c, harness.Name(t), "does not exist"},
		{c, held, "locked by ctl since "},
	} {
		secrets := harness.Secrets(t, x.cloud.Section(x.name))
		cmd := harness.Command(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", secrets, "attach", x.name, "--", "timeout=1")
		cmd.Env = append(os.Environ(), "SWIFTNBD_PLUGIN="+harness.Plugin(t))
		r := harness.RunCmd(t, cmd)
		if r.Status != 1 || r.Stdout != "" || !strings.Contains(r.Stderr, x.why) || !strings.HasSuffix(r.Stderr, "\nswiftnbd-ctl: nbdkit does not start: exit status 1\n") {
			t.Errorf("%s: status %d, %q, %q", x.why, r.Status, r.Stdout, r.Stderr)
		}
		processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range processes {
			if line, err := os.ReadFile(p); err == nil && strings.Contains(string(line), secrets) {
				t.Errorf("%s: a process stays: %q", x.why, line)
			}
		}
	}
	// A snapshot is no container.
	cmd := harness.Command(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", harness.Secrets(t, c.Section(name)), "attach", name+"@monday")
	cmd.Env = append(os.Environ(), "SWIFTNBD_PLUGIN="+harness.Plugin(t))
	want := fmt.Sprintf("; if %s@monday is a snapshot: swiftnbd-ctl attach %s -- snapshot=monday\n", name, name)
	if r := harness.RunCmd(t, cmd); r.Status != 1 || !strings.HasSuffix(r.Stderr, want) {
		t.Errorf("status %d, %q", r.Status, r.Stderr)
	}
	unlocked(t, account, name)
}
