// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// geometries are the volumes whose edges the tests of this file try.
var geometries = []struct{ objects, objectSize int64 }{
	{512, 64 << 10},  // the ordinary one
	{3, 1000},        // not even a sector
	{5, 65537},       // one byte too many
	{1, 1},           // the smallest
	{17, 511},        // odd, across sectors
	{4, 3 << 20},     // no power of two, large
	{2, 16 << 20},    // large objects
	{1000, 1 << 12},  // many small ones
	{7, 1<<20 + 333}, // large and odd
}

// forEachGeometry runs f as a parallel subtest with each geometry served.
func forEachGeometry(t *testing.T, f func(t *testing.T, g serving)) {
	for _, g := range geometries {
		t.Run(fmt.Sprintf("%dx%d", g.objects, g.objectSize), func(t *testing.T) {
			t.Parallel()
			c := harness.Dev(t)
			s := serving{objects: g.objects, objectSize: g.objectSize, name: harness.Name(t), account: c.Account(t)}
			s.account.Setup(t, s.name, g.objects, g.objectSize)
			s.secrets = harness.Secrets(t, c.Section(s.name))
			s.n = serve(t, s.name, "secrets="+s.secrets)
			f(t, s)
		})
	}
}

// serving is a volume that is served.
type serving struct {
	objects, objectSize int64
	name, secrets       string
	account             *harness.Account
	n                   *harness.Nbdkit
}

// model is the head of the Python scripts of this file: a disk kept in a
// bytearray beside the real one, operations that do the same to both, and the
// places that are worth a try: around each border of chunks, and both ends.
const model = `
size = h.get_size()
disk = bytearray(size)
seed = 0
def noise(n):
    global seed
    seed += 1
    import hashlib
    return hashlib.shake_128(b"%d" % seed).digest(n)
def write(off, n, flags=0):
    b = noise(n)
    h.pwrite(b, off, flags)
    disk[off:off+n] = b
def zero(off, n, flags=0):
    h.zero(n, off, flags)
    disk[off:off+n] = bytes(n)
def trim(off, n):
    h.trim(n, off)
    # Trimmed bytes read as zeroes here, as the man page says.
    disk[off:off+n] = bytes(n)
def check(off=0, n=None):
    n = size - off if n is None else n
    while n > 0:
        m = min(n, 1 << 24)
        assert h.pread(m, off) == disk[off:off+m], "wrong bytes in %d+%d" % (off, m)
        off += m; n -= m
def places(osize, objects):
    seen = set()
    for border in {0, osize, 2*osize, size-osize, size}:
        for d in (-2, -1, 0, 1):
            off = border + d
            for n in (1, 2, 3, osize-1, osize, osize+1, 2*osize+3):
                if 0 <= off < size and 0 < n <= size - off and n <= 1 << 25:
                    seen.add((off, n))
    return sorted(seen)
`

// TestFeaturesEdges writes, zeroes and trims at and across every border, and
// compares with a model after each; then what Swift holds with what was read.
func TestFeaturesEdges(t *testing.T) {
	forEachGeometry(t, func(t *testing.T, s serving) {
		harness.Nbdsh(t, s.n.URI, model+fmt.Sprintf(`
assert size == %d * %d
check()
ops = places(%d, %d)
# Large objects: every border, fewer lengths.
if %d > 1 << 20: ops = ops[::5]
for k, (off, n) in enumerate(ops):
    write(off, n)
    lo, hi = max(0, off - 2), min(size, off + n + 2)
    check(lo, hi - lo)
    if k %% 3 == 0: zero(off, n)
    if k %% 3 == 1: trim(off, n)
    check(lo, hi - lo)
check()
write(0, 1); write(size - 1, 1)
check()
h.flush()
`, s.objects, s.objectSize, s.objectSize, s.objects, s.objectSize))
		got := harness.Download(t, s.n.URI)
		s.n.Stop(t)
		if !bytes.Equal(got, s.account.Read011(t, s.name)) {
			t.Error("what is read over NBD is not what swiftnbd 0.11 would read")
		}
	})
}

