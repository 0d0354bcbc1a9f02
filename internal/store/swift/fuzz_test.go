// SPDX-License-Identifier: MIT

package swiftstore

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
)

// FuzzContentRange takes nothing but what says where the bytes are.
func FuzzContentRange(f *testing.F) {
	for _, v := range []string{"bytes 0-9/10", "bytes 65536-131071/1048576", "bytes */10", "bytes 0-9/*", "bytes 9-0/10", "bytes 0-10/10",
		"bytes -1-5/10", "bytes 0-9223372036854775807/9223372036854775807", "bytes 0-9/99999999999999999999", "bytes +0-9/10", "bytes 0-9/10, 20-30/40", ""} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		first, total, err := contentRange(v)
		if err != nil {
			if first != 0 || total != 0 {
				t.Errorf("%q: %v, and %d of %d", v, err, first, total)
			}
			return
		}
		var last int64
		if _, err := fmt.Sscanf(v, fmt.Sprintf("bytes %d-%%d/%d", first, total), &last); err != nil ||
			fmt.Sprintf("bytes %d-%d/%d", first, last, total) != v || first < 0 || last < first || total <= last {
			t.Errorf("%q is taken for bytes from %d of %d", v, first, total)
		}
	})
}

// FuzzRetryAfter is never a time that nobody can wait for.
func FuzzRetryAfter(f *testing.F) {
	for _, v := range []string{"", "0", "1", "-1", "120", "1.5", "99999999999999999999", "9223372036854775807",
		"Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		x := exchange{header: http.Header{"Retry-After": {v}}}
		if d := x.retryAfter(); d < 0 || d > 24*time.Hour {
			t.Errorf("%q is %v", v, d)
		}
	})
}

// FuzzObjectInfo reads an object's headers, its dates among them.
func FuzzObjectInfo(f *testing.F) {
	f.Add("10", `"D41D8CD98F00B204E9800998ECF8427E"`, "1700000000.12345", "Fri, 20 Nov 2026 10:00:00 GMT")
	f.Add("-2", "", "NaN", "Sun, 00 Jan 0000 00:00:00 GMT")
	f.Add("", `""`, "1e300", "Fri, 31 Dec 9999 23:59:59 GMT")
	f.Add("9223372036854775808", "x", "-Inf", "now")
	f.Fuzz(func(t *testing.T, length, tag, stamp, modified string) {
		info := objectInfo("o", http.Header{"Content-Length": {length}, "Etag": {tag}, "X-Timestamp": {stamp}, "Last-Modified": {modified}})
		if info.Size < -1 {
			t.Errorf("Content-Length %q: %d bytes", length, info.Size)
		}
		if s := string(info.ETag); strings.HasPrefix(s, `"`) || strings.HasSuffix(s, `"`) || s != strings.ToLower(s) {
			t.Errorf("ETag %q: %q", tag, s)
		}
		if at := info.LastModified; !at.IsZero() && (at.Year() < 0 || at.Year() > 9999) {
			t.Errorf("X-Timestamp %q, Last-Modified %q: %v", stamp, modified, at)
		}
	})
}

// FuzzParseListing wants an error or names.
func FuzzParseListing(f *testing.F) {
	f.Add([]byte(`[{"name": "disk.part/00000000", "bytes": 65536, "hash": "d41d8cd98f00b204e9800998ecf8427e", "last_modified": "2026-11-20T10:00:00.123450"}]`))
	f.Add([]byte(`[{"subdir": "disk.part/"}, {"name": ""}]`))
	f.Add([]byte(`[{"name": 5}]`))
	f.Add([]byte(`[{"name": "\ud800", "bytes": -1, "last_modified": "9999999-01-01T00:00:00"}]`))
	f.Add([]byte(`[`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, body []byte) {
		page, err := parseListing(strings.NewReader(string(body)))
		if err != nil && page != nil {
			t.Errorf("%v, and a page of %d", err, len(page))
		}
		for _, o := range page {
			if o.Name == "" || !utf8.ValidString(o.Name) || o.Size < 0 {
				t.Errorf("taken: %+v", o)
			}
		}
	})
}

