// SPDX-License-Identifier: MIT

package replicas

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	"swiftnbd/tests/harness"
)

// newest returns an object's newest bytes, nil where there is none.
func (d *disk) newest(i geometry.ChunkIndex) []byte {
	d.t.Helper()
	p := make([]byte, d.geo.ObjectSize())
	_, err := d.store.Get(d.t.Context(), chunked.ObjectName(i), p, store.GetOptions{Newest: true, Whole: true})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		d.t.Error(err)
	}
	return p
}

// TestSlowProxy writes chunks through one proxy and at once again through
// another whose clock is behind by seconds: the second write or delete is
// discarded (202, 409) until that clock has passed the first, and is done then.
func TestSlowProxy(t *testing.T) {
	const behind = 4 * time.Second
	n := repeat(30)
	d := newDisk(t, int64(n), 4096)
	_, rng := newRand(t)
	slow := login(t, d.Slow(t, behind)).Container(d.name)
	var discarded atomic.Int64
	policy := patience
	policy.OnRetry = func(r store.Retrying) {
		if errors.Is(r.Err, store.ErrSuperseded) {
			discarded.Add(1)
		}
	}
	first, second := d.session(), d.open(store.Retry(slow, policy))
	var g errgroup.Group
	g.SetLimit(50)
	for i := range n {
		i, before, after := geometry.ChunkIndex(i), d.bytesOf(rng), d.bytesOf(rng)
		g.Go(func() error {
			if err := first.Write(t.Context(), i, before); err != nil {
				return err
			}
			var err error
			if i%3 == 0 {
				after = nil
				err = second.Delete(t.Context(), i)
			} else {
				err = second.Write(t.Context(), i, after)
			}
			if err != nil {
				return err
			}
			if !bytes.Equal(d.newest(i), after) {
				t.Errorf("chunk %d: the slow proxy's write was acknowledged and is lost", i)
			}
			d.want(second, "the writer", i, 0, 4096, after)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d chunks, %d discarded attempts", n, discarded.Load())
	if discarded.Load() == 0 {
		t.Error("the slow proxy discarded nothing: this test shows nothing")
	}
}

// TestVerySlowProxy is TestSlowProxy with a clock that is an hour behind: what
// is written through it fails within the timeout, and never seems to succeed.
func TestVerySlowProxy(t *testing.T) {
	n := repeat(6)
	d := newDisk(t, int64(n), 4096)
	_, rng := newRand(t)
	bare := login(t, d.Slow(t, time.Hour)).Container(d.name)
	first, second := d.session(), d.open(store.Retry(bare, store.Policy{Timeout: 2 * time.Second}))
	var g errgroup.Group
	g.SetLimit(50)
	for i := range n {
		i, before, after := geometry.ChunkIndex(i), d.bytesOf(rng), d.bytesOf(rng)
		g.Go(func() error {
			if err := first.Write(t.Context(), i, before); err != nil {
				return err
			}
			// As Swift answers one request:
			if err := bare.Put(t.Context(), chunked.ObjectName(i), after, ""); !errors.Is(err, store.ErrSuperseded) {
				t.Errorf("chunk %d: a PUT that Swift discards ends with %v", i, err)
			}
			if err := bare.Delete(t.Context(), chunked.ObjectName(i)); !errors.Is(err, store.ErrSuperseded) {
				t.Errorf("chunk %d: a DELETE that Swift discards ends with %v", i, err)
			}
			// As the device sees it:
			err := second.Write(t.Context(), i, after)
			if i%2 == 0 {
				err = second.Delete(t.Context(), i)
			}
			if !errors.Is(err, store.ErrSuperseded) {
				t.Errorf("chunk %d: a change that Swift discards for ever ends with %v", i, err)
			}
			if second.Knowledge(i) != chunked.Unknown {
				t.Errorf("chunk %d: something is known of it after a change that failed", i)
			}
			if !bytes.Equal(d.newest(i), before) {
				t.Errorf("chunk %d is not what was acknowledged", i)
			}
			d.want(second, "who has failed", i, 0, 4096, before)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// balancer hands each request to the next of some proxies, as a cluster's front
// does, and counts the writes of objects that Swift has discarded. The writes
// and deletes of one object have a turn of their own: two that follow each other
// never meet the same proxy, whatever else was asked between them.
type balancer struct {
	*httptest.Server
	discarded atomic.Int64

	mu   sync.Mutex
	next map[string]int // by the object's path; "" for all other requests
}

func newBalancer(t *testing.T, clouds ...*harness.Cloud) *balancer {
	t.Helper()
	var hosts []string
	for _, c := range clouds {
		u, err := url.Parse(c.AuthURL)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, u.Host)
	}
	b := &balancer{next: make(map[string]int)}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	b.Server = httptest.NewServer(&httputil.ReverseProxy{
		Transport: transport,
		// The Host header stays, so that the storage URL leads here.
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", hosts[b.turn(r.In)%len(hosts)]
			r.Out.Host = r.In.Host
		},
		ModifyResponse: func(resp *http.Response) error {
			m, status := resp.Request.Method, resp.StatusCode
			if changesObject(resp.Request) && (m == "PUT" && status == http.StatusAccepted || m == "DELETE" && status == http.StatusConflict) {
				b.discarded.Add(1)
			}
			return nil
		},
	})
	t.Cleanup(func() {
		b.Close()
		transport.CloseIdleConnections()
	})
	return b
}

// turn returns how many requests of r's turn came before it.
func (b *balancer) turn(r *http.Request) int {
	key := ""
	if changesObject(r) {
		key = r.URL.Path
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.next[key]
	b.next[key]++
	return n
}

// changesObject says whether r writes or deletes an object. A container's path
// is /v1/ACCOUNT/CONTAINER, and an object's is longer.
func changesObject(r *http.Request) bool {
	return (r.Method == "PUT" || r.Method == "DELETE") && strings.Count(r.URL.Path, "/") > 3
}

// TestSlowProxyNbdkit has nbdkit work through two proxies in turns, one of
// which is behind by seconds, as a load balancer does it: each flush is
// acknowledged, and then the data is there.
//
// The client changes chunks at random. That need not change an object twice. So
// it also writes one chunk and flushes it, twice: one of the two meets the slow
// clock, and Swift discards it if it comes within the lag. On a busy machine it
// may come too late, so the client goes on until Swift has discarded a write.
func TestSlowProxyNbdkit(t *testing.T) {
	const behind, chunks, objectSize = 2 * time.Second, 8, 64 << 10
	d := newDisk(t, chunks, objectSize)
	seed, _ := newRand(t)
	slow := d.Slow(t, behind)
	// Swift discards metadata too that is older than what it has, and says 204
	// all the same: a lock mark must not come too soon after another. The wait
	// keeps that out of this test.
	time.Sleep(behind + time.Second)
	b := newBalancer(t, d.Cloud, slow)
	c := &harness.Cloud{AuthURL: b.URL + "/auth/v1.0", User: d.User, Key: d.Key}
	n := harness.Serve(t, harness.Options{Params: d.params(c, "timeout=60")})
	dir := harness.TempDir(t)
	image, enough := filepath.Join(dir, "image"), filepath.Join(dir, "enough")
	client := harness.StartNbdsh(t, n.URI, fmt.Sprintf(`
import os, random, time
rng = random.Random(%d)
disk = bytearray(h.get_size())
enough = %q
def write(i):
    disk[i:i+65536] = rng.randbytes(65536)
    h.pwrite(disk[i:i+65536], i)
rounds = 0
while rounds < %d or not os.path.exists(enough):
    rounds += 1
    for _ in range(4):
        i = rng.randrange(len(disk) // 65536) * 65536
        if rng.randrange(3) == 0:
            h.trim(65536, i)
            disk[i:i+65536] = bytes(65536)
        else:
            write(i)
    h.flush()
    if os.path.exists(enough): continue
    for _ in range(2):
        write(0)
        h.flush()
print(rounds, "rounds")
assert h.pread(len(disk), 0) == disk
# The mark is given back by the slow clock too, and must be newer than its setting.
time.sleep(%g)
open(%q, "wb").write(disk)
`, seed, enough, repeat(6), (behind+time.Second).Seconds(), image))
	for end := time.Now().Add(harness.Patience); b.discarded.Load() == 0 && client.Running() && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	harness.WriteFile(t, enough, "")
	if status := client.Wait(t); status != 0 {
		t.Fatalf("the client: exit status %d\n%s", status, client.Output())
	}
	disk, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(behind + time.Second) // for the next mark
	if i := firstDifference(harness.Download(t, n.URI), disk); i >= 0 {
		t.Errorf("a new client does not read what was flushed, from byte %d on", i)
	}
	n.Stop(t)
	if i := firstDifference(d.account.Read011(t, d.name), disk); i >= 0 {
		t.Errorf("Swift does not hold what was flushed, from byte %d on", i)
	}
	t.Logf("%s, %d discarded writes", strings.TrimSpace(client.Output()), b.discarded.Load())
	if b.discarded.Load() == 0 {
		t.Error("Swift discarded nothing: this test shows nothing")
	}
}
