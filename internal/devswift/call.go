// SPDX-License-Identifier: MIT

package devswift

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

// call is one request on its way through the server.
type call struct {
	s       *Server
	w       http.ResponseWriter
	r       *http.Request
	method  string
	query   url.Values
	transID string
	ts      timestamp // the proxy's time of the request
	skew    timestamp // how much that clock is wrong

	// The parts of the path. A part that the path lacks is empty.
	version, accountName, containerName, objectName string

	tempURL bool // authorised by a signature, not by a token
	guest   bool // authorised by a container's ACL

	// The result, for the journal.
	status         int
	received, sent int64
	readBody       bool // the request's body was read
	drain          bool // the body has to be read after the answer
}

func newCall(s *Server, w http.ResponseWriter, r *http.Request) *call {
	c := &call{s: s, w: w, r: r, method: r.Method, query: parseQuery(r.URL.RawQuery)}
	c.transID = newTransID(s.clock())
	c.version, c.accountName, c.containerName, c.objectName = splitPath(r.URL.Path)
	return c
}

// parseQuery is lenient, as in Swift: it ignores a pair that is not valid.
func parseQuery(raw string) url.Values {
	if raw == "" {
		return url.Values{}
	}
	values, err := url.ParseQuery(raw)
	if err != nil && values == nil {
		return url.Values{}
	}
	return values
}

// splitPath takes "/v1/ACCOUNT/CONTAINER/OBJECT" apart; an object's name may
// contain slashes, and begin with one.
func splitPath(path string) (version, account, container, object string) {
	parts := strings.SplitN(path, "/", 5)
	get := func(i int) string {
		if i < len(parts) {
			return parts[i]
		}
		return ""
	}
	return get(1), get(2), get(3), get(4)
}

// explanations are the pages of Swift's swob.
var explanations = map[int][2]string{
	http.StatusAccepted:                     {"Accepted", "The request is accepted for processing."},
	http.StatusBadRequest:                   {"Bad Request", "The server could not comply with the request since it is either malformed or otherwise incorrect."},
	http.StatusUnauthorized:                 {"Unauthorized", "This server could not verify that you are authorized to access the document you requested."},
	http.StatusForbidden:                    {"Forbidden", "Access was denied to this resource."},
	http.StatusNotFound:                     {"Not Found", "The resource could not be found."},
	http.StatusMethodNotAllowed:             {"Method Not Allowed", "The method is not allowed for this resource."},
	http.StatusNotAcceptable:                {"Not Acceptable", "The resource is not available in a format acceptable to your browser."},
	http.StatusRequestTimeout:               {"Request Timeout", "The server has waited too long for the request to be sent by the client."},
	http.StatusConflict:                     {"Conflict", "There was a conflict when trying to complete your request."},
	http.StatusLengthRequired:               {"Length Required", "Content-Length header required."},
	http.StatusPreconditionFailed:           {"Precondition Failed", "A precondition for this request was not met."},
	http.StatusRequestEntityTooLarge:        {"Request Entity Too Large", "The body of your request was too large for this server."},
	http.StatusRequestedRangeNotSatisfiable: {"Requested Range Not Satisfiable", "The Range requested is not available."},
	http.StatusUnprocessableEntity:          {"Unprocessable Entity", "Unable to process the contained instructions"},
	499:                                     {"Client Disconnect", "The client was disconnected during request."},
	http.StatusInternalServerError:          {"Internal Error", "The server has either erred or is incapable of performing the requested operation."},
	http.StatusServiceUnavailable:           {"Service Unavailable", "The server is currently unavailable. Please try again at a later time."},
	http.StatusInsufficientStorage:          {"Insufficient Storage", "There was not enough space to save the resource. Drive: disk"},
}

const (
	typeHTML  = "text/html; charset=UTF-8"
	typePlain = "text/plain"
)

// statusText is "404 Not Found", as bulk delete reports it.
func statusText(status int) string {
	if page, ok := explanations[status]; ok {
		return fmt.Sprintf("%d %s", status, page[0])
	}
	return fmt.Sprintf("%d %s", status, http.StatusText(status))
}

// page is Swift's own body for a status, or "".
func page(status int) string {
	if text, ok := explanations[status]; ok {
		return "<html><h1>" + text[0] + "</h1><p>" + text[1] + "</p></html>"
	}
	return ""
}

