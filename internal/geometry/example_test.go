// SPDX-License-Identifier: MIT

package geometry_test

import (
	"fmt"

	"swiftnbd/internal/geometry"
)

// A request falls apart at the chunks' borders.
func ExampleGeometry_Pieces() {
	g, err := geometry.New(1000, 3)
	if err != nil {
		fmt.Println(err)
		return
	}
	for p := range g.Pieces(900, 1200) {
		fmt.Printf("chunk %d: bytes %d to %d, whole: %t\n", p.Chunk, p.In.Off, p.In.End(), p.Whole(g.ObjectSize()))
	}
	// Output:
	// chunk 0: bytes 900 to 1000, whole: false
	// chunk 1: bytes 0 to 1000, whole: true
	// chunk 2: bytes 0 to 100, whole: false
}
