// SPDX-License-Identifier: MIT

package tests

import (
	"strings"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

// TestAcknowledgedAway kills an nbdkit, and takes away the last object that it has
// acknowledged, as its lease says. Nobody is served the disk without it, at the first
// attempt or a later one, to write or to read; the object is named. When it is there
// again, nothing is lost.
func TestAcknowledgedAway(t *testing.T) {
	t.Parallel()
	forEachSwift(t, func(t *testing.T, c *harness.Cloud) {
		name, account := harness.Name(t), c.Account(t)
		account.SetupLog(t, name, 16<<20)
		params := []string{name, "secrets=" + harness.Secrets(t, c.Section(name)), "lease=5", "timeout=12"}
		n := serve(t, params...)
		act(t, n.URI, `
import time
for i in range(1, 200):
    h.pwrite(bytes([i]) * 4096, 0)
    h.flush()
    reached("writes")
    time.sleep(1.5)
`).reached("writes")
		// The holder renews every 1.1 s, and says what is durable.
		last := ""
		harness.Eventually(t, "the lease says what is durable", func() bool {
			for key, value := range account.Meta(t, name+".swiftnbd-lease.1") {
				if strings.HasPrefix(key, "lease-durable") && value > last {
					last = value
				}
			}
			return last >= "00000001-000000000003"
		})
		n.Kill(t)
		last = "swiftnbd/log/" + last
		data, _ := account.Get(t, name, last)
		if status, _, _ := account.Do(t, "DELETE", "/"+name+"/"+last, nil, nil); status != 204 {
			t.Fatalf("DELETE %s: status %d", last, status)
		}
		time.Sleep(pastLease)
		for _, args := range [][]string{nil, {"-r"}, nil} {
			n := harness.Serve(t, harness.Options{Args: args, Params: params})
			if r := harness.Run(t, "nbdinfo", n.URI); r.Status == 0 {
				t.Fatalf("nbdkit %v serves the disk without %s: %s", args, last, r.Stdout)
			}
			n.Stop(t)
			out, _ := n.Output()
			if !strings.Contains(out, last+" is in Swift, as ") || !strings.Contains(out, "cannot be found now") {
				t.Errorf("nbdkit %v said: %s", args, out)
			}
		}
		account.Put(t, name, last, data)
		n = serve(t, params...)
		harness.Nbdsh(t, n.URI, `assert h.pread(4096, 0) in [bytes([i]) * 4096 for i in range(3, 200)]`)
		n.Stop(t)
		harness.Eventually(t, "no lease is left", func() bool { return len(account.Leases(t, name)) == 0 })
	})
}
