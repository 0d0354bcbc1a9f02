// SPDX-License-Identifier: MIT

package devswift

import (
	"errors"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
)

// systemHeaders are kept with an object in addition to its X-Object-Meta-*.
var systemHeaders = []string{
	"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Expires", "X-Robots-Tag",
}

// contentTypes are the types that Swift's proxy guesses if the client names
// none.
var contentTypes = map[string]string{
	".css": "text/css", ".csv": "text/csv", ".gif": "image/gif", ".htm": "text/html", ".html": "text/html",
	".jpg": "image/jpeg", ".json": "application/json", ".pdf": "application/pdf", ".png": "image/png",
	".txt": "text/plain", ".xml": "application/xml", ".zip": "application/zip",
}

func (c *call) serveObject(a *account) {
	switch c.method {
	case http.MethodGet, http.MethodHead:
		c.getObject(a)
	case http.MethodPut:
		c.putObject(a)
	case http.MethodPost:
		c.postObject(a)
	case http.MethodDelete:
		if c.query.Has("version-id") && c.query.Get("version-id") != "null" {
			c.deleteVersion(a, c.query.Get("version-id"))
			return
		}
		status, err := c.deleteVersioned(a, c.containerName, c.objectName)
		if err != nil {
			c.broken(err)
			return
		}
		c.answer(status)
	case "COPY":
		c.copyObject(a)
	default:
		c.notAllowed(allowAll)
	}
}

// newObject makes an object from a request's headers, without its bytes, or
// returns the text of a refusal.
func (c *call) newObject() (*object, string) {
	meta := metaOf(c.r.Header, objectMeta)
	if text := checkMeta(meta, objectMeta); text != "" {
		return nil, text
	}
	for _, key := range systemHeaders {
		if value := c.r.Header.Get(key); value != "" {
			meta[key] = value
		}
	}
	o := &object{
		name: c.objectName, ts: c.ts, metaTS: c.ts, headers: meta,
		contentType: c.r.Header.Get("Content-Type"),
	}
	if strings.Contains(strings.ToLower(o.contentType), ";swift_") {
		return nil, "Invalid Content-Type, swift_* is not a valid parameter name."
	}
	var text string
	o.deleteAt, text = c.deleteAt()
	return o, text
}

// deleteAt reads X-Delete-After and X-Delete-At. If both are given, the former
// counts.
func (c *call) deleteAt() (int64, string) {
	now := int64(c.ts) / ticksPerSecond
	if after := c.r.Header.Get("X-Delete-After"); after != "" {
		n, err := strconv.ParseInt(strings.TrimSpace(after), 10, 64)
		if err != nil {
			return 0, "Non-integer X-Delete-After"
		}
		if n <= 0 {
			return 0, "X-Delete-After in past"
		}
		return now + n, ""
	}
	if at := c.r.Header.Get("X-Delete-At"); at != "" {
		n, err := strconv.ParseInt(strings.TrimSpace(at), 10, 64)
		if err != nil {
			return 0, "Non-integer X-Delete-At"
		}
		if n <= now {
			return 0, "X-Delete-At in past"
		}
		return n, ""
	}
	return 0, ""
}

// putChecked does the checks that come before the body is read. If a check
// fails, it answers.
func (c *call) putChecked(t *container) bool {
	match := c.r.Header.Get("If-None-Match")
	if match != "" && !strings.Contains(match, "*") {
		c.answerText(http.StatusBadRequest, typePlain, "If-None-Match only supports *")
		return false
	}
	if t == nil {
		c.answer(http.StatusNotFound)
		return false
	}
	return true
}

