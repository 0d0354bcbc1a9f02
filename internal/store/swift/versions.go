// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"swiftnbd/internal/store"
)

// ObjectVersion is one version of an object in a container with
// X-Versions-Enabled. It is the version that readers get, an older one, or the
// mark of a deletion, which has no bytes.
type ObjectVersion struct {
	Name   string `json:"name"`
	ID     string `json:"version_id"`
	Size   int64  `json:"bytes"`
	Latest bool   `json:"is_latest"`
	Type   string `json:"content_type"`
}

// deletionType is the content type of the mark of a deletion.
const deletionType = "application/x-deleted;swift_versions_deleted=1"

// Old says whether the version is one that readers of the object do not get.
func (v ObjectVersion) Old() bool { return !v.Latest || v.Type == deletionType }

// Versions returns a page of all versions of the container's objects that come
// after a given one, in the order of names. An empty page is the end. Swift
// without object versioning answers with a plain listing. Its versions have no
// ID.
func (c *Client) Versions(ctx context.Context, name string, after ObjectVersion) ([]ObjectVersion, error) {
	if err := store.CheckContainerName(name); err != nil {
		return nil, fmt.Errorf("GET %s: %w", name, err)
	}
	r := request{method: "GET", container: name, params: url.Values{"format": {"json"}, "versions": {"true"}}}
	if after.Name != "" {
		r.params.Set("marker", after.Name)
	}
	if after.ID != "" {
		r.params.Set("version_marker", after.ID)
	}
	var page []ObjectVersion
	err := c.do(ctx, r, containerCodes, func(x *exchange) error {
		if x.status == http.StatusNoContent {
			return nil
		}
		if err := json.NewDecoder(x.stream).Decode(&page); err != nil {
			return readError(r.op(), x, 0, fmt.Errorf("listing of versions: %w", err))
		}
		x.drain()
		return nil
	})
	return page, err
}

// DeleteVersion removes one version of an object for good. ErrNotFound says
// that there was none.
func (c *Client) DeleteVersion(ctx context.Context, name string, v ObjectVersion) error {
	r := request{method: "DELETE", container: name, object: v.Name, params: url.Values{"version-id": {v.ID}}}
	return c.do(ctx, r, deleteCodes, func(x *exchange) error {
		x.drain()
		return nil
	})
}

// RemoveStack ends X-Versions-Location: from then on a DELETE deletes. The
// container that the header names keeps its objects.
func (c *Client) RemoveStack(ctx context.Context, name string) error {
	r := request{method: "POST", container: name, headers: map[string]string{"X-Remove-Versions-Location": "x"}, body: []byte{}}
	return c.do(ctx, r, containerCodes, func(x *exchange) error {
		x.drain()
		return nil
	})
}
