// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"strconv"
	"testing"

	"swiftnbd/tests/harness"
)

// client011 is swiftnbd 0.11 as a container sees it. It reads all metadata that
// begin with swiftnbd-, ours too, keeps them while it works, and sends all of
// them again with its own when it comes and when it goes.
type client011 struct {
	t       testing.TB
	account *harness.Account
	name    string
	meta    map[string]string
}

func (c *client011) send(items map[string]string) {
	c.t.Helper()
	header := make(map[string]string)
	for key, value := range items {
		header["x-container-meta-swiftnbd-"+key] = value
	}
	// A PUT of a container that exists merges metadata, as POST does.
	if status, _, body := c.account.Do(c.t, "PUT", "/"+url.PathEscape(c.name), header, nil); status != 202 {
		c.t.Fatalf("PUT %s: status %d\n%s", c.name, status, body)
	}
}

// open takes the volume for holder, as a client or a tool of 0.11's does.
func (c *client011) open(holder string) {
	c.t.Helper()
	c.meta = c.account.Meta(c.t, c.name)
	if c.meta["client"] != "" {
		c.t.Fatalf("0.11 would find %s locked by %s", c.name, c.meta["client"])
	}
	c.meta["client"] = holder + "@1384000000"
	c.send(c.meta)
}

// write stores whole chunks, and nothing else.
func (c *client011) write(chunks map[int][]byte) {
	c.t.Helper()
	for i, data := range chunks {
		c.account.Put(c.t, c.name, fmt.Sprintf("disk.part/%08d", i), data)
	}
}

// close gives the volume back.
func (c *client011) close() {
	c.t.Helper()
	c.meta["last"], c.meta["client"] = c.meta["client"], ""
	c.send(c.meta)
}

// unlock is 0.11's ctl after a client was killed.
func (c *client011) unlock() {
	c.t.Helper()
	c.meta = c.account.Meta(c.t, c.name)
	c.close()
}

// forcedSetup is 0.11's ctl setup -f, which touches no object.
func (c *client011) forcedSetup(objects, objectSize int) {
	c.t.Helper()
	c.send(map[string]string{"version": "1", "objects": strconv.Itoa(objects), "object_size": strconv.Itoa(objectSize), "client": "", "last": ""})
}

// TestCompatStates serves containers in each state in which 0.11 leaves them:
// those that somebody holds are refused, with who it is, and left as they are,
// and are served when 0.11's own tool has unlocked them.
func TestCompatStates(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		for state, tc := range map[string]struct {
			leave  func(old *client011, chunks map[int][]byte)
			holder string // empty: nobody holds it
			empty  bool
		}{
			"set up":          {func(*client011, map[int][]byte) {}, "", true},
			"set up by force": {func(old *client011, _ map[int][]byte) { old.forcedSetup(objects, objectSize) }, "", true},
			"clean": {func(old *client011, chunks map[int][]byte) {
				old.open("127.0.0.1:51120")
				old.write(chunks)
				old.close()
			}, "", false},
			"downloaded":          {func(old *client011, chunks map[int][]byte) { old.write(chunks); old.open("ctl-download"); old.close() }, "", false},
			"killed":              {func(old *client011, chunks map[int][]byte) { old.open("192.0.2.7:51120"); old.write(chunks) }, "192.0.2.7:51120", false},
			"locked":              {func(old *client011, chunks map[int][]byte) { old.write(chunks); old.open("ctl") }, "ctl", false},
			"download was killed": {func(old *client011, chunks map[int][]byte) { old.write(chunks); old.open("ctl-download") }, "ctl-download", false},
			"killed after a clean session": {func(old *client011, chunks map[int][]byte) {
				old.open("127.0.0.1:51120")
				old.close()
				old.open("127.0.0.1:51121")
				old.write(chunks)
			}, "127.0.0.1:51121", false},
		} {
			t.Run(state, func(t *testing.T) {
				t.Parallel()
				name, account, params := volume(t, c)
				old := &client011{t: t, account: account, name: name}
				chunks := map[int][]byte{0: harness.Random(51, objectSize), 3: harness.Random(52, objectSize), objects - 1: harness.Random(53, objectSize)}
				tc.leave(old, chunks)
				want := make([]byte, diskSize)
				if !tc.empty {
					for i, data := range chunks {
						copy(want[i*objectSize:], data)
					}
				}
				if tc.holder != "" {
					before := account.Meta(t, name)
					harness.Fail(t, harness.Options{Mode: harness.Background, Params: params}).Want(t, name, "lock", tc.holder)
					if after := account.Meta(t, name); !maps.Equal(before, after) {
						t.Errorf("the metadata were %v and are %v", before, after)
					}
					old.unlock()
				}
				n := serve(t, params...)
				if !bytes.Equal(harness.Download(t, n.URI), want) {
					t.Error("what 0.11 has left is read wrong")
				}
				patch := harness.Random(54, 2*objectSize)
				harness.Nbdsh(t, n.URI, fmt.Sprintf("h.pwrite(%s, %d)\nh.flush()", python(t, patch), 3*objectSize))
				copy(want[3*objectSize:], patch)
				n.Stop(t)
				unlocked(t, account, name)
				if !bytes.Equal(account.Read011(t, name), want) {
					t.Error("0.11 would not read what we wrote")
				}
			})
		}
	})
}

