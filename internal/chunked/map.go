// SPDX-License-Identifier: MIT

package chunked

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"sync"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// The map
//
// When a session ends cleanly, it saves what it knows of the chunks in objects
// under swiftnbd/map/SESSION/. There is one object for each shard of 65,536
// chunks of which something is known, and an index with their names and ETags.
// These objects never change. The container's item Map names the session with
// the valid map. It is believed only while Last names the same session and
// nobody holds the volume. A program that opens the volume removes Map.
// swiftnbd 0.11, which does not know Map, leaves another Last. See
// docs/FORMAT.md.

// MapPrefix is the beginning of the names of all objects that hold maps.
const MapPrefix = volume.ExtraPrefix + "map/"

func mapName(session, part string) string {
	return MapPrefix + url.PathEscape(session) + "/" + part
}

// index is the map's table of contents.
type index struct {
	Version     int
	Session     string
	Objects     int64 // the volume's geometry when the map was written
	ObjectSize  int64
	ShardChunks int64
	Default     Knowledge          // of the chunks of all other shards: Unknown or Hole
	Shards      map[int64]shardRef // the shards of which more is known
}

// shardRef names an object that holds a shard, perhaps an earlier session's.
type shardRef struct {
	Name string
	ETag store.ETag
	Size int64
}

const (
	indexVersion = 1
	maxIndex     = 64 << 20
)

// chunkMap is the map of an earlier session. Its shards are loaded when they
// are needed.
type chunkMap struct {
	index index

	mu      sync.Mutex // guards loading
	loading map[int64]*loading
}

// loading is a shard that is being loaded, or was loaded.
type loading struct {
	done chan struct{}
	err  error // the store did not answer; the next call asks again
}

// openMap reads the index of session's map. If there is no map, or it does not
// fit the volume, it returns an error. The volume then works without a map.
func openMap(ctx context.Context, s store.Store, session string, geo geometry.Geometry) (*chunkMap, error) {
	name := mapName(session, "index")
	info, err := s.Head(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("map of session %s: %w", session, err)
	}
	if info.Size > maxIndex {
		return nil, fmt.Errorf("%s: %d bytes are too many", name, info.Size)
	}
	b := make([]byte, info.Size)
	if _, err := s.Get(ctx, name, b, store.GetOptions{IfMatch: info.ETag, Whole: true}); err != nil {
		return nil, fmt.Errorf("map of session %s: %w", session, err)
	}
	if sum(b) != info.ETag {
		// One damaged digit could turn chunks with data into holes.
		return nil, fmt.Errorf("%s: %w: checksum", name, errShard)
	}
	x, err := parseIndex(b, session, geo)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &chunkMap{index: x, loading: make(map[int64]*loading)}, nil
}

// has says whether the map has a shard with chunk i.
func (m *chunkMap) has(i geometry.ChunkIndex) bool {
	_, ok := m.index.Shards[int64(i/shardChunks)]
	return ok
}

// parseIndex reads an index and checks that it is for this session and
// geometry.
func parseIndex(b []byte, session string, geo geometry.Geometry) (index, error) {
	var x index
	if err := json.Unmarshal(b, &x); err != nil {
		return x, fmt.Errorf("%w: %w", errShard, err)
	}
	if x.Version != indexVersion || x.Session != session || x.Objects != geo.Objects() ||
		x.ObjectSize != geo.ObjectSize() || x.ShardChunks != shardChunks || x.Default > Hole {
		return x, fmt.Errorf("%w: it is of another volume or version", errShard)
	}
	for n, ref := range x.Shards {
		if n < 0 || n > (geo.Objects()-1)/shardChunks || ref.Size < 1 || ref.Size > 2*(16+2)*shardChunks ||
			!isMD5(ref.ETag) || !strings.HasPrefix(ref.Name, MapPrefix) || store.CheckObjectName(ref.Name) != nil {
			return x, fmt.Errorf("%w: shard %d", errShard, n)
		}
	}
	return x, nil
}

// isMD5 says whether e has the form of sum's results. Anything else in an index
// could not be sent as a header.
func isMD5(e store.ETag) bool {
	b, err := hex.DecodeString(string(e))
	return err == nil && len(b) == md5.Size && string(e) == strings.ToLower(string(e))
}

// shardLen returns how many chunks shard n has.
func shardLen(geo geometry.Geometry, n int64) int {
	return int(min(shardChunks, geo.Objects()-n*shardChunks))
}

