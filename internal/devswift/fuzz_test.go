// SPDX-License-Identifier: MIT

package devswift

import (
	"encoding/json"
	"encoding/xml"
	"io"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzRange checks that whatever is satisfied lies within the object.
func FuzzRange(f *testing.F) {
	for _, spec := range []string{"bytes=0-1", "bytes=-5", "bytes=5-", "bytes=0-1,3-4,-2", "bytes=99999999999999999999-", "bytes=-0", "junk"} {
		f.Add(spec, int64(10))
	}
	f.Fuzz(func(t *testing.T, spec string, size int64) {
		if size < 0 {
			return
		}
		ranges, ok := parseRange(spec, size)
		if !ok && ranges != nil {
			t.Errorf("%q is ignored and gives %v", spec, ranges)
		}
		if len(ranges) > maxRanges {
			t.Errorf("%q gives %d ranges", spec, len(ranges))
		}
		for _, r := range ranges {
			if r.start < 0 || r.end > size || r.start > r.end || r.start == r.end && size > 0 {
				t.Errorf("%q of %d bytes gives %v", spec, size, r)
			}
		}
	})
}

// FuzzPath checks that a path is taken apart without loss.
func FuzzPath(f *testing.F) {
	for _, path := range []string{"/v1/AUTH_test/c/o", "/v1/AUTH_test//o", "/", "", "/v1/a/c//o/", "v1/a"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		version, account, container, object := splitPath(path)
		if strings.Contains(version+account+container, "/") {
			t.Errorf("%q gives %q %q %q", path, version, account, container)
		}
		joined := "/" + strings.Join([]string{version, account, container, object}, "/")
		if strings.HasPrefix(path, "/") && !strings.HasPrefix(joined, path) {
			t.Errorf("%q came back as %q", path, joined)
		}
		if got := unquote(quote(path)); got != path {
			t.Errorf("%q quoted and back is %q", path, got)
		}
	})
}

// FuzzListing holds choose to a plain scan over all names, and each format to
// a parser that others wrote.
func FuzzListing(f *testing.F) {
	f.Add("a b/1 b/2 b/3 c d/1 d/x/1 e", "prefix=b/&delimiter=/")
	f.Add("a b/1 b/2 c", "reverse=true&marker=c&end_marker=a&limit=2")
	f.Add("a b/1 b/2 c", "path=b&limit=1")
	f.Add("<&>\" \u00e9 \u2028 \U0001f4be", "delimiter=%C3%A9")
	f.Fuzz(func(t *testing.T, text, query string) {
		if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0xFFFE || r == 0xFFFF }) {
			return
		}
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		l, ok := parseListing(q)
		if !ok {
			return
		}
		names := strings.Fields(text)
		slices.Sort(names)
		names = slices.Compact(names)
		chosen := l.choose(names, func(string) bool { return true })
		if want := scan(l, names); !slices.Equal(chosen, want) {
			t.Fatalf("%+v of %q gives %v, want %v", l, names, chosen, want)
		}
		r := rows{of: "c"}
		for _, e := range chosen {
			r.rows = append(r.rows, row{e, []field{{"name", e.name, false}, {"bytes", "1", true}}})
		}
		var listed []struct{ Name, Subdir string }
		if err := json.Unmarshal(r.json(), &listed); err != nil || len(listed) != len(chosen) {
			t.Fatalf("JSON %s: %v", r.json(), err)
		}
		for i, e := range chosen {
			if utf8.ValidString(e.name) && listed[i].Name+listed[i].Subdir != e.name {
				t.Errorf("JSON has %+v for %+v", listed[i], e)
			}
		}
		if !utf8.ValidString(query) || !utf8.ValidString(l.delimiter) {
			return
		}
		decoder := xml.NewDecoder(strings.NewReader(string(r.xml())))
		for {
			if _, err := decoder.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("XML %s: %v", r.xml(), err)
			}
		}
	})
}

// scan is choose the slow way.
func scan(l listing, names []string) []entry {
	names = slices.Clone(names)
	if l.reverse {
		slices.Reverse(names)
	}
	behind := func(a, b string) bool { return a > b }
	if l.reverse {
		behind = func(a, b string) bool { return a < b }
	}
	var out []entry
	for _, name := range names {
		if l.marker != "" && !behind(name, l.marker) || l.endMark != "" && !behind(l.endMark, name) ||
			!strings.HasPrefix(name, l.prefix) || l.hasPath && name == l.prefix {
			continue
		}
		e := entry{name: name}
		if l.delimiter != "" {
			if before, _, found := strings.Cut(strings.TrimPrefix(name, l.prefix), l.delimiter); found {
				e = entry{l.prefix + before + l.delimiter, true}
			}
		}
		if e.subdir && (l.hasPath || e.name == l.marker || e.name == l.endMark || len(out) > 0 && out[len(out)-1] == e) {
			continue
		}
		if len(out) < l.limit {
			out = append(out, e)
		}
	}
	return out
}

func FuzzAccept(f *testing.F) {
	for _, accept := range []string{"", "application/json", "text/*;q=0.5, */*", "a/b;q=x", ",", "text/plain;"} {
		f.Add(accept)
	}
	f.Fuzz(func(t *testing.T, accept string) {
		format, ok := bestFormat(accept)
		if format != "" && (!ok || !slices.Contains(formats, format)) {
			t.Errorf("%q gives %q, %v", accept, format, ok)
		}
	})
}

func FuzzTempURL(f *testing.F) {
	f.Add("sha256:AAAA", "2026-01-01T00:00:00Z", "10.0.0.0/8")
	f.Add("00", "12", "::1")
	f.Fuzz(func(t *testing.T, sig, expires, network string) {
		if newHash, mac := parseSignature(sig); (newHash == nil) != (mac == nil) && len(mac) > 0 {
			t.Errorf("%q gives a mac without a digest", sig)
		}
		parseExpires(expires)
		inRange("127.0.0.1:1", network)
	})
}
