// SPDX-License-Identifier: MIT

package logdisk

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"swiftnbd/internal/store"
)

// TestCause has one cause of errors about several objects that were tried for several
// times: they have one line in the log.
func TestCause(t *testing.T) {
	var s said
	refused := errors.New("connection refused")
	tried := func(name string, attempts int, err error) error {
		return fmt.Errorf("read object %s: %w", name, &store.RetryError{Err: err, Attempts: attempts, Elapsed: time.Duration(attempts) * time.Second})
	}
	failed := func(name string, attempts int) error {
		return tried(name, attempts, &store.TransportError{Op: "GET " + name, Err: refused})
	}
	answer := func(name string, attempts, code int) error {
		return tried(name, attempts, &store.StatusError{Op: "GET " + name, Code: code})
	}
	if !s.news(failed("a", 1)) {
		t.Error("the first error is no news")
	}
	if s.news(failed("b", 7)) {
		t.Error("it is said again")
	}
	refused = errors.New("no route to host")
	if !s.news(failed("a", 2)) {
		t.Error("another cause is no news")
	}
	if !s.news(answer("a", 1, 503)) {
		t.Error("an answer is no news")
	}
	if s.news(answer("b", 7, 503)) {
		t.Error("the answer is said again")
	}
	if !s.news(answer("a", 1, 507)) {
		t.Error("another answer is no news")
	}
}
