// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"crypto/md5"
	"fmt"
	"strings"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

// What Swift's middleware makes of a chunk's object, on the real Swift:
// docs/MIDDLEWARE.md has a row for each.

// foreign are things that can stand in a chunk's place and whose bytes are kept
// elsewhere, and what is said of them.
var foreign = []struct {
	name  string
	place func(t testing.TB, a *harness.Account, container, object string, data []byte)
	said  string
}{
	{"symlink", func(t testing.TB, a *harness.Account, container, object string, data []byte) {
		a.Put(t, container, "elsewhere", data)
		put(t, a, container+"/"+object, map[string]string{"X-Symlink-Target": container + "/elsewhere"}, nil)
	}, "a symlink to "},
	{"slo", func(t testing.TB, a *harness.Account, container, object string, data []byte) {
		a.Put(t, container, "elsewhere", data)
		manifest := fmt.Sprintf(`[{"path":"/%s/elsewhere","etag":"%x","size_bytes":%d}]`, container, md5.Sum(data), len(data))
		put(t, a, container+"/"+object+"?multipart-manifest=put", nil, []byte(manifest))
	}, "a manifest of segments"},
	{"dlo", func(t testing.TB, a *harness.Account, container, object string, data []byte) {
		a.Put(t, container, "elsewhere/1", data)
		put(t, a, container+"/"+object, map[string]string{"X-Object-Manifest": container + "/elsewhere/"}, nil)
	}, "a manifest of the objects under "},
}

func put(t testing.TB, a *harness.Account, path string, header map[string]string, body []byte) {
	t.Helper()
	if status, _, said := a.Do(t, "PUT", "/"+path, header, body); status != 201 {
		t.Fatalf("PUT %s: status %d\n%s", path, status, said)
	}
}

// TestForeignObject has a symlink or a manifest in a chunk's place. No byte of
// it is read, in part or as a whole, and the log says what stands there; a
// write of part of the chunk cannot be flushed; a whole write replaces it, and
// what it pointed to stays as it was.
func TestForeignObject(t *testing.T) {
	t.Parallel()
	for _, f := range foreign {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			name, account, params := volumeOf(t, harness.Real(t), 8)
			data := bytes.Repeat([]byte("Z"), objectSize)
			// verify says what stands there, too.
			verify := func(said ...string) {
				t.Helper()
				for _, more := range []string{"--quick", "--quiet"} {
					if f.name == "slo" && harness.Format() == 1 && more == "--quick" {
						continue // it looks at the listing, which has the size of all segments
					}
					r := harness.Run(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", strings.TrimPrefix(params[1], "secrets="), "verify", more, name)
					for _, s := range said {
						if r.Status != 4 || !strings.Contains(r.Stdout, s) {
							t.Errorf("verify %s: status %d, and not %q:\n%s%s", more, r.Status, s, r.Stdout, r.Stderr)
						}
					}
				}
			}
			if harness.Format() == 2 { // which reads through it, and checks what it gets
				account.Write011(t, name, map[int][]byte{2: data})
				const object = "swiftnbd/log/00000000-000000000001"
				b, _ := account.Get(t, name, object)
				b[len(b)-100] ^= 1
				f.place(t, account, name, object, b)
				verify(object, f.said, "not its own", "damaged")
				return
			}
			f.place(t, account, name, "disk.part/00000002", data)
			verify("disk.part/00000002", f.said, "not its own")
			n := serve(t, params...)
			harness.Nbdsh(t, n.URI, fmt.Sprintf(`
size = %d
def eio(what, call):
    try: call()
    except nbd.Error as e: assert e.errno == "EIO", (what, e)
    else: raise SystemExit(what + ": no error")
eio("part", lambda: h.pread(4096, 2 * size + 4096))
eio("whole", lambda: h.pread(size, 2 * size))
h.pwrite(b"a" * 512, 2 * size)
eio("flush of a part", h.flush)
h.pwrite(b"b" * size, 2 * size)
h.flush()
assert h.pread(size, 2 * size) == b"b" * size
`, objectSize))
			n.Said(t, "disk.part/00000002", f.said, "not its own")
			n.Stop(t)
			if got, ok := account.Get(t, name, "disk.part/00000002"); !ok || !bytes.Equal(got, bytes.Repeat([]byte("b"), objectSize)) {
				t.Error("the chunk's object is not what was written")
			}
			for _, other := range []string{"elsewhere", "elsewhere/1"} {
				if got, ok := account.Get(t, name, other); ok && !bytes.Equal(got, data) {
					t.Errorf("%s was changed", other)
				}
			}
		})
	}
}

