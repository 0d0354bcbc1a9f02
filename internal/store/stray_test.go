// SPDX-License-Identifier: MIT

package store_test

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// TestStrays has an attempt that may still be on its way be noted though another one
// succeeds, and no attempt that a proxy has answered or that was not sent.
func TestStrays(t *testing.T) {
	for err, want := range map[error]bool{
		&store.TransportError{Op: "x", Sent: true, Err: errors.New("reset")}: true,
		&store.TransportError{Op: "x", Err: errors.New("refused")}:           false,
		&store.StatusError{Op: "x", Code: http.StatusGatewayTimeout}:         true,
		&store.StatusError{Op: "x", Code: http.StatusServiceUnavailable}:     false,
		&store.StatusError{Op: "x", Code: http.StatusTooManyRequests}:        false,
	} {
		for _, read := range []bool{false, true} {
			m := mem.New()
			if _, err := m.CreateContainer(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			failed := false
			s := store.Retry(store.Wrap(m, func(ctx context.Context, _ store.Op, call func(context.Context) error) error {
				if !failed {
					failed = true
					return err
				}
				return call(ctx)
			}), store.Policy{Base: time.Nanosecond})
			var strays atomic.Bool
			ctx := store.WithStrays(t.Context(), &strays)
			var got error
			if read {
				_, got = s.Metadata(ctx)
			} else {
				got = s.SetMetadata(ctx, map[string]string{"k": "v"})
			}
			if got != nil || strays.Load() != (want && !read) {
				t.Errorf("after %v, read %t: %v, and strays is %t", err, read, got, strays.Load())
			}
		}
	}
}
