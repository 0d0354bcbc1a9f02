// SPDX-License-Identifier: MIT

package devswift

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// What becomes of a body that the server does not want is half of a refusal,
// since it decides whether the connection goes on. Swift's server
//
//   - drops the connection after its answer, without announcing it by
//     Connection: close, when the client waits for a 100 Continue that it does
//     not get: the client's next request on that connection fails;
//   - answers at once and reads the rest of the body otherwise, and the
//     connection goes on.
//
// net/http would announce the first and close after 256 KiB of the second.

// maxDrain is how many bytes of an unwanted body are read before the connection
// is given up.
const maxDrain = 1 << 30

// bodyPending says whether the request has a body that was not read.
func (c *call) bodyPending() bool {
	return !c.readBody && c.r.Body != nil && c.r.Body != http.NoBody && c.r.ContentLength != 0
}

// refuseExpecting answers a request whose client still waits for a 100
// Continue, and drops the connection. It says whether it did.
func (c *call) refuseExpecting(status int, body string) bool {
	if !c.bodyPending() || !strings.EqualFold(c.r.Header.Get("Expect"), "100-continue") {
		return false
	}
	h := c.w.Header().Clone()
	conn, _, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return false // HTTP/2, or an answer that a fault swallows
	}
	defer conn.Close()
	c.status = status
	h.Set("X-Trans-Id", c.transID)
	h.Set("X-Openstack-Request-Id", c.transID)
	h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP/1.1 %s\r\n", statusText(status))
	if h.Write(&b) == nil {
		io.WriteString(conn, b.String()+"\r\n"+body) // a client that is gone needs no answer
	}
	return true
}

// duplex lets the answer go out while the body is still to be read.
func (c *call) duplex() {
	if c.bodyPending() && c.r.Header.Get("Expect") == "" {
		// An error means HTTP/2, which needs no such call.
		_ = http.NewResponseController(c.w).EnableFullDuplex()
		c.drain = true
	}
}

// drainBody reads the rest of the body after a refusal. If it does not reach
// the end, it gives the connection up. Otherwise net/http would read on by
// itself, and panic because both directions are used at once.
func (c *call) drainBody() {
	if !c.drain {
		return
	}
	if err := http.NewResponseController(c.w).Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
	n, err := io.CopyN(io.Discard, c.r.Body, maxDrain)
	c.received += n
	if !errors.Is(err, io.EOF) {
		panic(http.ErrAbortHandler)
	}
}