// TestExpiringObject has an object that Swift will remove by itself. While it is
// there it is read, with a warning; the session that knows it says EIO once it
// has gone, and not zeroes.
func TestExpiringObject(t *testing.T) {
	t.Parallel()
	forEachSwift(t, func(t *testing.T, c *harness.Cloud) {
		const size = 1 << 20 // a read fetches part of it
		name, account := harness.Name(t), c.Account(t)
		account.Setup(t, name, 4, size)
		params := []string{name, "secrets=" + harness.Secrets(t, c.Section(name))}
		put(t, account, name+"/disk.part/00000002", map[string]string{"X-Delete-At": fmt.Sprint(time.Now().Unix() + 5)}, bytes.Repeat([]byte("Z"), size))
		n := serve(t, append(params, "readahead=0")...)
		client := act(t, n.URI, fmt.Sprintf(`
assert h.pread(4096, %[1]d) == b"Z" * 4096
reached("read")
until("gone")
try: h.pread(4096, %[1]d + 524288)
except nbd.Error as e: assert e.errno == "EIO", e
else: raise SystemExit("an object that has expired was read")
`, 2*size))
		client.reached("read")
		n.Said(t, "disk.part/00000002 expires at", "X-Delete-At")
		for ok := true; ok; {
			_, ok = account.Get(t, name, "disk.part/00000002")
		}
		client.tell("gone")
		client.done()
		n.Stop(t)
	})
}

// flushesBeyondQuota is a client that has a flush refused while a quota is full,
// and repeats it when it is not.
const flushesBeyondQuota = `
h.pwrite(b"A" * 65536, 0)
reached("dirty")
until("full")
try: h.flush()
except nbd.Error as e: assert e.errno == "ENOSPC", e
else: raise SystemExit("a flush beyond the quota")
reached("refused")
until("free")
h.flush()
`

// TestQuotaIsNamed fills each kind of quota: ENOSPC, and the log says which one
// it is and how full.
func TestQuotaIsNamed(t *testing.T) {
	t.Parallel()
	for _, q := range []struct{ header, value, said string }{
		{"X-Container-Meta-Quota-Bytes", "1", "of 1 bytes (X-Container-Meta-Quota-Bytes)"},
		{"X-Container-Meta-Quota-Count", "0", "of 0 objects (X-Container-Meta-Quota-Count)"},
	} {
		t.Run(q.header, func(t *testing.T) {
			t.Parallel()
			name, account, params := volumeOf(t, harness.Real(t), 8)
			n := serve(t, append(params, "writeback-age=3600")...)
			client := act(t, n.URI, flushesBeyondQuota)
			client.reached("dirty")
			set := func(v string) {
				if status, _, body := account.Do(t, "POST", "/"+name, map[string]string{q.header: v}, nil); status != 204 {
					t.Fatalf("status %d\n%s", status, body)
				}
			}
			set(q.value)
			client.tell("full")
			client.reached("refused")
			n.Said(t, "the quota of container "+name+" is used up", q.said)
			set("")
			client.tell("free")
			client.done()
			n.Stop(t)
		})
	}
}

// TestMiddlewareOfContainers has what staticweb and container sync keep at a
// container: neither changes what is read or written.
func TestMiddlewareOfContainers(t *testing.T) {
	t.Parallel()
	name, account, params := volumeOf(t, harness.Real(t), 8)
	status, _, body := account.Do(t, "POST", "/"+name, map[string]string{
		"X-Container-Meta-Web-Index": "00000002", "X-Container-Meta-Web-Error": "error.html", "X-Container-Meta-Web-Listings": "true",
	}, nil)
	if status != 204 {
		t.Fatalf("status %d\n%s", status, body)
	}
	n := serve(t, params...)
	harness.Nbdsh(t, n.URI, `
h.pwrite(b"A" * 65536, 2 * 65536)
h.flush()
h.zero(65536, 2 * 65536)
h.flush()
assert h.pread(65536, 2 * 65536) == bytes(65536)
h.pwrite(b"B" * 512, 3 * 65536)
h.flush()
`)
	n.Stop(t)
	if got := strings.Join(account.Chunks(t, name), " "); !strings.HasSuffix(got, "00000003") {
		t.Errorf("chunks %s; want the fourth alone", got)
	}
}
