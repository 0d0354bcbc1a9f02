// SPDX-License-Identifier: MIT

package devswift

import (
	"maps"
	"net/http"
	"strconv"
)

const allowAll = "HEAD, POST, DELETE, PUT, GET, OPTIONS"

// firstPolicy is the name of the storage policy with the number 0. No other policy may have
// this name (swift/common/storage_policy.py).
const firstPolicy = "Policy-0"

func (c *call) serveAccount(a *account) {
	switch c.method {
	case http.MethodGet, http.MethodHead:
		c.getAccount(a)
	case http.MethodPost:
		c.postAccount(a)
	case http.MethodPut, http.MethodDelete:
		c.answer(http.StatusForbidden) // only the reseller may do this
	default:
		c.notAllowed(allowAll)
	}
}

func (c *call) postAccount(a *account) {
	changes := metaOf(c.r.Header, accountMeta)
	if text := checkMeta(changes, accountMeta); text != "" {
		c.answerText(http.StatusBadRequest, typePlain, text)
		return
	}
	for key := range removals(c.r.Header, "Account") {
		if _, ok := changes[key]; !ok {
			changes[key] = ""
		}
	}
	a.mu.Lock()
	merged, text := mergeMeta(a.meta, changes, accountMeta)
	var err error
	if text == "" {
		old := a.meta
		a.meta = merged
		if err = c.s.disk.saveAccount(a); err != nil {
			a.meta = old
		}
	}
	a.mu.Unlock()
	switch {
	case text != "":
		c.answerText(http.StatusBadRequest, typeHTML, text)
	case err != nil:
		c.broken(err)
	default:
		c.answer(http.StatusNoContent)
	}
}

func (c *call) getAccount(a *account) {
	format, ok := c.listingFormat()
	if !ok {
		return
	}
	l, ok := c.listingQuery()
	if !ok {
		return
	}
	a.mu.RLock()
	containers := maps.Clone(a.containers)
	meta := a.meta
	created := a.created
	a.mu.RUnlock()

	var objects, bytes int64
	for _, t := range containers {
		t.mu.RLock()
		objects += t.count
		bytes += t.bytes
		t.mu.RUnlock()
	}
	for key, value := range meta {
		c.header(key, value)
	}
	for key, n := range map[string]int64{"Container-Count": int64(len(containers)), "Object-Count": objects, "Bytes-Used": bytes} {
		c.header("X-Account-"+key, strconv.FormatInt(n, 10))
		if len(containers) > 0 {
			c.header("X-Account-Storage-Policy-"+c.s.policy+"-"+key, strconv.FormatInt(n, 10))
		}
	}
	c.header("X-Timestamp", created.String())
	c.header("Accept-Ranges", "bytes")
	if c.method == http.MethodHead {
		c.listingHeaders(format)
		c.begin(http.StatusNoContent)
		return
	}
	c.answerListing(format, accountListing(l, a.name, containers))
}