// FuzzParseInfo wants limits that can be kept, whatever the cluster says.
func FuzzParseInfo(f *testing.F) {
	f.Add([]byte(`{"swift": {"version": "2.30.1", "max_file_size": 5368709122}, "bulk_delete": {"max_deletes_per_request": 10000},
		"tempurl": {"methods": ["GET", "PUT"], "allowed_digests": ["sha1", "sha256"]}}`))
	f.Add([]byte(`{"bulk_delete": {"max_deletes_per_request": -1}, "swift": {"max_file_size": -5}}`))
	f.Add([]byte(`{"bulk_delete": null, "tempurl": {}}`))
	f.Add([]byte("<html>"))
	f.Fuzz(func(t *testing.T, body []byte) {
		info := parseInfo(body)
		if info.BulkDelete != (info.MaxDeletes > 0) || info.MaxDeletes < 0 || info.MaxFileSize < 0 {
			t.Errorf("%+v", info)
		}
		if !info.Known && (info.BulkDelete || info.TempURL || info.MaxFileSize != 0) {
			t.Errorf("not known, and %+v", info)
		}
		if info.Known && !json.Valid(body) {
			t.Error("known from what is no JSON")
		}
	})
}

// FuzzBulkError wants errors of one line.
func FuzzBulkError(f *testing.F) {
	f.Add([]byte(`{"Response Status": "200 OK", "Number Deleted": 3, "Number Not Found": 1, "Errors": []}`))
	f.Add([]byte(`{"Response Status": "400 Bad Request", "Errors": [["/c/o%201", "409 Conflict"], ["/c/%0a", "403\nForbidden"], ["x"]]}`))
	f.Add([]byte(`{"Response Status": "502\nBad", "Response Body": "a\nb"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := bulkResult("BULK DELETE c", body); err != nil && strings.ContainsAny(err.Error(), "\n\r") {
			t.Errorf("an error of more than one line: %q", err)
		}
	})
}

// FuzzErrorText makes one short line of an error's page.
func FuzzErrorText(f *testing.F) {
	f.Add([]byte("<html><h1>Not Found</h1><p>The resource could not be found.</p></html>"))
	f.Add([]byte("a\r\n\x00b <c \xff"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if s := errorText(body); strings.ContainsAny(s, "\n\r\x00\x1b") || !utf8.ValidString(s) || len(s) > 210 {
			t.Errorf("%q", s)
		}
	})
}

// FuzzParseMetadata reads a container's headers.
func FuzzParseMetadata(f *testing.F) {
	f.Add("X-Container-Meta-Swiftnbd-Object_size", "65536", "12")
	f.Add("x-container-meta-swiftnbd-Client", "127.0.0.1:51120@1700000000", "-1")
	f.Add("X-Container-Meta-", "", "x")
	f.Add("X-Container-Meta-\u00dc", "\x00", "99999999999999999999")
	f.Fuzz(func(t *testing.T, key, value, count string) {
		h := http.Header{"X-Container-Object-Count": {count}, "X-Container-Bytes-Used": {count}}
		h.Add(key, value)
		m := parseMetadata(h)
		if m.Objects < 0 || m.Bytes < 0 {
			t.Errorf("%q: %+v", count, m)
		}
		for k, v := range m.Items {
			if k == "" || v != value || store.MetaKey(k) != k {
				t.Errorf("%q: %q is %q: %q", key, value, k, v)
			}
		}
	})
}

// FuzzCatalogue finds an endpoint in a login's answer, or says why not in a line
// without control characters.
func FuzzCatalogue(f *testing.F) {
	f.Add([]byte(`{"token": {"catalog": [{"type": "object-store", "endpoints": [{"interface": "public", "region": "r", "url": "http://h/v1/AUTH_x"}]}]}}`), "")
	f.Add([]byte(`{"access": {"serviceCatalog": [{"type": "object-store", "endpoints": [{"region": "r", "publicURL": "http://h/v1/AUTH_x"}]}]}}`), "other")
	f.Add([]byte(`{"token": {"catalog": [{"type": "compute\n"}]}}`), "r\n")
	f.Fuzz(func(t *testing.T, body []byte, region string) {
		a, err := newAuth(config.Login{AuthURL: "http://h/v3", Version: 3, Username: "u", Password: "p", Region: region})
		if err != nil {
			t.Skip()
		}
		url, err := a.findEndpoint(body)
		if err == nil && url == "" || err != nil && url != "" {
			t.Errorf("%q, %v", url, err)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n\r") {
			t.Errorf("an error of more than one line: %q", err)
		}
	})
}
