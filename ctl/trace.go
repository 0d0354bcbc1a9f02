// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"swiftnbd/internal/store"
)

// traced logs each request at debug level: what, how long, how it ended.
// Neither data nor credentials pass through here.
func traced(s store.Store, log *slog.Logger) store.Store {
	return store.Wrap(s, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
		begun := time.Now()
		err := call(ctx)
		if !log.Enabled(ctx, slog.LevelDebug) {
			return err
		}
		args := []any{"op", string(op.Kind)}
		if op.Name != "" {
			args = append(args, "object", op.Name)
		}
		if op.Bytes != 0 {
			args = append(args, "bytes", op.Bytes)
		}
		args = append(args, "took", time.Since(begun).Round(10*time.Microsecond))
		if err != nil {
			args = append(args, "error", err)
		}
		log.DebugContext(ctx, "request", args...)
		return err
	})
}

// telling returns p with a warning at the first failure that is tried again,
// and only at that one. The user then knows why nothing seems to happen.
func (t *tool) telling(name string, p store.Policy) store.Policy {
	var once sync.Once
	p.OnRetry = func(r store.Retrying) {
		once.Do(func() { t.warn("%s: %v; trying again", name, oneLine{r.Err}) })
	}
	return p
}
