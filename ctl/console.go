// SPDX-License-Identifier: MIT

package main

import (
	"io"
	"sync"
)

// console is standard error. While a progress bar is shown, lines go above it.
type console struct {
	out io.Writer // the stream itself

	mu    sync.Mutex
	above io.Writer // the bar's, or nil
}

// Write implements io.Writer.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.above != nil {
		if n, err := c.above.Write(p); err == nil {
			return n, nil
		}
	}
	return c.out.Write(p)
}

// over makes lines go through w from now on, until over(nil).
func (c *console) over(w io.Writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.above = w
}
