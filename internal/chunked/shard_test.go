// SPDX-License-Identifier: MIT

package chunked

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"swiftnbd/internal/store"
)

// randomShard returns a shard of n chunks in runs of random states.
func randomShard(rng *rand.Rand, n int) *shard {
	s := newShard(n)
	for j := 0; j < n; {
		k, run := Knowledge(rng.IntN(3)), 1+rng.IntN(1+rng.IntN(300))
		for ; run > 0 && j < n; run-- {
			s.state[j] = k
			if k == Known {
				for b := range s.sum[j] {
					s.sum[j][b] = byte(rng.Uint32())
				}
			}
			j++
		}
	}
	return s
}

func TestShardRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 100, 127, 128, 1000, shardChunks} {
		s := randomShard(rng, n)
		b := s.encode()
		got, err := decodeShard(b, n)
		if err != nil {
			t.Fatalf("%d chunks: %v", n, err)
		}
		if !reflect.DeepEqual(got, s) {
			t.Errorf("%d chunks: not the same", n)
		}
		if max := 2 * (16 + 2) * shardChunks; len(b) > max {
			t.Errorf("%d chunks take %d bytes, more than an index allows", n, len(b))
		}
		// Another number of chunks, or one byte changed or missing: refused.
		for _, other := range []int{n - 1, n + 1, 0} {
			if _, err := decodeShard(b, other); err == nil {
				t.Errorf("a shard of %d chunks is taken as one of %d", n, other)
			}
		}
		for range 100 {
			bad := bytes.Clone(b)
			bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
			if _, err := decodeShard(bad, n); err == nil {
				t.Error("a changed bit is not noticed")
			}
			if _, err := decodeShard(b[:rng.IntN(len(b))], n); err == nil {
				t.Error("a cut is not noticed")
			}
		}
	}
	// The worst there can be: no two chunks in one state.
	s := newShard(shardChunks)
	for j := range s.state {
		s.state[j] = Known - Knowledge(j%2)
	}
	if b := s.encode(); len(b) > 2*(16+2)*shardChunks {
		t.Errorf("the largest shard takes %d bytes, more than an index allows", len(b))
	}
}

// FuzzDecodeShard gives the parser bodies with a right checksum, so that it
// is the parser which has to cope.
func FuzzDecodeShard(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{1, 50, 300} {
		b := randomShard(rng, n).encode()
		f.Add(b[len(shardMagic):len(b)-sha256.Size], n)
	}
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		if n < 0 || n > shardChunks {
			return
		}
		b := append([]byte(shardMagic), body...)
		sum := sha256.Sum256(b)
		b = append(b, sum[:]...)
		s, err := decodeShard(b, n)
		if err != nil {
			return
		}
		for j, k := range s.state {
			if k > Known {
				t.Fatalf("chunk %d has state %d", j, k)
			}
		}
		again, err := decodeShard(s.encode(), n)
		if err != nil || !reflect.DeepEqual(again, s) {
			t.Errorf("taken, and not the same when written again: %v", err)
		}
	})
}

func FuzzParseIndex(f *testing.F) {
	geo := mustGeometry(f, 4096, 3*shardChunks+1)
	x := index{Version: indexVersion, Session: "s", Objects: geo.Objects(), ObjectSize: geo.ObjectSize(), ShardChunks: shardChunks,
		Default: Hole, Shards: map[int64]shardRef{0: {Name: mapName("s", "0"), ETag: sum(nil), Size: 100}, 3: {Name: mapName("r", "3"), ETag: sum(nil), Size: 100}}}
	b, err := json.Marshal(x)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := parseIndex(b, "s", geo); err != nil {
		f.Fatalf("a good index is refused: %v", err)
	}
	f.Add(b)
	f.Add(bytes.Replace(b, []byte(`"3":`), []byte(`"281474976710656":`), 1))
	f.Add(bytes.Replace(b, []byte(`"3":`), []byte(`"-1":`), 1))
	f.Add(bytes.Replace(b, []byte(`"Default":1`), []byte(`"Default":2`), 1))
	f.Add(bytes.Replace(b, []byte(`"Size":100`), []byte(`"Size":9223372036854775807`), 1))
	f.Add(bytes.Replace(b, []byte(`swiftnbd/map/`), []byte(`disk.part/`), 1))
	f.Add(bytes.Replace(b, []byte(`swiftnbd/map/s`), []byte(`swiftnbd/map/..`), 1))
	f.Add(bytes.Replace(b, []byte(sum(nil)), []byte(`x\r\ny`), 1))
	f.Add([]byte(`{"Version": 1, "Shards": {"0": null}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := parseIndex(b, "s", geo)
		if err != nil {
			return
		}
		if x.Default != Unknown && x.Default != Hole {
			t.Errorf("default %d", x.Default)
		}
		for n, ref := range x.Shards {
			if n < 0 || n > 3 || shardLen(geo, n) < 1 || ref.Size < 1 || ref.Size > maxIndex || !strings.HasPrefix(ref.Name, MapPrefix) ||
				store.CheckObjectName(ref.Name) != nil || len(ref.ETag) != 32 || strings.ContainsAny(string(ref.ETag), "\r\n") {
				t.Errorf("shard %d, %+v is taken", n, ref)
			}
		}
	})
}
