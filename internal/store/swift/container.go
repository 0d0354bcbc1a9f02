// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ncw/swift/v2"

	"swiftnbd/internal/store"
)

// metaPrefix begins the headers that are a container's metadata.
const metaPrefix = "X-Container-Meta-"

var containerCodes = map[int]error{http.StatusNotFound: store.ErrContainerNotFound}

// checkContainer checks the container's name and the metadata to send.
func (c *container) checkContainer(method string, items map[string]string) error {
	err := store.CheckContainerName(c.name)
	for key, value := range items {
		if err == nil {
			err = store.CheckMeta(key, value)
		}
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, c.name, err)
	}
	return nil
}

// List implements store.Store.
func (c *container) List(ctx context.Context, o store.ListOptions) ([]store.ObjectInfo, error) {
	if err := c.checkContainer("GET", nil); err != nil {
		return nil, err
	}
	r := request{method: "GET", container: c.name, params: url.Values{"format": {"json"}}}
	for key, value := range map[string]string{"prefix": o.Prefix, "marker": o.Marker, "end_marker": o.EndMarker} {
		if value != "" {
			r.params.Set(key, value)
		}
	}
	if o.Limit > 0 {
		r.params.Set("limit", strconv.Itoa(min(o.Limit, store.MaxListing)))
	}
	var page []store.ObjectInfo
	err := c.client.do(ctx, r, containerCodes, func(x *exchange) error {
		if x.status == http.StatusNoContent {
			return nil
		}
		var err error
		if page, err = parseListing(x.stream); err != nil {
			return readError(r.op(), x, 0, fmt.Errorf("listing: %w", err))
		}
		x.drain()
		return nil
	})
	return page, err
}

// parseListing reads a page in JSON.
func parseListing(body io.Reader) ([]store.ObjectInfo, error) {
	var lines []struct {
		Name         string
		Bytes        int64
		Hash         string
		LastModified string `json:"last_modified"`
	}
	if err := json.NewDecoder(body).Decode(&lines); err != nil {
		return nil, err
	}
	page := make([]store.ObjectInfo, 0, len(lines))
	for _, l := range lines {
		if l.Name == "" {
			continue // a subdir, which was not asked for
		}
		// UTC; Ceph's gateway writes a Z behind it.
		at, _ := time.Parse("2006-01-02T15:04:05", strings.TrimSuffix(l.LastModified, "Z"))
		page = append(page, store.ObjectInfo{Name: l.Name, Size: max(0, l.Bytes), ETag: etag(l.Hash), LastModified: at})
	}
	return page, nil
}

// parseMetadata reads the headers of a container. Counts that make no sense
// are 0.
func parseMetadata(h http.Header) store.Metadata {
	m := store.Metadata{Items: make(map[string]string)}
	for key := range h {
		if name, ok := strings.CutPrefix(key, metaPrefix); ok && name != "" {
			m.Items[store.MetaKey(name)] = h.Get(key)
		}
	}
	count := func(key string) int64 {
		n, err := strconv.ParseInt(h.Get(key), 10, 64)
		if err != nil || n < 0 {
			return 0
		}
		return n
	}
	m.Objects, m.Bytes = count("X-Container-Object-Count"), count("X-Container-Bytes-Used")
	m.Versions = store.ParseVersions(h)
	m.Date, _ = http.ParseTime(h.Get("Date"))
	return m
}

// metaHeaders returns items as headers. An empty value removes a key.
func metaHeaders(items map[string]string) swift.Headers {
	h := make(swift.Headers, len(items))
	for key, value := range items {
		h[metaPrefix+store.MetaKey(key)] = value
	}
	return h
}

// SetMetadata implements store.Store.
func (c *container) SetMetadata(ctx context.Context, items map[string]string) error {
	if err := c.checkContainer("POST", items); err != nil {
		return err
	}
	r := request{method: "POST", container: c.name, headers: metaHeaders(items), body: []byte{}}
	return c.client.do(ctx, r, containerCodes, func(x *exchange) error {
		x.drain()
		return nil
	})
}

// CreateContainer implements store.Store.
func (c *container) CreateContainer(ctx context.Context, items map[string]string) (bool, error) {
	if err := c.checkContainer("PUT", items); err != nil {
		return false, err
	}
	created := false
	r := request{method: "PUT", container: c.name, headers: metaHeaders(items), body: []byte{}}
	if c.policy != "" {
		r.headers["X-Storage-Policy"] = c.policy
	}
	err := c.client.do(ctx, r, nil, func(x *exchange) error {
		x.drain()
		switch x.status {
		case http.StatusCreated:
			created = true
		case http.StatusAccepted:
		default:
			return &store.StatusError{Op: r.op(), Code: x.status}
		}
		return nil
	})
	return created, c.nameRule(err)
}

// nameRule adds the rule of Ceph's gateway for names to an error of 400 without
// words.
func (c *container) nameRule(err error) error {
	var se *store.StatusError
	if errors.As(err, &se) && se.Code == http.StatusBadRequest && len(c.name) < 3 {
		se.Body = strings.TrimSpace(se.Body + " (Ceph's gateway takes no container's name of less than three letters)")
	}
	return err
}

var deleteContainerCodes = map[int]error{
	http.StatusNotFound: store.ErrContainerNotFound,
	http.StatusConflict: store.ErrNotEmpty,
}

// DeleteContainer implements store.Store.
func (c *container) DeleteContainer(ctx context.Context) error {
	if err := c.checkContainer("DELETE", nil); err != nil {
		return err
	}
	r := request{method: "DELETE", container: c.name}
	return c.client.do(ctx, r, deleteContainerCodes, func(x *exchange) error {
		x.drain()
		return nil
	})
}