// blocks checks that Swift has data for just those blocks of a disk of version 2
// of which want says so, and that the client is told the same.
func (s serving) blocks(t *testing.T, when string, want func(block int64) bool) {
	t.Helper()
	has := s.account.DataBlocks(t, s.name)
	told := make([]bool, len(has))
	var extents []struct{ Offset, Length, Type int64 }
	out := harness.Must(t, "nbdinfo", "--map", "--json", s.n.URI)
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		t.Fatalf("nbdinfo --map: %v\n%s", err, out)
	}
	var next int64
	for _, e := range extents {
		if e.Offset != next || e.Length < 1 || e.Type != 0 && e.Type != 3 || e.Offset%4096 != 0 {
			t.Fatalf("%s: extent %d+%d of type %d where %d comes next", when, e.Offset, e.Length, e.Type, next)
		}
		next += e.Length
		for b := e.Offset / 4096; b*4096 < next; b++ {
			told[b] = e.Type == 0
		}
	}
	if next != s.objects*s.objectSize {
		t.Errorf("%s: the extents end at %d of %d", when, next, s.objects*s.objectSize)
	}
	wrong := 0
	for b := range has {
		if w := want(int64(b)); has[b] != w || told[b] != w {
			if wrong++; wrong <= 3 {
				t.Errorf("%s: block %d of %d: data %v, in Swift %v, the client is told %v", when, b, len(has), w, has[b], told[b])
			}
		}
	}
}

// TestFeaturesHoles checks that whole chunks that are trimmed or zeroed become
// holes in Swift, while partial ones do not touch their neighbours. In version 2
// the blocks do.
func TestFeaturesHoles(t *testing.T) {
	forEachGeometry(t, func(t *testing.T, s serving) {
		harness.Nbdsh(t, s.n.URI, model+`
for off in range(0, size, 1 << 24): write(off, min(1 << 24, size - off))
h.flush()
`)
		logged := harness.Format() == 2
		if logged {
			s.blocks(t, "after all was written", func(int64) bool { return true })
		} else if got := len(s.account.Chunks(t, s.name)); int64(got) != s.objects {
			t.Errorf("a full disk is %d objects, want %d", got, s.objects)
		}
		harness.Nbdsh(t, s.n.URI, model+`
def each(f):
    for off in range(0, size, 1 << 24): f(min(1 << 24, size - off), off)
each(h.trim)
h.flush()
each(lambda n, off: check(off, n))
`)
		if logged {
			s.blocks(t, "after a trim of the whole disk", func(int64) bool { return false })
		} else if got := s.account.Chunks(t, s.name); len(got) != 0 {
			t.Errorf("after a trim of the whole disk %d objects are left: %.3q", len(got), got)
		}
		harness.Nbdsh(t, s.n.URI, model+fmt.Sprintf(`
osize = %d
write(0, min(size, 2 * osize))
zero(0, osize)
h.flush()
check(0, min(size, 2 * osize))
`, s.objectSize))
		if logged {
			end := min(2, s.objects) * s.objectSize
			s.blocks(t, "after zeroing a part", func(b int64) bool {
				// The block at the border has been written in part, and not zeroed whole.
				whole := (b+1)*4096 <= s.objectSize || s.objects == 1
				return b*4096 < end && !whole
			})
			s.n.Stop(t)
			return
		}
		want := []string{"disk.part/00000001"}
		if s.objects == 1 {
			want = nil
		}
		if got := s.account.Chunks(t, s.name); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("after zeroing chunk 0 of 2 there are %q, want %q", got, want)
		}
		s.n.Stop(t)
	})
}

// TestFeaturesFUA checks that a write, a zero and a trim with FUA are in Swift
// when they are acknowledged, by killing nbdkit right after.
func TestFeaturesFUA(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	account.Write011(t, name, map[int][]byte{5: harness.Random(9, objectSize), 6: harness.Random(10, objectSize)})
	n := serve(t, params...)
	harness.Nbdsh(t, n.URI, fmt.Sprintf(`
import signal
assert h.can_fua()
FUA = nbd.CMD_FLAG_FUA
h.pwrite(b"fua" * 1000, 1000, FUA)
h.zero(%d, 5 * %d, FUA)
h.trim(%d, 6 * %d, FUA)
os.kill(%d, signal.SIGKILL) # no flush
`, objectSize, objectSize, objectSize, objectSize, n.Server.Pid))
	n.Server.Wait(t)
	want := make([]byte, diskSize)
	copy(want[1000:], bytes.Repeat([]byte("fua"), 1000))
	if !bytes.Equal(account.Read011(t, name), want) {
		t.Error("what was acknowledged before kill -9 is not what Swift holds")
	}
}

