// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ncw/swift/v2"

	"swiftnbd/internal/store"
)

// container is a store.Store.
type container struct {
	client *Client
	name   string
	fence  *store.Fence // nil: writes need the token only
	late   *store.Stragglers
	policy string // the storage policy of a container that it creates; empty: the default
}

var _ store.Store = (*container)(nil)

// request begins a request for an object of the container.
func (c *container) request(method, object string, headers swift.Headers) request {
	return request{method: method, container: c.name, object: object, headers: headers}
}

// check checks the names before a request is made with them.
func (c *container) check(method, object string) error {
	err := store.CheckContainerName(c.name)
	if err == nil {
		err = store.CheckObjectName(object)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", store.OneLine(method+" "+c.name+"/"+object), err)
	}
	return nil
}

var getCodes = map[int]error{
	http.StatusNotFound:           store.ErrNotFound,
	http.StatusPreconditionFailed: store.ErrPrecondition,
}

// Get implements store.Store. Swift answers 404 for an object in a missing
// container as well, so Get ends with store.ErrNotFound then too.
func (c *container) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	if err := c.check("GET", name); err != nil {
		return store.ObjectInfo{}, err
	}
	if err := store.CheckGet(name, p, o); err != nil {
		return store.ObjectInfo{}, fmt.Errorf("GET %s/%s: %w", c.name, name, err)
	}
	headers := swift.Headers{}
	if o.IfMatch != "" {
		headers["If-Match"] = `"` + string(o.IfMatch) + `"`
	}
	if o.Newest {
		headers["X-Newest"] = "true"
	}
	o.Tell(0)
	if len(p) == 0 {
		// A Range header cannot ask for no bytes.
		info, err := c.head(ctx, name, headers)
		if err == nil && o.Offset > info.Size {
			r := c.request("GET", name, nil)
			return store.ObjectInfo{}, shortObject(r.op(), info.Size, 0, o.Offset)
		}
		return info, err
	}
	if int64(len(p)) > math.MaxInt64-o.Offset {
		return store.ObjectInfo{}, fmt.Errorf("GET %s/%s: offset %d is too large", c.name, name, o.Offset)
	}
	if !o.Whole {
		headers["Range"] = fmt.Sprintf("bytes=%d-%d", o.Offset, o.Offset+int64(len(p))-1)
	}
	var info store.ObjectInfo
	r := c.request("GET", name, headers)
	err := c.client.do(ctx, r, getCodes, func(x *exchange) error {
		op := r.op()
		skip := int64(0)
		info = objectInfo(name, x.header)
		if err := phantom(op, info); err != nil {
			return err
		}
		switch x.status {
		case http.StatusOK:
			skip = o.Offset // a server that does not know ranges
		case http.StatusPartialContent:
			first, total, err := contentRange(x.header.Get("Content-Range"))
			if err != nil || first != o.Offset {
				return &store.StatusError{Op: op, Code: x.status, Body: fmt.Sprintf("wrong Content-Range %q", x.header.Get("Content-Range"))}
			}
			info.Size = total
		default:
			return &store.StatusError{Op: op, Code: x.status}
		}
		if info.Size >= 0 && int64(len(p)) > info.Size-o.Offset {
			x.drain()
			return shortObject(op, info.Size, len(p), o.Offset)
		}
		if n, err := io.CopyN(io.Discard, x.stream, skip); err != nil {
			return readError(op, x, int(n), err)
		}
		if n, err := readAll(x.stream, p, o); err != nil {
			return readError(op, x, n, err)
		}
		if rest := x.drain(); info.Size < 0 {
			info.Size = skip + int64(len(p)) + rest
		}
		return nil
	})
	var se *store.StatusError
	if errors.As(err, &se) && se.Code == http.StatusRequestedRangeNotSatisfiable {
		return store.ObjectInfo{}, fmt.Errorf("%s: the object ends before offset %d: %w", r.op(), o.Offset, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return store.ObjectInfo{}, err
	}
	return info, nil
}

// arrivedPiece is how many bytes at most come in between two calls of
// store.GetOptions.Arrived. A processor's own cache has several times as many.
const arrivedPiece = 128 << 10

// readAll fills p from r, and tells o.Arrived how far it is. n is how many bytes
// were read.
func readAll(r io.Reader, p []byte, o store.GetOptions) (n int, err error) {
	for n < len(p) {
		end := len(p)
		if o.Arrived != nil {
			end = min(end, n+arrivedPiece)
		}
		k, err := io.ReadFull(r, p[n:end])
		if n += k; err != nil {
			return n, err
		}
		o.Tell(n)
	}
	return n, nil
}

func shortObject(op string, size int64, n int, offset int64) error {
	return fmt.Errorf("%s: the object has %d bytes, %d at offset %d were wanted: %w", op, size, n, offset, io.ErrUnexpectedEOF)
}

// noBytes is the ETag of an object of no bytes.
const noBytes store.ETag = "d41d8cd98f00b204e9800998ecf8427e"

// phantom returns a transient error for an answer without bytes that has the
// ETag of an object with bytes. Such an answer comes if the newest replica says
// that the object was deleted, one that is behind still has it, and the others
// do not answer. In half of the cases Swift's proxy then drops the old object's
// bytes and keeps its status; in the others it answers 404. We must not learn
// this ETag: a read with If-Match would bring the deleted bytes back.
func phantom(op string, info store.ObjectInfo) error {
	if info.Size != 0 || info.ETag == noBytes || len(info.ETag) != len(noBytes) {
		return nil
	}
	return &store.TransportError{Op: op, Err: fmt.Errorf("the replicas disagree: ETag %s without its bytes", info.ETag)}
}

