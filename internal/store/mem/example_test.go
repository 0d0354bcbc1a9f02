// SPDX-License-Identifier: MIT

package mem_test

import (
	"context"
	"errors"
	"fmt"

	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// A container exists once it has been created; an object that was never put is
// not found.
func ExampleNew() {
	ctx := context.Background()
	s := mem.New()
	created, err := s.CreateContainer(ctx, map[string]string{"Colour": "blue"})
	fmt.Println(created, err)
	fmt.Println(s.Put(ctx, "greeting", []byte("hello"), ""))

	p := make([]byte, 5)
	info, err := s.Get(ctx, "greeting", p, store.GetOptions{Newest: true})
	fmt.Printf("%s %d %v\n", p, info.Size, err)

	_, err = s.Head(ctx, "farewell")
	fmt.Println(errors.Is(err, store.ErrNotFound))
	// Output:
	// true <nil>
	// <nil>
	// hello 5 <nil>
	// true
}