func (c *call) putObject(a *account) {
	if from := c.r.Header.Get("X-Copy-From"); from != "" {
		c.copyFrom(a, from)
		return
	}
	t := a.container(c.containerName)
	if !c.putChecked(t) {
		return
	}
	length := c.r.ContentLength
	switch {
	case length < 0 && len(c.r.TransferEncoding) == 0, length == 0 && c.r.Header.Get("Content-Length") == "" && len(c.r.TransferEncoding) == 0:
		c.answerText(http.StatusLengthRequired, typePlain, "Missing Content-Length header.")
		return
	case length > maxFileSize:
		c.answerText(http.StatusRequestEntityTooLarge, typePlain, "Your request is too large.")
		return
	}
	if n := len(c.objectName); n > maxObjectName {
		c.answerText(http.StatusBadRequest, typePlain, fmt.Sprintf("Object name length of %d longer than %d", n, maxObjectName))
		return
	}
	o, text := c.newObject()
	if text != "" {
		c.answerText(http.StatusBadRequest, typePlain, text)
		return
	}
	if o.contentType == "" {
		o.contentType = first(contentTypes[strings.ToLower(path.Ext(o.name))], defaultContentType)
	}
	if status, err := c.keepCurrent(a, t, o.name); err != nil {
		c.broken(err)
		return
	} else if status != 0 {
		c.answer(status)
		return
	}
	before, newest := t.get(o.name)
	if c.r.Header.Get("If-None-Match") != "" && before != nil && !before.expired(c.ts.time()) {
		c.answer(http.StatusPreconditionFailed)
		return
	}
	if newest >= c.ts {
		// The cluster has a newer object: the request is accepted and
		// discarded.
		c.answer(http.StatusAccepted)
		return
	}
	up, err := c.s.disk.receive(a, t, o, c.body(), length)
	if err != nil {
		c.putFailed(err)
		return
	}
	defer up.discard()
	if want := strings.Trim(c.r.Header.Get("Etag"), `"`); want != "" && want != o.etag {
		c.header("Last-Modified", o.ts.httpDate())
		c.answer(http.StatusUnprocessableEntity)
		return
	}
	if err := c.commit(t, o, up); err != nil {
		c.putFailed(err)
		return
	}
	c.header("Etag", o.etag)
	c.header("Last-Modified", o.ts.httpDate())
	if _, _, enabled := t.versioning(); enabled {
		c.header("X-Object-Version-Id", o.ts.String())
	}
	c.answer(http.StatusCreated)
}

// errContainerGone means that a container was deleted under an upload.
var errContainerGone = errors.New("container deleted meanwhile")

// commit makes an uploaded object visible. If a newer change came first, the
// upload is lost without an error, as in Swift.
func (c *call) commit(t *container, o *object, up *upload) error {
	lock := c.s.stripe(t.name, o.name)
	lock.Lock()
	defer lock.Unlock()
	if _, newest := t.get(o.name); newest >= o.ts {
		return nil
	}
	if err := up.publish(); err != nil {
		return err
	}
	t.mu.Lock()
	if t.gone {
		t.mu.Unlock()
		return errors.Join(errContainerGone, c.s.disk.remove(o))
	}
	before, won := t.setLocked(o.name, o, o.ts)
	t.mu.Unlock()
	if !won {
		before = o
	}
	if err := c.s.disk.remove(before); err != nil {
		// The object is stored. Files of the older one are removed at the next
		// open.
		c.s.log.Warn("devswift: old version stays", "object", o.name, "err", err)
	}
	return nil
}

func (c *call) putFailed(err error) {
	switch {
	case errors.Is(err, errTooLarge):
		c.answer(http.StatusRequestEntityTooLarge)
	case errors.Is(err, errShort):
		c.answer(499)
	case errors.Is(err, errContainerGone):
		c.answer(http.StatusNotFound)
	default:
		c.broken(err)
	}
}

// postObject replaces an object's metadata as a whole. Only the content type
// stays if the request has none.
func (c *call) postObject(a *account) {
	t := a.container(c.containerName)
	if t == nil {
		c.answer(http.StatusNotFound)
		return
	}
	posted, text := c.newObject()
	if text != "" {
		c.answerText(http.StatusBadRequest, typePlain, text)
		return
	}
	lock := c.s.stripe(t.name, posted.name)
	lock.Lock()
	defer lock.Unlock()
	old, _ := t.get(posted.name)
	switch {
	case old == nil || old.expired(c.ts.time()):
		c.answer(http.StatusNotFound)
		return
	case old.metaTS >= c.ts:
		c.answer(http.StatusConflict)
		return
	}
	changed := *old
	changed.metaTS = c.ts
	changed.headers = posted.headers
	changed.deleteAt = posted.deleteAt
	changed.contentType = first(posted.contentType, old.contentType)
	if err := c.s.disk.saveMeta(&changed); err != nil {
		c.broken(err)
		return
	}
	t.update(old, &changed)
	c.answer(http.StatusAccepted)
}

// deleteObject leaves a tombstone, even if there was no object, and returns the
// status. For an expired object the status is 404, and afterwards the object is
// not listed any more.
func (c *call) deleteObject(a *account, containerName, objectName string) (int, error) {
	t := a.container(containerName)
	if t == nil || len(objectName) > maxObjectName {
		return http.StatusNotFound, nil
	}
	lock := c.s.stripe(t.name, objectName)
	lock.Lock()
	defer lock.Unlock()
	old, newest := t.get(objectName)
	if newest >= c.ts {
		if old == nil {
			return http.StatusNotFound, nil
		}
		return http.StatusConflict, nil
	}
	if err := c.s.disk.remove(old); err != nil {
		return 0, err
	}
	t.set(objectName, nil, c.ts)
	if old == nil || old.expired(c.ts.time()) {
		return http.StatusNotFound, nil
	}
	return http.StatusNoContent, nil
}
