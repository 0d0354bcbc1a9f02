// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"crypto/md5"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

// TestFilters uses a disk behind encryption, name_check, container_sync and
// staticweb: written, read in part and whole, killed, served again with the map
// and without, zeroed and trimmed, downloaded. The object server keeps no plain
// byte, and the ETags that clients see and compare are those of the plain bytes.
func TestFilters(t *testing.T) {
	t.Parallel()
	c := harness.Filtered(t)
	name, account, params := volumeOf(t, c.Cloud, 16)
	if status, _, body := account.Do(t, "POST", "/"+name, map[string]string{"X-Container-Meta-Web-Index": "00000002"}, nil); status != 204 {
		t.Fatalf("status %d\n%s", status, body)
	}
	want := make([]byte, 16*objectSize)
	copy(want, bytes.Repeat([]byte("plain bytes 1234"), 4*objectSize/16))
	n := serve(t, params...)
	harness.Nbdsh(t, n.URI, fmt.Sprintf(`
size = %d
h.pwrite(b"plain bytes 1234" * (size // 4), 0)
h.flush()
assert h.pread(16, size + 16) == b"plain bytes 1234"
`, objectSize))
	n.Kill(t) // no map is saved
	for _, data := range c.Objects(t) {
		if bytes.Contains(data, []byte("plain bytes 1234")) {
			t.Fatal("the object server keeps plain bytes: encryption is not in the pipeline")
		}
	}
	object := "/" + name + "/disk.part/00000001"
	etag := fmt.Sprintf("%x", md5.Sum(want[objectSize:2*objectSize]))
	_, h, _ := account.Do(t, "HEAD", object, nil, nil)
	if got := h.Get("Etag"); got != etag {
		t.Errorf("the ETag is %s; that of the plain bytes is %s", got, etag)
	}
	for value, status := range map[string]int{etag: 200, fmt.Sprintf("%x", md5.Sum(nil)): 412} {
		if got, _, _ := account.Do(t, "GET", object, map[string]string{"If-Match": value}, nil); got != status {
			t.Errorf("If-Match %s: status %d; want %d", value, got, status)
		}
	}
	if status, _, list := account.Do(t, "GET", "/"+name+"?format=json", nil, nil); status != 200 || !bytes.Contains(list, []byte(etag)) {
		t.Errorf("the listing, status %d, lacks ETag %s\n%s", status, etag, list)
	}

	ctl(t, params, "unlock", name)
	n = serve(t, params...) // without a map
	if !bytes.Equal(harness.Download(t, n.URI), want) {
		t.Error("after a kill the disk is read wrong")
	}
	harness.Nbdsh(t, n.URI, fmt.Sprintf(`
size = %d
h.zero(size, 0)
h.trim(size, size)
h.pwrite(b"B" * 512, 2 * size + 1024)
h.flush()
`, objectSize))
	clear(want[:2*objectSize])
	copy(want[2*objectSize+1024:], bytes.Repeat([]byte("B"), 512))
	n.Stop(t)
	n = serve(t, params...) // with the map
	if !bytes.Equal(harness.Download(t, n.URI), want) {
		t.Error("with the map the disk is read wrong")
	}
	n.Stop(t)
	if in, _ := inform(t, params, nil); in.Container != name {
		t.Errorf("info is of %q", in.Container)
	}
	file := filepath.Join(harness.TempDir(t), "image")
	ctl(t, params, "download", name, file)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
		t.Errorf("download differs (%v)", err)
	}
	if !bytes.Equal(account.Read011(t, name), want) {
		t.Error("swiftnbd 0.11 would read something else")
	}
}