// info is what nbdinfo --json says of an export.
type info struct {
	Size             int64 `json:"export-size"`
	ReadOnly         bool  `json:"is_read_only"`
	CanFlush         bool  `json:"can_flush"`
	CanFUA           bool  `json:"can_fua"`
	CanTrim          bool  `json:"can_trim"`
	CanZero          bool  `json:"can_zero"`
	CanMultiConn     bool  `json:"can_multi_conn"`
	BlockSizeMinimum int64 `json:"block_size_minimum"`
	BlockSizePrefer  int64 `json:"block_size_preferred"`
	BlockSizeMaximum int64 `json:"block_size_maximum"`
}

func nbdinfo(t testing.TB, uri string) info {
	t.Helper()
	var answer struct{ Exports []info }
	out := harness.Must(t, "nbdinfo", "--json", uri)
	if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.Exports) != 1 {
		t.Fatalf("nbdinfo --json %s: %v\n%s", uri, err, out)
	}
	return answer.Exports[0]
}

// TestFeaturesAdvertised checks what clients are told of the disk.
func TestFeaturesAdvertised(t *testing.T) {
	forEachGeometry(t, func(t *testing.T, s serving) {
		i := nbdinfo(t, s.n.URI)
		if i.Size != s.objects*s.objectSize {
			t.Errorf("size %d, want %d", i.Size, s.objects*s.objectSize)
		}
		if i.ReadOnly || !i.CanFlush || !i.CanFUA || !i.CanTrim || !i.CanZero || !i.CanMultiConn {
			t.Errorf("a writable disk is advertised as %+v", i)
		}
		if i.BlockSizeMinimum != 1 {
			t.Errorf("minimum block size %d, want 1", i.BlockSizeMinimum)
		}
		// The NBD protocol wants a power of two from 512 to 32 MiB.
		p := i.BlockSizePrefer
		if p < 512 || p > 32<<20 || p&(p-1) != 0 {
			t.Errorf("preferred block size %d", p)
		}
		if harness.Format() == 2 {
			if p != 4096 {
				t.Errorf("preferred block size %d, want the block's", p)
			}
		} else if o := s.objectSize; o&(o-1) == 0 && o >= 512 && o <= 32<<20 && p != o {
			t.Errorf("preferred block size %d with objects of %d", p, o)
		}
		s.n.Stop(t)
	})
}

// TestFeaturesReadOnly checks a section with read-only = 1 and nbdkit's -r:
// no write gets through, no lock is taken, and several may read at once, also
// beside a writer.
func TestFeaturesReadOnly(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, account, writable := volume(t, c)
	account.Write011(t, name, map[int][]byte{0: harness.Random(11, objectSize)})
	readOnly := []string{name, "secrets=" + harness.Secrets(t, c.Section(name, "read-only = 1"))}
	writer := serve(t, writable...)
	check := func(uri string) {
		t.Helper()
		if i := nbdinfo(t, uri); !i.ReadOnly || i.CanTrim || i.CanZero {
			t.Errorf("a read-only disk is advertised as %+v", i)
		}
		harness.Nbdsh(t, uri, `
h.set_strict_mode(0)
for f in (lambda: h.pwrite(b"x", 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
    try:
        f()
        raise SystemExit("a read-only disk was changed")
    except nbd.Error as e:
        assert e.errno in ("EPERM", "EROFS", "EINVAL"), e
assert len(h.pread(65536, 0)) == 65536
`)
	}
	for _, o := range []harness.Options{
		{Params: readOnly},
		{Params: readOnly, Mode: harness.Background},
		{Params: writable, Args: []string{"-r"}},
	} {
		n := harness.Serve(t, o)
		check(n.URI)
		if account.Holder(t, name) != "" {
			t.Error("a read-only disk took the lock")
		}
		got := harness.Download(t, n.URI)
		if !bytes.Equal(got[:objectSize], harness.Random(11, objectSize)) {
			t.Error("a read-only disk does not show what is in Swift")
		}
		t.Cleanup(func() { n.Stop(t) })
	}
	harness.Nbdsh(t, writer.URI, `h.pwrite(b"a writer beside them", 0)`)
	writer.Stop(t)
	account.SetMeta(t, name, "Client", "ctl@1700000000")
	n := harness.Serve(t, harness.Options{Params: readOnly, Mode: harness.Background})
	check(n.URI) // the lock is against writers
	n.Stop(t)
	if got := account.Holder(t, name); got != "ctl@1700000000" {
		t.Errorf("a reader changed the operator's lock to %q", got)
	}
}

