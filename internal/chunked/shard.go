// SPDX-License-Identifier: MIT

package chunked

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// shardChunks is how many chunks one object of the map describes.
const shardChunks = 64 << 10

// shard has the knowledge of up to shardChunks chunks at the end of a session.
//
// As bytes it is: the magic; runs of (state, uvarint length) that cover all
// its chunks; a zero length as their end; the MD5 of each Known chunk, 16
// bytes, in the order of the chunks; the SHA-256 of all that.
type shard struct {
	state []Knowledge
	sum   [][16]byte
}

const shardMagic = "swiftnbd map 1\n"

func newShard(n int) *shard {
	return &shard{state: make([]Knowledge, n), sum: make([][16]byte, n)}
}

func (s *shard) encode() []byte {
	b := []byte(shardMagic)
	for j := 0; j < len(s.state); {
		k := j
		for k < len(s.state) && s.state[k] == s.state[j] {
			k++
		}
		b = append(b, byte(s.state[j]))
		b = binary.AppendUvarint(b, uint64(k-j))
		j = k
	}
	b = append(b, 0, 0)
	for j, k := range s.state {
		if k == Known {
			b = append(b, s.sum[j][:]...)
		}
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

var errShard = errors.New("damaged map")

// decodeShard is encode's inverse for a shard of n chunks. It takes nothing
// that encode would not have written.
func decodeShard(b []byte, n int) (*shard, error) {
	if len(b) < len(shardMagic)+sha256.Size || !bytes.HasPrefix(b, []byte(shardMagic)) {
		return nil, fmt.Errorf("%w: no map, or cut off", errShard)
	}
	body := b[:len(b)-sha256.Size]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], b[len(body):]) {
		return nil, fmt.Errorf("%w: checksum", errShard)
	}
	s := newShard(n)
	rest := body[len(shardMagic):]
	at, known := 0, 0
	for {
		if len(rest) < 2 {
			return nil, fmt.Errorf("%w: runs", errShard)
		}
		k := Knowledge(rest[0])
		run, used := binary.Uvarint(rest[1:])
		if used <= 0 {
			return nil, fmt.Errorf("%w: runs", errShard)
		}
		rest = rest[1+used:]
		if run == 0 {
			break
		}
		if k > Known || run > uint64(n-at) {
			return nil, fmt.Errorf("%w: runs", errShard)
		}
		for range run {
			s.state[at] = k
			at++
		}
		if k == Known {
			known += int(run)
		}
	}
	if at != n || len(rest) != known*16 {
		return nil, fmt.Errorf("%w: %d chunks and %d bytes of checksums, expected %d and %d", errShard, at, len(rest), n, known*16)
	}
	for j, k := range s.state {
		if k == Known {
			copy(s.sum[j][:], rest)
			rest = rest[16:]
		}
	}
	return s, nil
}