// recall loads what an earlier session knew of chunk i into the table. If the
// store does not answer, it returns the error. A damaged or missing shard
// counts as empty.
func (v *Volume) recall(ctx context.Context, i geometry.ChunkIndex) error {
	m := v.old
	if m == nil {
		return nil
	}
	n := int64(i / shardChunks)
	ref, ok := m.index.Shards[n]
	if !ok {
		return nil
	}
	for {
		m.mu.Lock()
		l := m.loading[n]
		mine := l == nil
		if mine {
			l = &loading{done: make(chan struct{})}
			m.loading[n] = l
		}
		m.mu.Unlock()
		if mine {
			l.err = v.loadShard(ctx, n, ref)
			if l.err != nil {
				m.mu.Lock()
				delete(m.loading, n)
				m.mu.Unlock()
			}
			close(l.done)
			return l.err
		}
		select {
		case <-l.done:
			if l.err == nil {
				return nil
			}
			// The context of another caller may have ended: try with our own.
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (v *Volume) loadShard(ctx context.Context, n int64, ref shardRef) error {
	b := make([]byte, ref.Size)
	_, err := v.store.Get(ctx, ref.Name, b, store.GetOptions{IfMatch: ref.ETag})
	s := newShard(shardLen(v.geo, n)) // empty: all chunks are Unknown
	switch {
	case errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrPrecondition):
	case err != nil:
		return fmt.Errorf("load the map of chunks %d and on: %w", n*shardChunks, err)
	default:
		if good, err := decodeShard(b, shardLen(v.geo, n)); err == nil {
			s = good
		}
	}
	v.table.load(geometry.ChunkIndex(n*shardChunks), s)
	return nil
}

// SaveMap writes the map for session. The container's metadata must name the
// session afterwards. SaveMap returns the objects of earlier maps that are not
// needed any more then. The volume must not be written meanwhile.
func (v *Volume) SaveMap(ctx context.Context, session string) (obsolete []string, err error) {
	x := index{
		Version: indexVersion, Session: session,
		Objects: v.geo.Objects(), ObjectSize: v.geo.ObjectSize(), ShardChunks: shardChunks,
		Default: v.initial, Shards: make(map[int64]shardRef),
	}
	if v.old != nil {
		maps.Copy(x.Shards, v.old.index.Shards) // shards that were not loaded stay as they are
	}
	for _, n := range v.table.touched() {
		if err := v.recall(ctx, geometry.ChunkIndex(n*shardChunks)); err != nil {
			return nil, err
		}
		b := v.table.shard(geometry.ChunkIndex(n*shardChunks), shardLen(v.geo, n), v.initial).encode()
		ref := shardRef{Name: mapName(session, fmt.Sprintf("%08d", n)), ETag: sum(b), Size: int64(len(b))}
		if err := v.store.Put(ctx, ref.Name, b, ref.ETag); err != nil {
			return nil, fmt.Errorf("save the map: %w", err)
		}
		x.Shards[n] = ref
	}
	b, err := json.Marshal(x)
	if err != nil {
		return nil, err
	}
	if err := v.store.Put(ctx, mapName(session, "index"), b, sum(b)); err != nil {
		return nil, fmt.Errorf("save the map: %w", err)
	}
	keep := map[string]bool{mapName(session, "index"): true}
	for _, ref := range x.Shards {
		keep[ref.Name] = true
	}
	// Objects that earlier sessions have left, even those that did not end
	// cleanly.
	for page, err := range store.Pages(ctx, v.store, store.ListOptions{Prefix: MapPrefix}) {
		if err != nil {
			break // garbage is no reason to fail
		}
		for _, o := range page {
			if !keep[o.Name] {
				obsolete = append(obsolete, o.Name)
			}
		}
	}
	return obsolete, nil
}

// Forget tries to delete the objects that SaveMap has returned. An object that
// stays is garbage and does no harm. The volume was given back before, so s
// must be its container without a fence.
func Forget(ctx context.Context, s store.Store, names []string) {
	for _, name := range names {
		_ = s.Delete(ctx, name)
	}
}

// Count returns how many chunks are known to have an object, and how many are
// known to be holes. Nothing is known of the others. It loads the whole map of
// an earlier session.
func (v *Volume) Count(ctx context.Context) (known, holes int64, err error) {
	shards := (v.geo.Objects() + shardChunks - 1) / shardChunks
	for n := range shards {
		first, length := geometry.ChunkIndex(n*shardChunks), shardLen(v.geo, n)
		if err := v.recall(ctx, first); err != nil {
			return 0, 0, err
		}
		for _, k := range v.table.shard(first, length, v.initial).state {
			switch k {
			case Known:
				known++
			case Hole:
				holes++
			}
		}
	}
	return known, holes, nil
}

// KnownFrom returns the chunks from i on that have an object as the map of the last
// session says, so many at most. Without a map that is true it returns none.
func KnownFrom(ctx context.Context, s store.Store, meta volume.Meta, i geometry.ChunkIndex, most int) (known []geometry.ChunkIndex, err error) {
	v, _ := Open(ctx, s, meta, false)
	if !v.Mapped() {
		return nil, nil
	}
	for n := int64(i / shardChunks); n*shardChunks < v.geo.Objects(); n++ {
		first := geometry.ChunkIndex(n * shardChunks)
		if err := v.recall(ctx, first); err != nil {
			return nil, err
		}
		for k, is := range v.table.shard(first, shardLen(v.geo, n), v.initial).state {
			at := first + geometry.ChunkIndex(k)
			if at < i || is != Known {
				continue
			}
			if known = append(known, at); len(known) == most {
				return known, nil
			}
		}
	}
	return known, nil
}
