// SPDX-License-Identifier: MIT

package devswift

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"
)

// bulkResult is the body of a bulk delete's answer, whose status is always 200.
type bulkResult struct {
	status, body      string
	deleted, notFound int
	errors            [][2]string // quoted name, status
}

// bulkDelete answers a request with bulk-delete in its query, and says whether
// it was one.
func (c *call) bulkDelete() bool {
	if !c.query.Has("bulk-delete") || c.s.without["bulk_delete"] || c.method != http.MethodPost && c.method != http.MethodDelete {
		return false
	}
	format, ok := bestFormat(c.r.Header.Get("Accept"))
	if !ok {
		format = ""
	}
	result := bulkResult{status: statusText(http.StatusOK)}
	switch contentType := c.r.Header.Get("Content-Type"); {
	case format == "":
		result.status = statusText(http.StatusNotAcceptable)
	case c.accountName == "":
		result.status = statusText(http.StatusNotFound)
	case contentType != "" && !strings.HasPrefix(contentType, typePlain):
		result.status = statusText(http.StatusNotAcceptable)
	default:
		names, status, text := c.bulkNames()
		if status != 0 {
			result.status, result.body = statusText(status), text
			break
		}
		c.bulkDeleteAll(names, &result)
	}
	c.header("Content-Type", first(format, typeHTML))
	c.begin(http.StatusOK)
	// As in Swift the length is not known when the answer begins.
	_ = http.NewResponseController(c.w).Flush()
	c.write(result.render(format)) // a client that is gone needs no answer
	return true
}

// bulkNames reads the body, which has one quoted name on each line. It also
// returns the status and text of a refusal.
func (c *call) bulkNames() ([]string, int, string) {
	if c.r.ContentLength <= 0 && c.r.Header.Get("Content-Length") == "" && len(c.r.TransferEncoding) == 0 {
		return nil, http.StatusLengthRequired, ""
	}
	const longest = maxObjectName + maxContainerName + 2
	body, err := io.ReadAll(io.LimitReader(c.body(), (maxBulkDeletes+1)*3*longest))
	if err != nil {
		return nil, http.StatusBadRequest, ""
	}
	var names []string
	for line := range bytes.SplitSeq(body, []byte("\n")) {
		if len(line) > 3*longest {
			return nil, http.StatusBadRequest, "Invalid File Name"
		}
		name := unquote(strings.TrimSpace(string(line)))
		names = append(names, name)
	}
	if names[len(names)-1] == "" {
		names = names[:len(names)-1]
	}
	if len(names) > maxBulkDeletes {
		return nil, http.StatusRequestEntityTooLarge, fmt.Sprintf("Maximum Bulk Deletes: %d per request", maxBulkDeletes)
	}
	return names, 0, ""
}

// unquote decodes each valid %xx, and leaves everything else alone.
func unquote(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if text, err := url.PathUnescape(s[i : i+3]); err == nil {
				b.WriteString(text)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// quote quotes like Python: everything except letters, digits, _.-~ and the
// slash.
func quote(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch ch := s[i]; {
		case ch >= 'a' && ch <= 'z', ch >= 'A' && ch <= 'Z', ch >= '0' && ch <= '9', strings.IndexByte("_.-~/", ch) >= 0:
			b.WriteByte(ch)
		default:
			fmt.Fprintf(&b, "%%%02X", ch)
		}
	}
	return b.String()
}

// bulkDeleteAll deletes objects first and containers afterwards.
func (c *call) bulkDeleteAll(names []string, result *bulkResult) {
	failure := http.StatusBadRequest
	for _, containers := range []bool{false, true} {
		for _, name := range names {
			if name == "" || containers == strings.Contains(strings.Trim(name, "/"), "/") {
				continue
			}
			switch status := c.bulkDeleteOne(name); {
			case status == http.StatusNoContent:
				result.deleted++
			case status == http.StatusNotFound:
				result.notFound++
			default:
				if status >= 500 {
					failure = http.StatusBadGateway
				}
				result.errors = append(result.errors, [2]string{quote(name), statusText(status)})
				if len(result.errors) >= maxFailedDeletes {
					result.status, result.body = statusText(http.StatusBadRequest), "Max delete failures exceeded"
					return
				}
			}
		}
	}
	switch {
	case len(result.errors) > 0:
		result.status = statusText(failure)
	case result.deleted+result.notFound == 0:
		result.status, result.body = statusText(http.StatusBadRequest), "Invalid bulk delete."
	}
}

// bulkDeleteOne deletes the object or container of a path within the account.
// It returns the status that a single DELETE would have had.
func (c *call) bulkDeleteOne(name string) int {
	if !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return http.StatusPreconditionFailed
	}
	tok, ok := c.s.tokens.account(first(c.r.Header.Get("X-Auth-Token"), c.r.Header.Get("X-Storage-Token")), c.s.clock())
	open := tok.account
	a := c.s.accounts[c.accountName]
	switch {
	case !ok:
		return http.StatusUnauthorized
	case a == nil || open != a.name:
		return http.StatusForbidden
	}
	containerName, objectName, _ := strings.Cut(strings.TrimLeft(name, "/"), "/")
	switch {
	case containerName == "":
		return http.StatusForbidden // the account itself
	case c.s.accountAway.Load():
		return http.StatusNotFound
	case objectName == "":
		return c.deleteContainer(a, containerName)
	}
	c.ts = c.s.now() + c.skew
	status, err := c.deleteVersioned(a, containerName, objectName)
	if err != nil {
		c.s.log.Error("devswift: bulk delete", "name", name, "err", err)
		return http.StatusServiceUnavailable
	}
	return status
}

func (r *bulkResult) render(format string) []byte {
	var b bytes.Buffer
	switch {
	case format == "application/json":
		fmt.Fprintf(&b, `{"Response Status": %s, "Response Body": %s, "Number Deleted": %d, "Number Not Found": %d, "Errors": [`,
			quoteJSON(r.status), quoteJSON(r.body), r.deleted, r.notFound)
		for i, e := range r.errors {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString("[" + quoteJSON(e[0]) + ", " + quoteJSON(e[1]) + "]")
		}
		b.WriteString("]}")
	case strings.HasSuffix(format, "/xml"):
		fmt.Fprintf(&b, "<delete>\n<number_deleted>%d</number_deleted>\n<number_not_found>%d</number_not_found>\n"+
			"<response_body>%s</response_body>\n<response_status>%s</response_status>\n<errors>\n",
			r.deleted, r.notFound, textXML.Replace(r.body), textXML.Replace(r.status))
		for _, e := range r.errors {
			b.WriteString("<object><name>" + textXML.Replace(e[0]) + "</name><status>" + textXML.Replace(e[1]) + "</status></object>\n")
		}
		b.WriteString("</errors>\n</delete>\n")
	default:
		fmt.Fprintf(&b, "Number Deleted: %d\nNumber Not Found: %d\nResponse Body: %s\nResponse Status: %s\nErrors:\n",
			r.deleted, r.notFound, r.body, r.status)
		for _, e := range r.errors {
			b.WriteString(e[0] + ", " + e[1] + "\n")
		}
	}
	return b.Bytes()
}
