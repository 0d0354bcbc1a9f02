// SPDX-License-Identifier: MIT

package devswift

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

func (c *call) serveContainer(a *account) {
	switch c.method {
	case http.MethodGet, http.MethodHead:
		c.getContainer(a)
	case http.MethodPut:
		c.putContainer(a)
	case http.MethodPost:
		c.postContainer(a)
	case http.MethodDelete:
		status := c.deleteContainer(a, c.containerName)
		if status == http.StatusConflict {
			if h := c.hidden(a, c.containerName, false); h != nil && len(h.kept("", c.ts)) > 0 {
				c.answerText(status, typeHTML, "Delete all versions before deleting container.")
				return
			}
		}
		c.answer(status)
	default:
		c.notAllowed(allowAll)
	}
}

// containerChanges returns the metadata that a PUT or POST changes, or the text
// of a refusal.
func (c *call) containerChanges() (map[string]string, string) {
	changes := metaOf(c.r.Header, containerMeta)
	if text := checkMeta(changes, containerMeta); text != "" {
		return nil, text
	}
	for _, key := range []string{"X-Container-Read", "X-Container-Write"} {
		if values, ok := c.r.Header[key]; ok {
			clean, refusal := cleanACL(key, values[0])
			if refusal != "" {
				return nil, refusal
			}
			changes[key] = clean
		}
	}
	for key := range removals(c.r.Header, "Container") {
		if _, ok := changes[key]; !ok {
			changes[key] = ""
		}
	}
	return changes, ""
}

func (c *call) putContainer(a *account) {
	changes, text := c.containerChanges()
	if text != "" {
		c.answerText(http.StatusBadRequest, typePlain, text)
		return
	}
	if !c.changeVersions(a, changes) {
		return
	}
	if n := len(c.containerName); n > maxContainerName {
		c.answerText(http.StatusBadRequest, typeHTML, fmt.Sprintf("Container name length of %d longer than %d", n, maxContainerName))
		return
	}
	if wanted := c.r.Header.Get("X-Storage-Policy"); wanted != "" && !strings.EqualFold(wanted, c.s.policy) {
		c.answerText(http.StatusBadRequest, typePlain, "Invalid X-Storage-Policy '"+wanted+"'")
		return
	}
	// The account's mutex makes creation atomic: only one of many requests gets
	// 201.
	a.mu.Lock()
	t, status := a.containers[c.containerName], http.StatusAccepted
	if t == nil {
		t, status = newContainer(c.containerName, c.ts), http.StatusCreated
	}
	text, err := c.changeContainer(a, t, changes)
	if text == "" && err == nil {
		a.containers[c.containerName] = t
	}
	a.mu.Unlock()
	c.containerChanged(status, text, err)
}

func (c *call) postContainer(a *account) {
	changes, text := c.containerChanges()
	if text != "" {
		c.answerText(http.StatusBadRequest, typePlain, text)
		return
	}
	if !c.changeVersions(a, changes) {
		return
	}
	a.mu.RLock() // so that the container cannot be deleted meanwhile
	t := a.containers[c.containerName]
	if t == nil {
		a.mu.RUnlock()
		c.answer(http.StatusNotFound)
		return
	}
	text, err := c.changeContainer(a, t, changes)
	a.mu.RUnlock()
	c.containerChanged(http.StatusNoContent, text, err)
}

// changeContainer merges metadata into a container and saves it, or returns the
// text of a refusal. account.mu is held.
func (c *call) changeContainer(a *account, t *container, changes map[string]string) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	merged, text := mergeMeta(t.meta, changes, containerMeta)
	if text != "" {
		return text, nil
	}
	oldMeta, oldChanged := t.meta, t.changed
	t.meta, t.changed = merged, max(t.changed, c.ts)
	if err := c.s.disk.saveContainer(a, t); err != nil {
		t.meta, t.changed = oldMeta, oldChanged
		return "", err
	}
	return "", nil
}

func (c *call) containerChanged(status int, text string, err error) {
	switch {
	case text != "":
		c.answerText(http.StatusBadRequest, typeHTML, text)
	case err != nil:
		c.broken(err)
	default:
		c.answer(status)
	}
}

// deleteContainer removes an empty container and returns the status.
func (c *call) deleteContainer(a *account, name string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.containers[name]
	if t == nil {
		return http.StatusNotFound
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	hidden := a.containers[versionsContainer(name)]
	if t.count > 0 || hidden != nil && len(hidden.kept("", c.ts)) > 0 {
		return http.StatusConflict
	}
	if err := c.s.disk.removeContainer(a, t); err != nil {
		c.s.log.Error("devswift: remove container", "container", name, "err", err)
		return http.StatusServiceUnavailable
	}
	t.gone = true
	delete(a.containers, name)
	if hidden != nil {
		if err := c.s.disk.removeContainer(a, hidden); err != nil {
			c.s.log.Error("devswift: remove container", "container", hidden.name, "err", err)
		}
		delete(a.containers, hidden.name)
	}
	return http.StatusNoContent
}

func (c *call) getContainer(a *account) {
	format, ok := c.listingFormat()
	if !ok {
		return
	}
	l, ok := c.listingQuery()
	if !ok {
		return
	}
	t := a.container(c.containerName)
	if t == nil {
		c.answer(http.StatusNotFound)
		return
	}
	t.mu.RLock()
	meta, count, bytes, created, changed := t.meta, t.count, t.bytes, t.created, t.changed
	t.mu.RUnlock()
	for key, value := range meta {
		if !c.guest || !ownerHeaders[key] {
			c.header(key, value)
		}
	}
	if h := c.hidden(a, t.name, false); h != nil {
		for _, o := range h.kept("", c.ts) {
			bytes += o.blob.size
		}
	}
	c.header("X-Container-Object-Count", strconv.FormatInt(count, 10))
	c.header("X-Container-Bytes-Used", strconv.FormatInt(bytes, 10))
	c.header("X-Timestamp", created.String())
	c.header("Last-Modified", changed.httpDate())
	c.header("X-Storage-Policy", c.s.policy)
	c.header("Accept-Ranges", "bytes")
	if c.method == http.MethodHead {
		c.listingHeaders(format)
		c.begin(http.StatusNoContent)
		return
	}
	if c.query.Has("versions") {
		c.listVersions(a, t, l)
		return
	}
	c.answerListing(format, containerListing(l, t, c.ts))
}

// broken answers after a failure of the server itself.
func (c *call) broken(err error) {
	c.s.log.Error("devswift: request failed", "method", c.method, "path", c.r.URL.Path, "err", err)
	c.answer(http.StatusServiceUnavailable)
}
