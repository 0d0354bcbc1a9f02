// SPDX-License-Identifier: MIT

package tests

import (
	"fmt"
	"syscall"
	"testing"

	"swiftnbd/tests/harness"
)

// TestFlushTime has disks with a small flush-time and with a large one written
// beside each other, on a Swift that takes its time for each request. Then their
// nbdkits are killed, and what Swift lacks was dirty: all with the large one,
// and a small part of that with the small one. Only a part of each chunk is
// written, so nothing but its age or flush-time begins to write it back. Each is
// given as a parameter and as a key of the section.
func TestFlushTime(t *testing.T) {
	t.Parallel()
	if harness.Format() == 2 {
		flushTimeLog(t)
		return
	}
	const (
		first  = 200 // chunks that are flushed, from which the plugin learns Swift's speed
		second = 400 // chunks that are written after them
		small  = "0.5"
		large  = "3600"
	)
	c, swift := harness.OwnDev(t, "--latency", "100ms")
	account := c.Account(t)
	type disk struct {
		name   string
		n      *harness.Nbdkit
		client *actor
	}
	start := func(seconds string, key bool) *disk {
		d := &disk{name: harness.Name(t)}
		account.Setup(t, d.name, first+second, objectSize)
		params := []string{d.name, "writeback-age=3600"}
		if key {
			params = append(params, "secrets="+harness.Secrets(t, c.Section(d.name, "flush-time = "+seconds)))
		} else {
			params = append(params, "secrets="+harness.Secrets(t, c.Section(d.name)), "flush-time="+seconds)
		}
		d.n = serve(t, params...)
		d.client = act(t, d.n.URI, fmt.Sprintf(`
def write(chunks):
    for i in chunks: h.pwrite(b"x" * 4096, i * %[1]d)
write(range(%[2]d))
h.flush()
write(range(%[2]d, %[2]d + %[3]d))
reached("written")
until("never")
`, objectSize, first, second))
		return d
	}
	ways := map[string][2]*disk{}
	for what, key := range map[string]bool{"parameter": false, "key": true} {
		ways[what] = [2]*disk{start(small, key), start(large, key)}
	}
	// An end of Swift before the containers are cleared away saves a request for
	// each object.
	t.Cleanup(func() {
		swift.Signal(t, syscall.SIGKILL)
		swift.Wait(t)
	})
	for what, disks := range ways {
		var dirty [2]int
		for i, d := range disks {
			d.client.reached("written")
			d.n.Kill(t)
			dirty[i] = first + second - len(account.Chunks(t, d.name))
		}
		t.Logf("%s: of %d chunks %d were dirty with flush-time=%s, and %d with %s", what, second, dirty[0], small, dirty[1], large)
		if dirty[1] != second {
			t.Errorf("%s: flush-time=%s has written back %d chunks", what, large, second-dirty[1])
		}
		if dirty[0] > dirty[1]/4 {
			t.Errorf("%s: flush-time=%s leaves %d chunks dirty, where %s leaves %d", what, small, dirty[0], large, dirty[1])
		}
	}
}

// flushTimeLog is TestFlushTime of version 2: a cut that is full is uploaded at
// once, and flush-time bounds what is acknowledged ahead of that. So each disk is
// on a Swift of its own that takes few bytes a second.
func flushTimeLog(t *testing.T) {
	const (
		first  = 64  // chunks that are flushed, from which the plugin learns Swift's speed
		second = 384 // chunks that are written after them: 24 MiB
	)
	dirty := map[string]int{}
	for _, seconds := range []string{"0.5", "3600"} {
		c, swift := harness.OwnDev(t, "--bandwidth", "4M")
		account, name := c.Account(t), harness.Name(t)
		account.SetupLog(t, name, (first+second)*objectSize)
		n := serve(t, name, "writeback-age=3600", "flush-time="+seconds, "secrets="+harness.Secrets(t, c.Section(name)))
		client := act(t, n.URI, fmt.Sprintf(`
def write(chunks):
    for i in chunks: h.pwrite(b"x" * %[1]d, i * %[1]d)
write(range(%[2]d))
h.flush()
write(range(%[2]d, %[2]d + %[3]d))
reached("written")
until("never")
`, objectSize, first, second))
		client.reached("written")
		n.Kill(t)
		for _, data := range account.DataBlocks(t, name) {
			if !data {
				dirty[seconds]++
			}
		}
		swift.Signal(t, syscall.SIGKILL)
		swift.Wait(t)
	}
	t.Logf("blocks that were dirty, by flush-time: %v", dirty)
	if dirty["3600"] == 0 || dirty["0.5"] > dirty["3600"]/2 {
		t.Errorf("flush-time=0.5 leaves %d blocks dirty, where 3600 leaves %d", dirty["0.5"], dirty["3600"])
	}
}