// TestNameCheck sets up a container whose name name_check forbids. The first
// request is a HEAD, whose answer has no words: the tool names the container
// and the status.
func TestNameCheck(t *testing.T) {
	t.Parallel()
	c := harness.Filtered(t)
	const name = "it's"
	secrets := harness.Secrets(t, c.Section(name))
	r := harness.Run(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", secrets, "setup", name, "8")
	if r.Status == 0 || !strings.Contains(r.Stderr, name+": 400 Bad Request") {
		t.Errorf("setup: status %d\n%s", r.Status, r.Stderr)
	}
}

// TestContainerSync has container sync copy a disk's chunks to another
// container, and what is put into another container over a disk's chunk. The
// copy is right, deletes as well; the disk says EIO where it knew the chunk's
// ETag, and reads what was synced where it did not.
func TestContainerSync(t *testing.T) {
	t.Parallel()
	c := harness.Filtered(t)
	name, account, params := volumeOf(t, c.Cloud, 8)
	header := func(container string, h map[string]string) {
		t.Helper()
		if status, _, body := account.Do(t, "POST", "/"+container, h, nil); status != 204 {
			t.Fatalf("POST %s: status %d\n%s", container, status, body)
		}
	}
	path := account.StorageURL[strings.LastIndex(account.StorageURL, "/")+1:]
	from := func(source, target string) {
		t.Helper()
		header(target, map[string]string{"X-Container-Sync-Key": "k"})
		header(source, map[string]string{"X-Container-Sync-Key": "k", "X-Container-Sync-To": "//REALM/ONE/" + path + "/" + target})
	}
	copied, other := name+".copy", name+".other"
	account.Create(t, copied, nil)
	account.Create(t, other, nil)
	from(name, copied)

	n := serve(t, append(params, "readahead=0")...)
	client := act(t, n.URI, fmt.Sprintf(`
size = %d
h.pwrite(b"A" * size + b"B" * size, size)
h.flush()
reached("written")
until("copied")
h.zero(size, size)
h.flush()
reached("zeroed")
`, objectSize))
	client.reached("written")
	c.Sync(t)
	for i, b := range map[int]string{1: "A", 2: "B"} {
		got, _ := account.Get(t, copied, fmt.Sprintf("disk.part/%08d", i))
		if !bytes.Equal(got, bytes.Repeat([]byte(b), objectSize)) {
			t.Errorf("the copy of chunk %d differs", i)
		}
	}
	client.tell("copied")
	client.reached("zeroed")
	c.Sync(t)
	if _, ok := account.Get(t, copied, "disk.part/00000001"); ok {
		t.Error("a chunk that was zeroed is still in the copy")
	}
	client.done()
	n.Stop(t)

	// The disk as a target: its session ended, with a map that knows chunk 2.
	header(name, map[string]string{"X-Container-Sync-To": ""})
	account.Put(t, other, "disk.part/00000002", bytes.Repeat([]byte("Z"), objectSize))
	from(other, name)
	c.Sync(t)
	n = serve(t, params...)
	harness.Nbdsh(t, n.URI, fmt.Sprintf(`
try: h.pread(512, 2 * %d)
except nbd.Error as e: assert e.errno == "EIO", e
else: raise SystemExit("what was synced over a known chunk was read")
`, objectSize))
	n.Said(t, "disk.part/00000002", "is not what was written")
	n.Kill(t) // no map is saved
	ctl(t, params, "unlock", name)
	n = serve(t, params...)
	harness.Nbdsh(t, n.URI, fmt.Sprintf(`
size = %d
assert h.pread(size, 2 * size) == b"Z" * size
`, objectSize))
	n.Stop(t)
}

// TestAccountQuota has a reseller's admin set a quota on an account of the
// test's own: a flush is ENOSPC, the log says that it is the account's quota,
// and what is dirty is written once the quota has gone.
func TestAccountQuota(t *testing.T) {
	t.Parallel()
	c := *harness.Filtered(t).Cloud
	c.User, c.Key = "test2:tester2", "testing2"
	name, account, params := volumeOf(t, &c, 8)
	admin := c
	admin.User, admin.Key = "admin:admin", "admin"
	reseller := *admin.Account(t)
	reseller.StorageURL = account.StorageURL
	set := func(v string) {
		t.Helper()
		if status, _, body := reseller.Do(t, "POST", "", map[string]string{"X-Account-Meta-Quota-Bytes": v}, nil); status != 204 {
			t.Fatalf("status %d\n%s", status, body)
		}
	}
	n := serve(t, append(params, "writeback-age=3600")...)
	client := act(t, n.URI, flushesBeyondQuota)
	client.reached("dirty")
	set("1")
	client.tell("full")
	client.reached("refused")
	n.Said(t, "quota", "account")
	set("")
	client.tell("free")
	client.done()
	n.Stop(t)
	if !bytes.Equal(account.Read011(t, name)[:objectSize], bytes.Repeat([]byte("A"), objectSize)) {
		t.Error("what was dirty was not written")
	}
}

// TestSyncFromTheFuture has container sync put an object over a chunk with a time
// that lies ahead, as a cluster whose clock is wrong does it. Swift answers a PUT
// of the disk with 202 and a DELETE with 409, and keeps the other object: a flush
// is EIO for as long as that is so, what is dirty stays, and nothing else of the
// disk is harmed.
func TestSyncFromTheFuture(t *testing.T) {
	t.Parallel()
	c := harness.Filtered(t)
	name, account, params := volumeOf(t, c.Cloud, 8)
	if status, _, body := account.Do(t, "POST", "/"+name, map[string]string{"X-Container-Sync-Key": "k"}, nil); status != 204 {
		t.Fatalf("status %d\n%s", status, body)
	}
	const ahead = 30 * time.Second
	n := serve(t, append(params, "timeout=3", "writeback-age=3600")...)
	client := act(t, n.URI, fmt.Sprintf(`
import time
size = %d
h.pwrite(b"A" * 3 * size, size)
h.flush()
reached("written")
until("synced")
def refused(what):
    try: h.flush()
    except nbd.Error as e: assert e.errno == "EIO", e
    else: raise SystemExit(what + ": a flush that Swift has not kept")
h.zero(size, size)
refused("DELETE")
reached("zero")
h.pwrite(b"C" * size, 2 * size)
h.pwrite(b"D" * size, 5 * size)
refused("PUT")
reached("put")
assert h.pread(size, 2 * size) == b"C" * size
until("over")
h.flush()
`, objectSize))
	client.reached("written")
	at := time.Now().Add(ahead)
	for _, i := range []int{1, 2} {
		c.SyncPut(t, account, name, fmt.Sprintf("disk.part/%08d", i), "k", at, bytes.Repeat([]byte("Z"), objectSize))
	}
	client.tell("synced")
	client.reached("zero")
	client.reached("put")
	if got, _ := account.Get(t, name, "disk.part/00000002"); !bytes.Equal(got, bytes.Repeat([]byte("Z"), objectSize)) {
		t.Error("Swift has kept the older object: the test shows nothing")
	}
	time.Sleep(time.Until(at.Add(time.Second)))
	client.tell("over")
	client.done()
	n.Stop(t)
	n.Said(t, "delete chunk 1", "409 Conflict: the cluster holds a newer version and discarded this one")
	n.Said(t, "write chunk 2", "202 Accepted: the cluster holds a newer version and discarded this one")
	disk := account.Read011(t, name)
	for i, b := range []byte{0, 0, 'C', 'A', 0, 'D', 0, 0} {
		if !bytes.Equal(disk[i*objectSize:(i+1)*objectSize], bytes.Repeat([]byte{b}, objectSize)) {
			t.Errorf("chunk %d is %q..., want %q", i, disk[i*objectSize:i*objectSize+4], b)
		}
	}
}

// TestObjectLimit uses a Swift that takes smaller objects than a chunk:
// setup refuses such a disk and names both sizes. On a disk that swiftnbd 0.11 has
// set up so a flush is EIO, and not ENOSPC: room would not help.
func TestObjectLimit(t *testing.T) {
	t.Parallel()
	c := harness.Filtered(t)
	const size = 2 * harness.MaxFileSize
	name := harness.Name(t)
	secrets := harness.Secrets(t, c.Section(name))
	r := harness.Run(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", secrets, "setup", name, "4", "--object-size", "2M")
	if r.Status != 1 || !strings.Contains(r.Stderr, "2 MiB") || !strings.Contains(r.Stderr, "1 MiB") {
		t.Errorf("setup: status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
	account := c.Account(t)
	if status, _, _ := account.Do(t, "HEAD", "/"+name, nil, nil); status != 404 {
		t.Errorf("setup has left the container behind: %d", status)
	}
	account.Setup(t, name, 4, size)
	n := serve(t, name, "secrets="+secrets, "timeout=5", "writeback-age=3600")
	harness.Nbdsh(t, n.URI, fmt.Sprintf(`
h.pwrite(b"A" * %d, 0)
try: h.flush()
except nbd.Error as e: assert e.errno == "EIO", e
else: raise SystemExit("a flush that Swift has refused")
h.zero(%[1]d, 0)
h.flush()
`, size))
	n.Said(t, fmt.Sprintf("an object of %d bytes is larger than this Swift takes (max_file_size is %d)", size, harness.MaxFileSize))
	n.Stop(t)
}
