// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"swiftnbd/internal/store"
)

// The patience of a request. The first ones of a verb have somebody in front
// of the terminal; a download goes on over night.
var (
	contactPolicy = store.Policy{Timeout: 20 * time.Second, Attempt: 20 * time.Second}
	workPolicy    = store.Policy{Timeout: 2 * time.Minute, Attempt: time.Minute}
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

// patient tries again what may pass, as p says. The user hears of the first
// failure only: why nothing seems to happen.
func (t *tool) patient(s store.Store, name string, p store.Policy) store.Store {
	var once sync.Once
	p.OnRetry = func(r store.Retrying) {
		once.Do(func() { t.warn("%s: %v; trying again", name, oneLine{r.Err}) })
	}
	return store.Retry(s, p)
}
