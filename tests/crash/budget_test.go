// SPDX-License-Identifier: MIT

package crash

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// slack is what nbdkit may take beside its cache: itself, Go's runtime, its
// buffers for the requests of 16 clients, and what is known of each chunk.
const slack = 64 << 20

// mapSlack is what version 2 of the format may take more: its map, and what is
// written and not in Swift yet.
const mapSlack = 64 << 20

// peak returns the most that a process ever had in memory, bytes.
func peak(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if kib, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(kib), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// nbdkitBuffers is what nbdkit itself keeps for requests of n bytes: it has 16
// threads for each connection, and each a buffer as large as the largest
// request that it has seen. What does for small requests is in slack.
func nbdkitBuffers(connections, n int64) int64 {
	if n <= 16<<10 {
		return 0
	}
	return 16 * connections * n
}

// TestBudget has 16 clients do what clients do, with verification, and nbdkit
// must never have had more in memory than its cache and some.
func TestBudget(t *testing.T) {
	const clients = 16
	for _, tc := range []struct{ objectSize, cache int64 }{
		{64 << 10, 16 << 20},
		{1 << 20, 64 << 20},
		{8 << 20, 128 << 20},
	} {
		t.Run(strconv.FormatInt(tc.objectSize>>10, 10)+"K", func(t *testing.T) {
			d := newDisk(t, (512<<20)/tc.objectSize, tc.objectSize, fmt.Sprintf("cache=%d", tc.cache))
			uri := d.start()
			room := tc.cache + slack
			if harness.Format() == 2 {
				room += mapSlack
			}
			allow := func(what string, buffers int64) {
				t.Helper()
				m, most := peak(t, d.n.Server.Pid), room+buffers
				t.Logf("%s: %d MiB of %d", what, m>>20, most>>20)
				if m > most {
					t.Errorf("%s: nbdkit has had %d MiB in memory, with a cache of %d MiB", what, m>>20, tc.cache>>20)
				}
			}
			fio := func(largest int64, args ...string) {
				t.Helper()
				harness.Must(t, "fio", append([]string{"--name=x", "--ioengine=nbd", "--uri=" + uri, "--group_reporting"}, args...)...)
				allow(strings.Join(args, " "), nbdkitBuffers(clients, largest))
			}
			jobs := fmt.Sprintf("--numjobs=%d", clients)
			// What a random write costs grows with the object.
			some := func(most int64) string {
				return fmt.Sprintf("--io_size=%dk", min(most, (64<<20)/tc.objectSize*16))
			}
			// Small random writes all over, verified: each client has a part.
			fio(4<<10, "--rw=randrw", "--bs=4k", "--iodepth=16", jobs, "--size=32m", "--offset_increment=32m", some(2048), "--fsync=64",
				"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0")
			fio(16<<10, "--rw=randwrite", "--bsrange=512-16k", "--bs_unaligned=1", "--iodepth=16", jobs, "--size=32m", "--offset_increment=32m",
				some(4096), "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0")
			fio(16<<10, "--rw=randread", "--bs=16k", "--iodepth=16", jobs, "--size=32m", "--offset_increment=32m", some(8192))
			// Sequential, more than the cache holds, and all read again.
			fio(256<<10, "--rw=write", "--bs=256k", "--iodepth=4", jobs, "--size=16m", "--offset_increment=32m", "--end_fsync=1",
				"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0")
			fio(256<<10, "--rw=randtrim", "--bs=64k", "--iodepth=4", jobs, "--size=32m", "--offset_increment=32m", "--io_size=2m")
			harness.Must(t, "nbdcopy", "--connections=16", "--requests=16", "--request-size=262144", uri, "null:")
			// It reads by the preferred block, on two connections.
			allow("nbdcopy", max(nbdkitBuffers(clients, 256<<10), nbdkitBuffers(2, tc.objectSize)))
			d.n.Stop(t)
		})
	}
}