// contentRange reads "bytes FIRST-LAST/TOTAL", in this form and no other.
func contentRange(v string) (first, total int64, err error) {
	var last int64
	if n, err := fmt.Sscanf(v, "bytes %d-%d/%d", &first, &last, &total); err != nil || n != 3 || first < 0 || last < first || total <= last ||
		v != fmt.Sprintf("bytes %d-%d/%d", first, last, total) {
		return 0, 0, fmt.Errorf("malformed Content-Range %q", v)
	}
	return first, total, nil
}

// objectInfo reads an answer's headers. Size is the size of the answer's body,
// or -1 if the headers do not give it.
func objectInfo(name string, h http.Header) store.ObjectInfo {
	info := store.ObjectInfo{
		Name: name, Size: -1, ETag: etag(h.Get("Etag")), Checksum: store.ParseChecksum(h.Get(checksumHeader)),
	}
	if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		info.Size = n
	}
	if s, err := strconv.ParseFloat(h.Get("X-Timestamp"), 64); err == nil && s > 0 && s < math.MaxInt32*100 {
		info.LastModified = time.UnixMicro(int64(math.Round(s * 1e6)))
	} else if at, err := http.ParseTime(h.Get("Last-Modified")); err == nil {
		info.LastModified = at
	}
	if s, err := strconv.ParseInt(h.Get("X-Delete-At"), 10, 64); err == nil && s > 0 {
		info.Expires = time.Unix(s, 0)
	}
	info.Elsewhere = elsewhere(h)
	return info
}

// elsewhere reads from the headers of an answer to GET or HEAD whether the
// object's bytes are kept in other objects, and says what the object is
// (Swift's middleware slo, dlo and symlink). Empty: the bytes are its own.
func elsewhere(h http.Header) string {
	if strings.EqualFold(h.Get("X-Static-Large-Object"), "true") {
		return "a manifest of segments (X-Static-Large-Object)"
	}
	if v := h.Get("X-Object-Manifest"); v != "" {
		return store.OneLine("a manifest of the objects under " + v + " (X-Object-Manifest)")
	}
	if v := h.Get("Content-Location"); v != "" {
		return store.OneLine("a symlink to " + v)
	}
	return ""
}

// etag strips the quotes that RFC 7232 wants and Swift sends for some objects.
func etag(v string) store.ETag {
	return store.ETag(strings.ToLower(strings.Trim(v, `"`)))
}

// Head implements store.Store.
func (c *container) Head(ctx context.Context, name string) (store.ObjectInfo, error) {
	if err := c.check("HEAD", name); err != nil {
		return store.ObjectInfo{}, err
	}
	return c.head(ctx, name, swift.Headers{"X-Newest": "true"})
}

func (c *container) head(ctx context.Context, name string, headers swift.Headers) (store.ObjectInfo, error) {
	var info store.ObjectInfo
	r := c.request("HEAD", name, headers)
	err := c.client.do(ctx, r, getCodes, func(x *exchange) error {
		if info = objectInfo(name, x.header); info.Size < 0 {
			return &store.StatusError{Op: r.op(), Code: x.status, Body: "the answer has no Content-Length"}
		}
		return phantom(r.op(), info)
	})
	if err != nil {
		return store.ObjectInfo{}, err
	}
	return info, nil
}

// checksumHeader is the object's metadata that holds its store.Checksum. It is
// part of the format (docs/FORMAT.md).
const checksumHeader = "X-Object-Meta-Swiftnbd-Crc32c"

var putCodes = map[int]error{http.StatusNotFound: store.ErrContainerNotFound}

// Put implements store.Store.
func (c *container) Put(ctx context.Context, name string, data []byte, tag store.ETag) error {
	if err := c.check("PUT", name); err != nil {
		return err
	}
	if data == nil {
		data = []byte{}
	}
	r := c.request("PUT", name, swift.Headers{
		"Content-Length": strconv.Itoa(len(data)),
		"Content-Type":   "application/octet-stream",
		checksumHeader:   string(store.ChecksumOf(data)),
	})
	if tag != "" {
		r.headers["Etag"] = string(tag)
	}
	r.body, r.fence, r.late = data, c.fence, c.late
	err := c.client.do(ctx, r, putCodes, func(x *exchange) error {
		x.drain()
		switch x.status {
		case http.StatusCreated:
			if kept := etag(x.header.Get("Etag")); tag != "" && kept != "" && kept != tag {
				return &store.StatusError{Op: r.op(), Code: x.status, Body: fmt.Sprintf("stored with ETag %s, not %s", kept, tag)}
			}
			return nil
		case http.StatusAccepted:
			return &store.StatusError{Op: r.op(), Code: x.status, Err: store.ErrSuperseded}
		}
		return &store.StatusError{Op: r.op(), Code: x.status}
	})
	var se *store.StatusError
	if errors.As(err, &se) && se.Code == http.StatusRequestEntityTooLarge {
		refused := *se
		refused.Err = c.tooMuch(ctx, int64(len(data)), se.Body)
		return &refused
	}
	return err
}

var deleteCodes = map[int]error{
	http.StatusNotFound: store.ErrNotFound,
	http.StatusConflict: store.ErrSuperseded,
}

// Delete implements store.Store.
func (c *container) Delete(ctx context.Context, name string) error {
	if err := c.check("DELETE", name); err != nil {
		return err
	}
	r := c.request("DELETE", name, nil)
	r.fence, r.late = c.fence, c.late
	return c.client.do(ctx, r, deleteCodes, func(x *exchange) error {
		x.drain()
		if x.status != http.StatusNoContent {
			return &store.StatusError{Op: r.op(), Code: x.status}
		}
		return nil
	})
}
