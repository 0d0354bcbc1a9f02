// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"swiftnbd/internal/store"
)

// A PUT that is answered with 413 met one of three limits: the container's
// quota, the account's, or max_file_size. Swift names the first two in the same
// words ("Upload exceeds quota.", swift/common/middleware/container_quotas.py
// and account_quotas.py), so the limits themselves are looked at.

// limitError names the limit that refused an object.
type limitError struct {
	text string
	kind error // store.ErrNoSpace or store.ErrTooLarge
}

func (e *limitError) Error() string { return e.text }
func (e *limitError) Unwrap() error { return e.kind }

// limits remembers for a moment which limit has refused a container's PUT: if a
// quota is full, many PUTs fail together.
type limits struct {
	mu   sync.Mutex // guards last
	last map[string]exceeded
}

type exceeded struct {
	at   time.Time
	size int64
	err  error
}

const exceededStands = 5 * time.Second

// tooMuch returns why an object of size bytes was refused with 413. said are
// the words of the answer.
func (c *container) tooMuch(ctx context.Context, size int64, said string) error {
	l := &c.client.limits
	l.mu.Lock()
	r, ok := l.last[c.name]
	l.mu.Unlock()
	if ok && r.size == size && time.Since(r.at) < exceededStands {
		return r.err
	}
	r = exceeded{time.Now(), size, c.findLimit(ctx, size, said)}
	l.mu.Lock()
	if l.last == nil {
		l.last = make(map[string]exceeded)
	}
	l.last[c.name] = r
	l.mu.Unlock()
	return r.err
}

func (c *container) findLimit(ctx context.Context, size int64, said string) error {
	if info, err := c.client.Info(ctx); err == nil && info.MaxFileSize > 0 && size > info.MaxFileSize {
		return &limitError{fmt.Sprintf("an object of %d bytes is larger than this Swift takes (max_file_size is %d)", size, info.MaxFileSize), store.ErrTooLarge}
	}
	if h, err := c.headers(ctx, request{method: "HEAD", container: c.name}); err == nil {
		used, count := number(h, "X-Container-Bytes-Used"), number(h, "X-Container-Object-Count")
		if q := number(h, "X-Container-Meta-Quota-Bytes"); q >= 0 && used+size > q {
			return &limitError{fmt.Sprintf("the quota of container %s is used up: %d of %d bytes (X-Container-Meta-Quota-Bytes)", c.name, used, q), store.ErrNoSpace}
		}
		if q := number(h, "X-Container-Meta-Quota-Count"); q >= 0 && count+1 > q {
			return &limitError{fmt.Sprintf("the quota of container %s is used up: %d of %d objects (X-Container-Meta-Quota-Count)", c.name, count, q), store.ErrNoSpace}
		}
	}
	if h, err := c.headers(ctx, request{method: "HEAD"}); err == nil {
		used := number(h, "X-Account-Bytes-Used")
		if q := number(h, "X-Account-Meta-Quota-Bytes"); q >= 0 && used+size > q {
			return &limitError{fmt.Sprintf("the account's quota is used up: %d of %d bytes (X-Account-Meta-Quota-Bytes)", used, q), store.ErrNoSpace}
		}
	}
	if strings.Contains(strings.ToLower(said), "quota") {
		return &limitError{fmt.Sprintf("a quota is used up, of the container or of the account (%s)", said), store.ErrNoSpace}
	}
	if strings.Contains(strings.ToLower(said), "too large") {
		return &limitError{fmt.Sprintf("an object of %d bytes is larger than this Swift takes, or a quota is used up (%s)", size, said), store.ErrTooLarge}
	}
	return store.ErrNoSpace
}

// headers makes a request for its answer's headers only.
func (c *container) headers(ctx context.Context, r request) (http.Header, error) {
	var h http.Header
	err := c.client.do(ctx, r, nil, func(x *exchange) error {
		h = x.header
		x.drain()
		return nil
	})
	return h, err
}

// number reads a header that is a count; -1: it is not there.
func number(h http.Header, name string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(h.Get(name)), 10, 64)
	if err != nil || n < 0 {
		return -1
	}
	return n
}
