// SPDX-License-Identifier: MIT

// Package crash kills real nbdkit in the middle of work, again and again, and
// looks at what is left: each byte that was flushed has to be there. It also
// measures what nbdkit needs of memory, and has programs that check their own
// data at work. Run `make` before.
//
// The tests are short by default; -kills and -seed make them long, and the
// same again (make check-crash).
package crash

import (
	"flag"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "seed of the random tests; 0 takes one from the clock")
	killsFlag  = flag.Int("kills", 10, "how often nbdkit is killed in each of the tests that do")
	startsFlag = flag.Int("starts", 15, "how often two nbdkits are started on one volume at once")
	stepsFlag  = flag.Int("steps", 1500, "operations of the test that works on one file as fsx does")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(harness.Main(m))
}

func newRand(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// disk is a volume and the nbdkit that serves it, killed and started again.
type disk struct {
	t       *testing.T
	account *harness.Account
	name    string
	secrets string
	params  []string
	n       *harness.Nbdkit
}

// newDisk makes a volume as swiftnbd 0.11 would, in an embedded Swift of its
// own that keeps it in files.
func newDisk(t *testing.T, objects, objectSize int64, params ...string) *disk {
	t.Helper()
	c, _ := harness.OwnDev(t, "--dir", t.TempDir())
	d := &disk{t: t, account: c.Account(t), name: harness.Name(t)}
	d.account.Setup(t, d.name, objects, objectSize)
	d.secrets = harness.Secrets(t, c.Section(d.name))
	d.params = append([]string{d.name, "secrets=" + d.secrets, lease}, params...)
	if harness.Format() == 2 {
		for i, p := range d.params { // its smallest cache is larger
			if p == "cache=2M" || p == "cache=4M" || p == "cache=2097152" {
				d.params[i] = "cache=5M"
			}
		}
	}
	return d
}

// start serves the volume.
func (d *disk) start() string {
	d.t.Helper()
	d.n = harness.Serve(d.t, harness.Options{Params: d.params})
	return d.n.URI
}

// lease is the term of the volumes here: the shortest there is, since each kill
// is waited out.
const lease = "lease=5"

// takeOver serves the volume after its nbdkit was killed.
func (d *disk) takeOver() string {
	d.t.Helper()
	holder, _, _ := strings.Cut(d.account.Holder(d.t, d.name), "@")
	if holder == "" {
		d.t.Fatal("kill -9 left no mark, so it was not killed at work")
	}
	d.n, _ = harness.TakeOver(d.t, harness.Options{Params: d.params}, holder)
	return d.n.URI
}

// killAtWork has so many clients work, each on a connection of its own, and kills
// nbdkit after a moment. Work is told which of how many it is, and returns an error
// that should not have been.
func (d *disk) killAtWork(uri string, rng *rand.Rand, clients int, work func(c *client, rng *rand.Rand, k, n int) error) {
	d.t.Helper()
	var wg sync.WaitGroup
	for k := range clients {
		c := mustDial(d.t, uri)
		seed := rng.Uint64()
		wg.Go(func() {
			if err := work(c, rand.New(rand.NewPCG(seed, 2)), k, clients); err != nil {
				d.t.Error(err)
			}
		})
	}
	time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
	d.n.Kill(d.t)
	wg.Wait()
}
