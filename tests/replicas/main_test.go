// SPDX-License-Identifier: MIT

// Package replicas puts swiftnbd on a real Swift with three replicas and takes
// one of them away, or leaves it behind, or has a proxy's clock run late. What
// was written must be read, and what could not be written must be an error.
// Each test also does the same without swiftnbd's precautions and wants to see
// it go wrong, so that none of them passes on a Swift that is too well.
//
// Where nbdkit and the cache would only hide how often Swift is asked, the
// volume is driven directly, with the store as the plugin uses it. Run `make`
// before for the others. The tests are short by default; -writes and -seed make
// them long, and the same again (make check-crash).
package replicas

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/config"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/volume"
	"swiftnbd/tests/harness"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "seed of the random tests; 0 takes one from the clock")
	writesFlag = flag.Int("writes", 150, "overwrites and deletes of each test; what else a test repeats is in proportion")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(harness.Main(m))
}

func newRand(t *testing.T) (uint64, *rand.Rand) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", seed)
	return seed, rand.New(rand.NewPCG(seed, 1))
}

// repeat returns how often a test does what it does n times by default.
func repeat(n int) int { return max(1, n**writesFlag/150) }

// patience is how long our side tries. It is the plugin's default.
var patience = store.Policy{Timeout: 60 * time.Second}

// login returns an account that is logged in, and makes one request a call.
func login(t *testing.T, c *harness.Cloud) *swiftstore.Client {
	t.Helper()
	client, err := swiftstore.Dial(swiftstore.Options{
		Login:       config.Login{AuthURL: c.AuthURL, Version: 1, Username: c.User, Password: config.Secret(c.Key)},
		Connections: 64,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	if err := client.Login(t.Context()); err != nil {
		t.Fatal(err)
	}
	return client
}

// disk is a new volume on the Swift with three replicas. It stays there: a
// container whose replicas differ cannot be cleared away, and the Swift goes
// when the tests are done.
type disk struct {
	*harness.Replicas
	t       *testing.T
	name    string
	geo     geometry.Geometry
	account *harness.Account
	store   store.Store // one request a call
}

func newDisk(t *testing.T, objects, objectSize int64) *disk {
	t.Helper()
	r := harness.Replicated(t)
	d := &disk{Replicas: r, t: t, name: harness.Name(t), account: r.Account(t)}
	d.store = login(t, r.Cloud).Container(d.name)
	var err error
	if d.geo, err = geometry.New(objectSize, objects); err != nil {
		t.Fatal(err)
	}
	if err := volume.Create(t.Context(), d.store, d.geo); err != nil {
		t.Fatal(err)
	}
	return d
}

// open opens the volume through s as a session does that knows nothing of it.
func (d *disk) open(s store.Store) *chunked.Volume {
	d.t.Helper()
	v, err := chunked.Open(d.t.Context(), s, volume.Meta{Version: volume.Version1, Geometry: d.geo}, false)
	if err != nil {
		d.t.Fatal(err)
	}
	return v
}

// session is open with the plugin's patience.
func (d *disk) session() *chunked.Volume { return d.open(store.Retry(d.store, patience)) }

// params are the plugin's parameters that serve the volume through c.
func (d *disk) params(c *harness.Cloud, more ...string) []string {
	d.t.Helper()
	return append([]string{d.name, "secrets=" + harness.Secrets(d.t, c.Section(d.name))}, more...)
}

// want fails the test unless v reads these bytes of chunk i, or with nil sees a
// hole.
func (d *disk) want(v *chunked.Volume, who string, i geometry.ChunkIndex, off, n int64, content []byte) {
	d.t.Helper()
	p := make([]byte, n)
	hole, err := v.Read(d.t.Context(), i, off, p)
	switch {
	case err != nil:
		d.t.Errorf("%s: %v", who, err)
	case hole != (content == nil):
		d.t.Errorf("%s: chunk %d is a hole: %v; it was deleted: %v", who, i, hole, content == nil)
	case content != nil && !bytes.Equal(p, content[off:off+n]):
		d.t.Errorf("%s: chunk %d from %d on is not what was written last", who, i, off)
	}
}

// stale says whether a plain GET, as a client without our precautions makes it,
// finds something else than content.
func (d *disk) stale(i geometry.ChunkIndex, content []byte) bool {
	d.t.Helper()
	p := make([]byte, d.geo.ObjectSize())
	_, err := d.store.Get(d.t.Context(), chunked.ObjectName(i), p, store.GetOptions{Whole: true})
	if errors.Is(err, store.ErrNotFound) {
		return content != nil
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return !bytes.Equal(p, content)
}

// bytesOf returns new bytes for a chunk.
func (d *disk) bytesOf(rng *rand.Rand) []byte {
	return harness.Random(rng.Uint64(), int(d.geo.ObjectSize()))
}