// python returns b as an expression for nbdsh, which would not take so much on
// its command line.
func python(t testing.TB, b []byte) string {
	t.Helper()
	path := harness.WriteFile(t, filepath.Join(harness.TempDir(t), "bytes"), string(b))
	return fmt.Sprintf("open(%q, 'rb').read()", path)
}

// TestCompatAfterUs has 0.11 come after a session of ours that has left its map:
// whatever it does, how ever it ends, what it wrote is what we read.
func TestCompatAfterUs(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		for what, does := range map[string]func(old *client011, chunks map[int][]byte){
			"a session": func(old *client011, chunks map[int][]byte) {
				old.open("127.0.0.1:51120")
				old.write(chunks)
				old.close()
			},
			"two sessions": func(old *client011, chunks map[int][]byte) {
				old.open("127.0.0.1:51120")
				old.write(chunks)
				old.close()
				old.open("127.0.0.1:51120") // in the same second: the same mark
				old.close()
			},
			"killed and unlocked": func(old *client011, chunks map[int][]byte) {
				old.open("127.0.0.1:51120")
				old.write(chunks)
				old.unlock()
			},
			"forced setup and a session": func(old *client011, chunks map[int][]byte) {
				old.forcedSetup(objects, objectSize)
				old.open("127.0.0.1:51120")
				old.write(chunks)
				old.close()
			},
			"a session and a forced setup": func(old *client011, chunks map[int][]byte) {
				old.open("127.0.0.1:51120")
				old.write(chunks)
				old.close()
				old.forcedSetup(objects, objectSize)
			},
			"its lock and unlock, then one": func(old *client011, chunks map[int][]byte) {
				old.open("ctl")
				old.unlock()
				old.open("127.0.0.1:51120")
				old.write(chunks)
				old.close()
			},
		} {
			t.Run(what, func(t *testing.T) {
				t.Parallel()
				name, account, params := volume(t, c)
				// Chunks that are written, and a hole that is known to be one.
				n := serve(t, params...)
				want := harness.Random(61, diskSize)
				harness.Upload(t, n.URI, want)
				harness.Nbdsh(t, n.URI, fmt.Sprintf("h.zero(%d, %d)\nh.flush()", 2*objectSize, objectSize))
				clear(want[objectSize : 3*objectSize])
				n.Stop(t)
				unlocked(t, account, name)
				if _, there := account.Get(t, name, "disk.part/00000001"); there {
					t.Fatal("what was zeroed is not a hole, so the test shows less than it should")
				}

				old := &client011{t: t, account: account, name: name}
				chunks := map[int][]byte{0: harness.Random(62, objectSize), 1: harness.Random(63, objectSize), 7: harness.Random(64, objectSize)}
				does(old, chunks)
				for i, data := range chunks {
					copy(want[i*objectSize:], data)
				}
				n = serve(t, params...)
				if !bytes.Equal(harness.Download(t, n.URI), want) {
					t.Error("what 0.11 wrote after us is not what we read")
				}
				n.Stop(t)
				unlocked(t, account, name)
			})
		}
	})
}

// TestCompatWrongSize serves a volume with objects that are too short or too
// long. They are errors for their chunks, no made-up bytes, and go away when
// the chunks are written or zeroed as a whole.
func TestCompatWrongSize(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		name, account, params := volume(t, c)
		old := &client011{t: t, account: account, name: name}
		good := harness.Random(71, objectSize)
		old.open("127.0.0.1:51120")
		old.write(map[int][]byte{0: good, 1: harness.Random(72, 100), 2: harness.Random(73, objectSize+1), 3: {}, 4: harness.Random(74, objectSize-1)})
		old.close()
		n := serve(t, params...)
		harness.Nbdsh(t, n.URI, fmt.Sprintf(`
size, good = %d, %s
def fails(what, f):
    try:
        f()
    except nbd.Error as e:
        assert e.errno == "EIO", (what, e)
    else:
        raise SystemExit("%%s: no error" %% what)
assert h.pread(size, 0) == good
for i in 1, 2, 3, 4:
    fails("whole chunk %%d" %% i, lambda: h.pread(size, i * size))
    fails("the beginning of chunk %%d" %% i, lambda: h.pread(10, i * size))
    fails("the end of chunk %%d" %% i, lambda: h.pread(10, (i + 1) * size - 10))
assert h.pread(size, 5 * size) == bytes(size)
# Part of such a chunk cannot be kept, and that is said; all of it can.
h.pwrite(b"x" * 10, 1 * size)
fails("flush", h.flush)
h.pwrite(good, 1 * size)
h.pwrite(good, 2 * size)
h.zero(size, 3 * size)
h.trim(size, 4 * size)
h.flush()
for i in 1, 2: assert h.pread(size, i * size) == good, i
for i in 3, 4: assert h.pread(size, i * size) == bytes(size), i
`, objectSize, python(t, good)))
		n.Stop(t)
		unlocked(t, account, name)
		want := make([]byte, diskSize)
		for i := range 3 {
			copy(want[i*objectSize:], good)
		}
		if !bytes.Equal(account.Read011(t, name), want) {
			t.Error("0.11 would not read what is on the disk")
		}
	})
}
