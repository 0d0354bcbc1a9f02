// SPDX-License-Identifier: MIT

package devswift

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// find returns the object of the request, opened. If there is none, it answers
// that.
func (c *call) find(a *account) (*object, *blobReader, bool) {
	t := a.container(c.containerName)
	for t != nil {
		o, _ := t.get(c.objectName)
		if o == nil || o.expired(c.ts.time()) {
			break
		}
		r, err := o.blob.open()
		if errors.Is(err, os.ErrNotExist) {
			// The object was replaced or deleted meanwhile. The request that
			// does this may still hold the stripe, until memory agrees with the
			// directory.
			lock := c.s.stripe(t.name, o.name)
			lock.Lock()
			again, _ := t.get(o.name)
			lock.Unlock()
			if again != o {
				continue
			}
		}
		if err != nil {
			c.broken(err)
			return nil, nil, false
		}
		return o, r, true
	}
	if strings.Contains(c.r.Header.Get("If-Match"), "*") {
		c.answerText(http.StatusPreconditionFailed, typeHTML, "")
		return nil, nil, false
	}
	c.answer(http.StatusNotFound)
	return nil, nil, false
}

func (c *call) getObject(a *account) {
	o, body, ok := c.find(a)
	if !ok {
		return
	}
	defer body.close()
	h := c.w.Header()
	c.validators(o)
	if status := c.precondition(o); status == http.StatusPreconditionFailed {
		c.answerText(status, typeHTML, "")
		return
	} else if status != 0 {
		c.objectHeaders(o)
		c.begin(status)
		return
	}
	c.objectHeaders(o)
	size := o.blob.size
	if c.method == http.MethodHead {
		h["Content-Length"] = []string{strconv.FormatInt(size, 10)}
		c.begin(http.StatusOK)
		return
	}
	ranges, ok := parseRange(c.r.Header.Get("Range"), size)
	switch {
	case !ok || len(ranges) > 0 && size == 0:
		c.sendRange(http.StatusOK, body, byteRange{0, size})
	case len(ranges) == 0:
		h["Content-Range"] = []string{fmt.Sprintf("bytes */%d", size)}
		c.answerText(http.StatusRequestedRangeNotSatisfiable, o.contentType, page(http.StatusRequestedRangeNotSatisfiable))
	case len(ranges) == 1:
		h["Content-Range"] = []string{ranges[0].contentRange(size)}
		c.sendRange(http.StatusPartialContent, body, ranges[0])
	default:
		c.sendMultipart(o, body, ranges)
	}
}

// validators sets the headers that the answer to a failed condition has too.
func (c *call) validators(o *object) {
	h := c.w.Header()
	for key, value := range o.headers {
		h[key] = []string{value}
	}
	if o.deleteAt != 0 {
		h["X-Delete-At"] = []string{strconv.FormatInt(o.deleteAt, 10)}
	}
	h["Etag"] = []string{o.etag}
	h["Last-Modified"] = []string{o.metaTS.httpDate()}
	h["X-Timestamp"] = []string{o.metaTS.String()}
}

// precondition returns 304, 412 or 0. It checks the conditions in Swift's
// order.
func (c *call) precondition(o *object) int {
	h := c.r.Header
	if tags := h.Get("If-None-Match"); tags != "" && matches(tags, o.etag) {
		return http.StatusNotModified
	}
	if tags := h.Get("If-Match"); tags != "" && !matches(tags, o.etag) {
		return http.StatusPreconditionFailed
	}
	modified := o.metaTS.ceil()
	if since, err := http.ParseTime(h.Get("If-Modified-Since")); err == nil && !modified.After(since) {
		return http.StatusNotModified
	}
	if since, err := http.ParseTime(h.Get("If-Unmodified-Since")); err == nil && modified.After(since) {
		return http.StatusPreconditionFailed
	}
	return 0
}

// matches says whether a list of entity tags has etag. Quotes are optional.
func matches(tags, etag string) bool {
	for tag := range strings.SplitSeq(tags, ",") {
		tag = strings.TrimSpace(tag)
		if tag == "*" || tag == etag || tag == `"`+etag+`"` {
			return true
		}
	}
	return false
}

func (c *call) objectHeaders(o *object) {
	h := c.w.Header()
	h["Content-Type"] = []string{o.contentType}
	h["Accept-Ranges"] = []string{"bytes"}
}

func (c *call) sendRange(status int, body *blobReader, r byteRange) {
	c.w.Header()["Content-Length"] = []string{strconv.FormatInt(r.end-r.start, 10)}
	c.begin(status)
	if err := body.copyTo(c.write, r.start, r.end); err != nil {
		c.cut(err)
	}
}

// cut ends a response that cannot be completed. The client must not take its
// part for the whole.
func (c *call) cut(err error) {
	if errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "read ") {
		c.s.log.Error("devswift: body cut short", "path", c.r.URL.Path, "err", err)
	}
	panic(http.ErrAbortHandler)
}

// sendMultipart answers with several ranges, each in a part of its own.
func (c *call) sendMultipart(o *object, body *blobReader, ranges []byteRange) {
	var random [16]byte
	rand.Read(random[:])
	boundary := hex.EncodeToString(random[:])
	heads := make([]string, len(ranges))
	tail := "--" + boundary + "--"
	length := int64(len(tail))
	for i, r := range ranges {
		heads[i] = "--" + boundary + "\r\nContent-Type: " + o.contentType +
			"\r\nContent-Range: " + r.contentRange(o.blob.size) + "\r\n\r\n"
		length += int64(len(heads[i])) + r.end - r.start + 2
	}
	c.header("Content-Type", "multipart/byteranges;boundary="+boundary)
	c.header("Content-Length", strconv.FormatInt(length, 10))
	c.begin(http.StatusPartialContent)
	for i, r := range ranges {
		err := c.write([]byte(heads[i]))
		if err == nil {
			err = body.copyTo(c.write, r.start, r.end)
		}
		if err == nil {
			err = c.write([]byte("\r\n"))
		}
		if err != nil {
			c.cut(err)
		}
	}
	if err := c.write([]byte(tail)); err != nil {
		c.cut(err)
	}
}
