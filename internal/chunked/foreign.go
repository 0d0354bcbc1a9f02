// SPDX-License-Identifier: MIT

package chunked

import (
	"fmt"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
)

// ForeignError says that the object in a chunk's place has its bytes in other
// objects. These may change or vanish, and neither ETag nor checksum would show
// it.
type ForeignError struct {
	Chunk geometry.ChunkIndex
	Is    string // "a symlink to /v1/AUTH_a/c/o"
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("object %s of chunk %d is %s, whose bytes are not its own: not read (writing or zeroing the whole chunk replaces it)",
		ObjectName(e.Chunk), e.Chunk, e.Is)
}

// inspect checks the store's answer about chunk i's object. It returns a
// *ForeignError if the bytes are not the chunk's own. It warns once if objects
// expire, because their data is lost then.
func (v *Volume) inspect(i geometry.ChunkIndex, info store.ObjectInfo) error {
	if info.Elsewhere != "" {
		return &ForeignError{i, info.Elsewhere}
	}
	if !info.Expires.IsZero() && v.warn != nil {
		v.expires.Do(func() {
			v.warn("warning: object %s expires at %s (X-Delete-At): its data is lost then; an empty POST to the object, or a write of the chunk, takes the expiry away; others may expire too",
				ObjectName(i), info.Expires.UTC().Format("2006-01-02 15:04:05 UTC"))
		})
	}
	return nil
}
