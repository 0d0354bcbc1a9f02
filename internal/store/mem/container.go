// SPDX-License-Identifier: MIT

package mem

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"time"

	"swiftnbd/internal/store"
)

// Metadata implements store.Store.
func (c *Container) Metadata(ctx context.Context) (store.Metadata, error) {
	op := c.op("HEAD", "")
	if err := begin(ctx, op); err != nil {
		return store.Metadata{}, err
	}
	c.cluster.mu.Lock()
	defer c.cluster.mu.Unlock()
	k, ok := c.cluster.containers[c.name]
	if !ok {
		return store.Metadata{}, status(op, http.StatusNotFound, store.ErrContainerNotFound)
	}
	return store.Metadata{Items: maps.Clone(k.meta), Objects: int64(len(k.objects)), Bytes: k.bytes, Date: time.Now()}, nil
}

// MetadataHint implements store.Store.
func (c *Container) MetadataHint(ctx context.Context) (store.Metadata, error) { return c.Metadata(ctx) }

// SetMetadata implements store.Store.
func (c *Container) SetMetadata(ctx context.Context, items map[string]string) error {
	op := c.op("POST", "")
	if err := begin(ctx, op); err != nil {
		return err
	}
	if err := checkItems(items); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	c.cluster.mu.Lock()
	defer c.cluster.mu.Unlock()
	k, ok := c.cluster.containers[c.name]
	if !ok {
		return status(op, http.StatusNotFound, store.ErrContainerNotFound)
	}
	return k.merge(op, items)
}

// CreateContainer implements store.Store.
func (c *Container) CreateContainer(ctx context.Context, items map[string]string) (bool, error) {
	op := c.op("PUT", "")
	if err := begin(ctx, op); err != nil {
		return false, err
	}
	if err := store.CheckContainerName(c.name); err != nil {
		return false, fmt.Errorf("%s: %w", op, err)
	}
	if err := checkItems(items); err != nil {
		return false, fmt.Errorf("%s: %w", op, err)
	}
	c.cluster.mu.Lock()
	defer c.cluster.mu.Unlock()
	k, exists := c.cluster.containers[c.name]
	if !exists {
		k = &contents{objects: make(map[string]object), meta: make(map[string]string)}
	}
	if err := k.merge(op, items); err != nil {
		return false, err
	}
	c.cluster.containers[c.name] = k
	return !exists, nil
}

// DeleteContainer implements store.Store.
func (c *Container) DeleteContainer(ctx context.Context) error {
	op := c.op("DELETE", "")
	if err := begin(ctx, op); err != nil {
		return err
	}
	c.cluster.mu.Lock()
	defer c.cluster.mu.Unlock()
	k, ok := c.cluster.containers[c.name]
	if !ok {
		return status(op, http.StatusNotFound, store.ErrContainerNotFound)
	}
	if len(k.objects) > 0 {
		return status(op, http.StatusConflict, store.ErrNotEmpty)
	}
	delete(c.cluster.containers, c.name)
	return nil
}

func checkItems(items map[string]string) error {
	for key, value := range items {
		if err := store.CheckMeta(key, value); err != nil {
			return err
		}
	}
	return nil
}

// merge merges items into the metadata, all or none. Cluster.mu is held.
func (k *contents) merge(op string, items map[string]string) error {
	merged := maps.Clone(k.meta)
	for key, value := range items {
		if value == "" {
			delete(merged, store.MetaKey(key))
		} else {
			merged[store.MetaKey(key)] = value
		}
	}
	overall := 0
	for key, value := range merged {
		overall += len(key) + len(value)
	}
	if len(merged) > store.MaxMetaCount || overall > store.MaxMetaOverall {
		return &store.StatusError{Op: op, Code: http.StatusBadRequest, Body: "too many metadata items, or too large"}
	}
	k.meta = merged
	return nil
}