// TestFeaturesReadOnlyBadObject serves an object that has the wrong size: an
// error for whoever reads it, and not made-up bytes.
func TestFeaturesReadOnlyBadObject(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	account.Write011(t, name, map[int][]byte{0: harness.Random(12, objectSize), 1: harness.Random(13, 100)})
	n := serve(t, params...)
	harness.Nbdsh(t, n.URI, fmt.Sprintf(`
h.pread(%d, 0)
try:
    h.pread(4096, %d)
    raise SystemExit("an object of 100 bytes was read as one of 65536")
except nbd.Error as e:
    assert e.errno == "EIO", e
h.pread(%d, 0)
`, objectSize, objectSize, objectSize))
	n.Stop(t)
	unlocked(t, account, name)
}

// TestFeaturesExtents compares the extents with what is in Swift: data is
// never called a hole, and a hole, once it was read, is. In version 2 they are
// exact, from the map, without a read.
func TestFeaturesExtents(t *testing.T) {
	forEachGeometry(t, func(t *testing.T, s serving) {
		if harness.Format() == 2 {
			harness.Nbdsh(t, s.n.URI, fmt.Sprintf(`
osize, objects = %d, %d
for i in range(0, objects, 3): h.pwrite(b"x" * osize, i * osize)
h.flush()
`, s.objectSize, s.objects))
			written := make(map[int64]bool)
			for i := int64(0); i < s.objects; i += 3 {
				for b := i * s.objectSize / 4096; b*4096 < (i+1)*s.objectSize; b++ {
					written[b] = true
				}
			}
			s.blocks(t, "after every third chunk was written", func(b int64) bool { return written[b] })
			s.n.Stop(t)
			s.n = serve(t, s.name, "secrets="+s.secrets) // from the runs
			s.blocks(t, "after another start", func(b int64) bool { return written[b] })
			s.n.Stop(t)
			return
		}
		out := harness.Nbdsh(t, s.n.URI, model+fmt.Sprintf(`
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
osize, objects = %d, %d
for i in range(0, objects, 3): write(i * osize, osize)
h.flush()
check()
off = 0
while off < size:
    got = []
    def extents(ctx, offset, entries, err):
        assert ctx == nbd.CONTEXT_BASE_ALLOCATION and offset == off, (ctx, offset, off)
        got.extend(entries)
    h.block_status(min(size - off, 1 << 30), off, extents)
    assert got, "no extent at %%d" %% off
    for length, flags in zip(got[::2], got[1::2]):
        print(off, length, flags)
        off += length
`, s.objectSize, s.objects))
		s.n.Stop(t)
		var next int64
		for line := range strings.Lines(out) {
			var off, length, flags int64
			if _, err := fmt.Sscan(line, &off, &length, &flags); err != nil {
				t.Fatal(err)
			}
			if off != next || length < 1 {
				t.Fatalf("extent %d+%d where %d comes next", off, length, next)
			}
			next = off + length
			for i := off / s.objectSize; i*s.objectSize < min(next, s.objects*s.objectSize); i++ {
				// Bit 0 is a hole, bit 1 reads as zeroes.
				if isData := i%3 == 0; isData == (flags == 3) {
					t.Errorf("chunk %d: extent flags %d, data: %v", i, flags, isData)
				}
			}
		}
		if next < s.objects*s.objectSize {
			t.Errorf("the extents end at %d of %d", next, s.objects*s.objectSize)
		}
	})
}

// TestFeaturesMultiConn checks what multi-conn promises: what one connection
// wrote, another reads at once, and one's flush covers the other's writes.
func TestFeaturesMultiConn(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	n := serve(t, params...)
	harness.Nbdsh(t, n.URI, `
import signal
g = nbd.NBD()
g.connect_uri(os.environ["NBD_TEST_URI"])
for i in range(200):
    block = b"%08d" % i * 64
    h.pwrite(block, i * 10007)
    assert g.pread(512, i * 10007) == block
g.flush()
os.kill(`+strconv.Itoa(n.Server.Pid)+`, signal.SIGKILL)
`)
	n.Server.Wait(t)
	disk := account.Read011(t, name)
	for i := range 200 {
		want := bytes.Repeat([]byte(fmt.Sprintf("%08d", i)), 64)
		// The next block begins 10007 later, so none is overwritten.
		if !bytes.Equal(disk[i*10007:][:512], want) {
			t.Fatalf("block %d, flushed by another connection, is not in Swift", i)
		}
	}
}

