// SPDX-License-Identifier: MIT

package devswift

import (
	"maps"
	"net/http"
	"strconv"
	"strings"
)

// copyObject answers COPY. The request's path names the source, and Destination
// the target. It has the same effect as a PUT of the target with X-Copy-From.
func (c *call) copyObject(a *account) {
	destination := c.r.Header.Get("Destination")
	if destination == "" {
		c.answerText(http.StatusPreconditionFailed, typeHTML, "Destination header required")
		return
	}
	container, object, ok := copyPath(destination)
	if !ok {
		c.answerText(http.StatusPreconditionFailed, typeHTML, "Destination header must be of the form <container name>/<object name>")
		return
	}
	from := c.containerName + "/" + c.objectName
	c.containerName, c.objectName = container, object
	c.copyObjects(a, from)
}

// copyFrom is PUT with X-Copy-From.
func (c *call) copyFrom(a *account, header string) {
	container, object, ok := copyPath(header)
	if !ok {
		c.answerText(http.StatusPreconditionFailed, typeHTML, "X-Copy-From header must be of the form <container name>/<object name>")
		return
	}
	if c.r.ContentLength > 0 {
		c.answerText(http.StatusBadRequest, typePlain, "Copy requests require a zero byte body")
		return
	}
	c.copyObjects(a, container+"/"+object)
}

// copyPath reads "/container/object", quoted.
func copyPath(header string) (container, object string, ok bool) {
	container, object, ok = strings.Cut(strings.TrimLeft(unquote(header), "/"), "/")
	return container, object, ok && container != "" && object != ""
}

// copyObjects puts a copy of an object at the path of the call. Conditions and
// a range refer to the source. The copy has the source's metadata, changed by
// the request's. With X-Fresh-Metadata it has the request's only.
func (c *call) copyObjects(a *account, from string) {
	container, object := c.containerName, c.objectName
	c.containerName, c.objectName, _ = strings.Cut(from, "/")
	source, body, ok := c.find(a)
	c.containerName, c.objectName = container, object
	if !ok {
		return
	}
	defer body.close()
	if status := c.precondition(source); status != 0 {
		c.validators(source)
		c.answerText(status, typeHTML, "")
		return
	}
	part := byteRange{0, source.blob.size}
	if ranges, ok := parseRange(c.r.Header.Get("Range"), source.blob.size); ok && len(ranges) == 1 {
		part = ranges[0]
	}
	t := a.container(c.containerName)
	if t == nil {
		c.answer(http.StatusNotFound)
		return
	}
	o, text := c.newObject()
	if text != "" {
		c.answerText(http.StatusBadRequest, typePlain, text)
		return
	}
	switch strings.ToLower(c.r.Header.Get("X-Fresh-Metadata")) {
	case "true", "1", "yes", "on", "t", "y":
	default:
		merged := maps.Clone(source.headers)
		maps.Copy(merged, o.headers)
		o.headers = merged
		if o.deleteAt == 0 {
			o.deleteAt = source.deleteAt
		}
	}
	o.contentType = first(o.contentType, source.contentType)
	if _, newest := t.get(o.name); newest >= c.ts {
		c.answer(http.StatusAccepted)
		return
	}
	up, err := c.s.disk.receive(a, t, o, body.section(part), part.end-part.start)
	if err != nil {
		c.putFailed(err)
		return
	}
	defer up.discard()
	if err := c.commit(t, o, up); err != nil {
		c.putFailed(err)
		return
	}
	c.header("Etag", o.etag)
	c.header("Last-Modified", o.ts.httpDate())
	c.header("X-Copied-From", quote(from))
	c.header("X-Copied-From-Account", a.name)
	c.header("X-Copied-From-Last-Modified", source.metaTS.httpDate())
	for key, value := range o.headers {
		if strings.HasPrefix(key, objectMeta) {
			c.header(key, value)
		}
	}
	if o.deleteAt != 0 {
		c.header("X-Delete-At", strconv.FormatInt(o.deleteAt, 10))
	}
	c.answer(http.StatusCreated)
}
