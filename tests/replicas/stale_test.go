// SPDX-License-Identifier: MIT

package replicas

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/geometry"
	"swiftnbd/tests/harness"
)

// TestStaleReplica overwrites and deletes chunks while one of three object
// servers is stopped, starts that server again with what it had, and reads each
// chunk back: with what the writing session knows, and as a session that knows
// nothing; ranges and whole chunks; with all servers, and with another one
// stopped. Then the servers change their parts. Nothing may be stale but what
// plain GETs find.
func TestStaleReplica(t *testing.T) {
	const chunks = 75
	d := newDisk(t, chunks, 4096)
	_, rng := newRand(t)
	writer := d.session()
	content := make([][]byte, chunks)
	change := func(i geometry.ChunkIndex) {
		var err error
		if content[i] != nil && rng.IntN(2) == 0 {
			content[i] = nil
			err = writer.Delete(t.Context(), i)
		} else {
			content[i] = d.bytesOf(rng)
			err = writer.Write(t.Context(), i, content[i])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range content {
		change(geometry.ChunkIndex(i))
	}
	writes, reads, stale := 0, 0, 0
	for round := 0; writes < *writesFlag; round++ {
		behind, down := harness.ObjectServer(round), harness.ObjectServer(round+1+rng.IntN(2))
		d.Stop(t, behind)
		batch := rng.Perm(chunks)[:min(chunks, *writesFlag-writes)]
		for _, i := range batch {
			i := geometry.ChunkIndex(i)
			change(i)
			writes++
			d.want(writer, "while it is away, the writer", i, 0, 4096, content[i])
		}
		d.Start(t, behind)
		// look reads the batch with what the writer knows, as a session that
		// knows nothing, and as one that has probed before.
		look := func(who string) {
			reader, prober := d.session(), d.session()
			var g errgroup.Group
			g.SetLimit(8)
			for _, i := range batch {
				g.Go(func() error {
					i, content := geometry.ChunkIndex(i), content[i]
					// The first read of a session asks for the newest, the second for what the first saw.
					first, second := int64(4096), int64(1000)
					if i%2 == 0 {
						first, second = second, first
					}
					d.want(writer, who+", the writer", i, 4096-second, second, content)
					d.want(reader, who+", a new session", i, 4096-first, first, content)
					d.want(reader, who+", a new session", i, 4096-second, second, content)
					// A listing may have a hole count as data, which is safe.
					if hole, err := prober.Probe(t.Context(), i); err != nil || hole && content != nil {
						t.Errorf("%s, chunk %d is probed: hole %v, %v; it was deleted: %v", who, i, hole, err, content == nil)
					}
					d.want(prober, who+", a session that has probed", i, 4096-first, first, content)
					return nil
				})
			}
			_ = g.Wait() // its functions have none
			reads += 4 * len(batch)
		}
		look(behind + " is behind")
		for _, i := range batch {
			if d.stale(geometry.ChunkIndex(i), content[i]) {
				stale++
			}
		}
		d.Stop(t, down)
		look(behind + " is behind and " + down + " away")
		d.Start(t, down)
	}
	t.Logf("%d overwrites and deletes, %d reads of ours; %d of %d plain GETs were stale", writes, reads, stale, writes)
	if stale == 0 {
		t.Error("no plain GET was stale: this test shows nothing")
	}
}

// changes is a Python script that does -writes' share of writes and trims to a
// disk and to its image in a file, and flushes. They reach over the borders of
// chunks and fill many of them in part.
const changes = `
import os, random
path, seed, n = %q, %d, %d
rng = random.Random(seed)
disk = bytearray(open(path, "rb").read())
size = h.get_size()
assert len(disk) == size
for _ in range(n):
    length = rng.choice([512, 4096, 65536, rng.randrange(1, 100000)])
    off = rng.randrange(0, size - length)
    if length == 65536: off -= off %% 65536
    if rng.randrange(3) == 0:
        off -= off %% 65536
        length = min(65536 * rng.randrange(1, 4), size - off)
        h.trim(length, off)
        disk[off:off+length] = bytes(length)
    else:
        data = rng.randbytes(length)
        h.pwrite(data, off)
        disk[off:off+length] = data
h.flush()
assert h.pread(size, 0) == disk
open(path, "wb").write(disk)
`

// TestStaleReplicaNbdkit is TestStaleReplica through nbdkit. The sessions that
// read know all from the map of the one that wrote, or nothing after a session
// of 0.11.
func TestStaleReplicaNbdkit(t *testing.T) {
	const chunks, objectSize, batch = 64, 64 << 10, 50
	d := newDisk(t, chunks, objectSize)
	_, rng := newRand(t)
	image := filepath.Join(harness.TempDir(t), "image")
	disk := make([]byte, chunks*objectSize)
	if err := os.WriteFile(image, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	params := d.params(d.Cloud)
	stale, plain := 0, 0
	for round := range repeat(3) {
		behind := harness.ObjectServer(round)
		d.Stop(t, behind)
		n := harness.Serve(t, harness.Options{Params: params})
		harness.Nbdsh(t, n.URI, fmt.Sprintf(changes, image, rng.Uint32(), batch))
		n.Stop(t)
		d.Start(t, behind)
		disk, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		for _, know := range []string{"by the map", "nothing"} {
			if know == "nothing" {
				d.account.Write011(t, d.name, nil)
			}
			n := harness.Serve(t, harness.Options{Params: params})
			got := harness.Download(t, n.URI)
			n.Stop(t)
			if i := firstDifference(got, disk); i >= 0 {
				t.Fatalf("round %d, %s is behind, what is known: %s: the disk is not what was written, from byte %d on",
					round, behind, know, i)
			}
		}
		for i := range chunks {
			content := disk[i*objectSize : (i+1)*objectSize]
			if bytes.Count(content, []byte{0}) == objectSize {
				content = nil // a chunk of zeroes is no object
			}
			if plain++; d.stale(geometry.ChunkIndex(i), content) {
				stale++
			}
		}
	}
	t.Logf("%d changes; %d of %d plain GETs were stale", repeat(3)*batch, stale, plain)
	if stale == 0 {
		t.Error("no plain GET was stale: this test shows nothing")
	}
}

// firstDifference returns where a and b begin to differ, -1 where they don't.
func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	return -1
}

// TestReplicaDown stops one server after the other, objects' and containers',
// while fio writes and checks what it wrote, and starts each again with what it
// missed: the client sees nothing of it, and in the end Swift holds the disk.
func TestReplicaDown(t *testing.T) {
	const chunks, objectSize = 128, 64 << 10
	d := newDisk(t, chunks, objectSize)
	_, rng := newRand(t)
	// With a cache that holds an eighth of the disk, reads get to Swift.
	n := harness.Serve(t, harness.Options{Params: d.params(d.Cloud, "cache=1M")})
	stop := filepath.Join(harness.TempDir(t), "stop")
	// A client that stays, so that the volume is not given back in between.
	stays := harness.StartNbdsh(t, n.URI, fmt.Sprintf(`
import os, time
while not os.path.exists(%q): time.sleep(0.1)
`, stop))
	// All replicas are to know of the session. One that misses its beginning stays
	// behind, since nothing replicates here, and with another away there is no
	// quorum for the lease.
	harness.Eventually(t, "a client holds the volume", func() bool { return d.account.Holder(t, d.name) != "" })
	load := harness.StartLoad(t, n.URI, 2, 3, stop)
	last := -1
	for range repeat(4) {
		i := rng.IntN(harness.NumReplicas)
		if i == last {
			i++
		}
		last = i
		d.Stop(t, harness.ObjectServer(i), harness.ContainerServer(i))
		// While it is away a disk's worth goes through the last third.
		data := harness.Random(rng.Uint64(), 2<<20)
		roundTripAt(t, n.URI, 6<<20, data)
		if !load.Running() {
			t.Fatalf("the load came to an end: %s", load.Output())
		}
		d.Start(t, harness.ObjectServer(i), harness.ContainerServer(i))
	}
	harness.WriteFile(t, stop, "")
	if status := load.Wait(t); status != 0 {
		t.Errorf("fio: status %d\n%s", status, load.Output())
	}
	if status := stays.Wait(t); status != 0 {
		t.Errorf("a client that does nothing: status %d\n%s", status, stays.Output())
	}
	got := harness.Download(t, n.URI)
	n.Stop(t)
	if holder := d.account.Holder(t, d.name); holder != "" {
		t.Errorf("the volume is still locked by %s", holder)
	}
	if i := firstDifference(got, d.account.Read011(t, d.name)); i >= 0 {
		t.Errorf("what is read over NBD is not what is in Swift, from byte %d on", i)
	}
}

// roundTripAt writes data from off on, flushes, and wants it back.
func roundTripAt(t *testing.T, uri string, off int, data []byte) {
	t.Helper()
	path := filepath.Join(harness.TempDir(t), "data")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	harness.Nbdsh(t, uri, fmt.Sprintf(`
data = open(%q, "rb").read()
for i in range(0, len(data), 65536):
    h.pwrite(data[i:i+65536], %d + i)
h.flush()
assert h.pread(len(data), %d) == data
`, path, off, off))
}
