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
		c.answer(c.deleteContainer(a, c.containerName))
	default:
		c.notAllowed(allowAll)
	}
}

// containerChanges gives the metadata that a PUT or POST wants changed, or the
// text of the refusal.
func (c *call) containerChanges() (map[string]string, string) {
	changes := metaOf(c.r.Header, containerMeta)
	if text := checkMeta(changes, containerMeta); text != "" {
		return nil, text
	}
	for _, key := range []string{"X-Container-Read", "X-Container-Write"} {
		if values, ok := c.r.Header[key]; ok {
			changes[key] = values[0]
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
	if n := len(c.containerName); n > maxContainerName {
		c.answerText(http.StatusBadRequest, typeHTML, fmt.Sprintf("Container name length of %d longer than %d", n, maxContainerName))
		return
	}
	if wanted := c.r.Header.Get("X-Storage-Policy"); wanted != "" && !strings.EqualFold(wanted, policy) {
		c.answerText(http.StatusBadRequest, typePlain, "Invalid X-Storage-Policy '"+wanted+"'")
		return
	}
	// The account's lock makes creation atomic: one of many gets the 201.
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
	a.mu.RLock() // so that it cannot be deleted meanwhile
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

// changeContainer merges metadata into a container and saves it; it gives the
// text of a refusal. The account's lock is held.
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

// deleteContainer removes an empty container and gives the status.
func (c *call) deleteContainer(a *account, name string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.containers[name]
	if t == nil {
		return http.StatusNotFound
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count > 0 {
		return http.StatusConflict
	}
	if err := c.s.disk.removeContainer(a, t); err != nil {
		c.s.log.Error("devswift: remove container", "container", name, "err", err)
		return http.StatusServiceUnavailable
	}
	t.gone = true
	delete(a.containers, name)
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
		c.header(key, value)
	}
	c.header("X-Container-Object-Count", strconv.FormatInt(count, 10))
	c.header("X-Container-Bytes-Used", strconv.FormatInt(bytes, 10))
	c.header("X-Timestamp", created.String())
	c.header("Last-Modified", changed.httpDate())
	c.header("X-Storage-Policy", policy)
	c.header("Accept-Ranges", "bytes")
	if c.method == http.MethodHead {
		c.listingHeaders(format)
		c.begin(http.StatusNoContent)
		return
	}
	c.answerListing(format, containerListing(l, t, c.ts))
}

// broken answers for a failure of the server itself.
func (c *call) broken(err error) {
	c.s.log.Error("devswift: request failed", "method", c.method, "path", c.r.URL.Path, "err", err)
	c.answer(http.StatusServiceUnavailable)
}