// TestFeaturesConcurrentWrites has many requests in flight that write parts of
// the same few chunks from several connections: none may get lost.
func TestFeaturesConcurrentWrites(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	n := serve(t, params...)
	harness.Nbdsh(t, n.URI, model+fmt.Sprintf(`
import threading
osize = %d
conns = [h] + [nbd.NBD() for _ in range(3)]
for c in conns[1:]: c.connect_uri(os.environ["NBD_TEST_URI"])
step = 4096
for off in range(0, 8 * osize, step): disk[off:off+step] = noise(step)
def work(k):
    c = conns[k]
    pending = []
    # Every fourth block, so that all four write in each chunk at once.
    for off in range(k * step, 8 * osize, 4 * step):
        pending.append(c.aio_pwrite(nbd.Buffer.from_bytearray(disk[off:off+step]), off))
        while c.aio_in_flight() >= 16: c.poll(-1)
    while c.aio_in_flight() > 0: c.poll(-1)
    for p in pending: assert c.aio_command_completed(p)
threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
for t in threads: t.start()
for t in threads: t.join()
check(0, 8 * osize)
`, objectSize))
	got := harness.Download(t, n.URI)
	n.Stop(t)
	if !bytes.Equal(got, account.Read011(t, name)) {
		t.Error("what is read over NBD is not what swiftnbd 0.11 would read")
	}
}

// TestFeaturesFastZero zeroes with NBD_CMD_FLAG_FAST_ZERO: what is done at once
// reads as zeroes, and what is not, is refused and left as it was. In version 2
// whole blocks are always fast, and so is what is a hole already.
func TestFeaturesFastZero(t *testing.T) {
	t.Parallel()
	_, _, params := volume(t, harness.Dev(t))
	n := serve(t, params...)
	harness.Nbdsh(t, n.URI, model+fmt.Sprintf(`
import errno
assert h.can_fast_zero()
FAST = nbd.CMD_FLAG_FAST_ZERO
def fast(off, n):
    try: zero(off, n, FAST)
    except nbd.Error as e:
        assert e.errnum in (errno.EOPNOTSUPP, errno.ENOTSUP), e
        return False
    finally: check(max(0, off - 4096), min(n + 8192, size - max(0, off - 4096)))
    return True
osize, logged = %d, %d == 2
write(0, 8 * osize)
h.flush()
assert fast(osize, osize), "a whole chunk"
assert fast(2 * osize, 2 * osize), "two chunks"
assert fast(osize + 4096, 4096), "a part of a hole"
got = fast(20 * osize + 512, 512)
assert got or not logged, "a part of what was never written" # version 1 knows it if the chunk is in the cache
got = fast(5 * osize + 4096, 8192)
assert got or not logged, "whole blocks"
got = fast(5 * osize + 65024, 1024)
if logged: assert not got, "parts of two blocks with data"
check()
h.flush()
check()
`, objectSize, harness.Format()))
	n.Stop(t)
}

// TestFeaturesQemu has qemu's own client write, zero, discard and read, and
// compare what is there with its patterns.
func TestFeaturesQemu(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	n := serve(t, params...)
	args := []string{"-f", "raw", "-d", "unmap", n.URI}
	for _, c := range []string{
		"write -P 1 0 1M", "write -P 2 1000 3000", "write -f -P 3 64k 512", "write -z 128k 100k", "write -z -u 300k 64k",
		"discard 512k 128k", "aio_write -P 4 2M 1M", "aio_write -P 5 3M 1M", "aio_flush", "flush",
		"read -P 1 0 1000", "read -P 2 1000 3000", "read -P 1 4000 1440", "read -P 3 64k 512", "read -P 0 128k 100k", "read -P 0 300k 64k",
		"read -P 4 2M 1M", "read -P 5 3M 1M", "read -P 0 4M 1M",
	} {
		args = append(args, "-c", c)
	}
	r := harness.Run(t, "qemu-io", args...)
	if r.Status != 0 || strings.Contains(r.Stdout, "Pattern verification failed") {
		t.Errorf("qemu-io: status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
	if out := harness.Must(t, "qemu-img", "map", "--output=json", n.URI); !strings.Contains(out, `"zero": true`) {
		t.Errorf("qemu-img map shows no hole:\n%s", out)
	}
	n.Stop(t)
	disk := account.Read011(t, name)
	for _, part := range []struct {
		at, n int
		b     byte
	}{{0, 1000, 1}, {1000, 3000, 2}, {64 << 10, 512, 3}, {128 << 10, 100 << 10, 0}, {2 << 20, 1 << 20, 4}, {3 << 20, 1 << 20, 5}} {
		if !bytes.Equal(disk[part.at:][:part.n], bytes.Repeat([]byte{part.b}, part.n)) {
			t.Errorf("Swift does not hold %d at %d+%d", part.b, part.at, part.n)
		}
	}
}
