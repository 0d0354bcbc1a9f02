// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"log/slog"
	"time"

	"swiftnbd/internal/store"
)

// traced logs each request of a store at debug level: what, how long, how it
// ended. Neither data nor credentials pass through it.
type traced struct {
	store.Store
	log *slog.Logger
}

// done logs the end of a request.
func (t *traced) done(ctx context.Context, op, name string, begun time.Time, err error, more ...any) {
	if !t.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	args := []any{"op", op}
	if name != "" {
		args = append(args, "object", name)
	}
	args = append(args, more...)
	args = append(args, "took", time.Since(begun).Round(10*time.Microsecond))
	if err != nil {
		args = append(args, "error", err)
	}
	t.log.DebugContext(ctx, "request", args...)
}

func (t *traced) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	begun := time.Now()
	info, err := t.Store.Get(ctx, name, p, o)
	t.done(ctx, "GET", name, begun, err, "bytes", len(p))
	return info, err
}

func (t *traced) Head(ctx context.Context, name string) (store.ObjectInfo, error) {
	begun := time.Now()
	info, err := t.Store.Head(ctx, name)
	t.done(ctx, "HEAD", name, begun, err)
	return info, err
}

func (t *traced) Put(ctx context.Context, name string, data []byte, etag store.ETag) error {
	begun := time.Now()
	err := t.Store.Put(ctx, name, data, etag)
	t.done(ctx, "PUT", name, begun, err, "bytes", len(data))
	return err
}

func (t *traced) Delete(ctx context.Context, name string) error {
	begun := time.Now()
	err := t.Store.Delete(ctx, name)
	t.done(ctx, "DELETE", name, begun, err)
	return err
}

func (t *traced) List(ctx context.Context, o store.ListOptions) ([]store.ObjectInfo, error) {
	begun := time.Now()
	page, err := t.Store.List(ctx, o)
	t.done(ctx, "LIST", "", begun, err, "marker", o.Marker, "names", len(page))
	return page, err
}

func (t *traced) BulkDelete(ctx context.Context, names []string) error {
	begun := time.Now()
	err := t.Store.BulkDelete(ctx, names)
	t.done(ctx, "BULK DELETE", "", begun, err, "names", len(names))
	return err
}

func (t *traced) Metadata(ctx context.Context) (store.Metadata, error) {
	begun := time.Now()
	md, err := t.Store.Metadata(ctx)
	t.done(ctx, "HEAD container", "", begun, err)
	return md, err
}

func (t *traced) SetMetadata(ctx context.Context, items map[string]string) error {
	begun := time.Now()
	err := t.Store.SetMetadata(ctx, items)
	t.done(ctx, "POST container", "", begun, err)
	return err
}

func (t *traced) CreateContainer(ctx context.Context, items map[string]string) (bool, error) {
	begun := time.Now()
	created, err := t.Store.CreateContainer(ctx, items)
	t.done(ctx, "PUT container", "", begun, err, "created", created)
	return created, err
}

func (t *traced) DeleteContainer(ctx context.Context) error {
	begun := time.Now()
	err := t.Store.DeleteContainer(ctx)
	t.done(ctx, "DELETE container", "", begun, err)
	return err
}