// header sets a header of the answer; the key has to be in canonical form.
func (c *call) header(key, value string) { c.w.Header()[key] = []string{value} }

// answer sends a status with Swift's own page for it, if there is one.
func (c *call) answer(status int) {
	c.answerText(status, typeHTML, page(status))
}

// answerText sends a status with a body. An answer to a HEAD has no body, and a
// Content-Length of 0.
func (c *call) answerText(status int, contentType, body string) {
	h := c.w.Header()
	h["Content-Type"] = []string{contentType}
	if c.method == http.MethodHead {
		body = ""
	}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	if c.refuseExpecting(status, body) {
		return
	}
	c.begin(status)
	if body != "" {
		c.write([]byte(body)) // a client that is gone needs no answer
	}
}

// answerHead is answerText, but an answer to a HEAD has the Content-Length of
// the body.
func (c *call) answerHead(status int, contentType, body string) {
	if c.method != http.MethodHead {
		c.answerText(status, contentType, body)
		return
	}
	c.header("Content-Type", contentType)
	c.header("Content-Length", strconv.Itoa(len(body)))
	c.begin(status)
}

// unauthorized refuses a request without a valid token.
func (c *call) unauthorized(realm string) {
	c.header("Www-Authenticate", `Swift realm="`+realm+`"`)
	c.answer(http.StatusUnauthorized)
}

// begin sends the status line and the headers.
func (c *call) begin(status int) {
	h := c.w.Header()
	h["X-Trans-Id"] = []string{c.transID}
	h["X-Openstack-Request-Id"] = []string{c.transID}
	if c.tempURL {
		c.tempURLHeaders(status)
	}
	c.status = status
	c.duplex()
	c.w.WriteHeader(status)
}

// write sends bytes of the body at the pace of the server.
func (c *call) write(p []byte) error {
	for len(p) > 0 {
		n := c.s.pace.slice(len(p))
		c.s.pace.take(c.r.Context(), n)
		m, err := c.w.Write(p[:n])
		c.sent += int64(m)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// body returns the request's body at the pace of the server.
func (c *call) body() io.Reader {
	c.readBody = true
	return (*bodyReader)(c)
}

type bodyReader call

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Body.Read(p[:b.s.pace.slice(len(p))])
	b.received += int64(n)
	b.s.pace.take(b.r.Context(), n)
	return n, err
}

// route finds the part of the server that answers. The checks have the order of
// the filters in Swift's pipeline: bulk, tempurl, tempauth, and then the proxy
// itself.
func (c *call) route() {
	c.ts = c.s.now() + c.skew
	path := c.r.URL.Path
	switch {
	case path == "/healthcheck":
		c.answerHead(http.StatusOK, typePlain, "OK")
		return
	case path == "/info":
		c.info()
		return
	case strings.HasPrefix(path, "/auth/"):
		c.login()
		return
	}
	if c.bulkDelete() {
		return
	}
	if c.handledByTempURL() {
		return
	}
	if c.tempURL || c.method == http.MethodOptions || c.authorized() {
		c.dispatch()
	}
}

// dispatch is the proxy server. It answers a call that has passed the checks.
func (c *call) dispatch() {
	if !utf8.ValidString(c.r.URL.Path) || strings.ContainsRune(c.r.URL.Path, 0) {
		c.answerText(http.StatusPreconditionFailed, typeHTML, "Invalid UTF8 or contains NULL")
		return
	}
	if c.version == "" {
		c.answer(http.StatusNotFound)
		return
	}
	if c.accountName != "" && c.version != "v1" && c.version != "v1.0" {
		c.answer(http.StatusBadRequest)
		return
	}
	if c.accountName == "" || c.containerName == "" && c.objectName != "" {
		c.answerText(http.StatusPreconditionFailed, typeHTML, "Bad URL")
		return
	}
	a := c.s.accounts[c.accountName]
	if a == nil {
		c.answer(http.StatusForbidden)
		return
	}
	switch {
	case c.away():
	case c.objectName != "":
		c.serveObject(a)
	case c.containerName != "":
		c.serveContainer(a)
	default:
		c.serveAccount(a)
	}
}

// notAllowed refuses a method. The answer names the methods that the resource
// has.
func (c *call) notAllowed(allow string) {
	c.header("Allow", allow)
	if c.method == http.MethodOptions {
		c.answer(http.StatusOK)
		return
	}
	c.answer(http.StatusMethodNotAllowed)
}
