// SPDX-License-Identifier: MIT

package devswift

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// listing is the query of a listing.
type listing struct {
	limit                              int
	prefix, delimiter, marker, endMark string
	path                               string
	hasPath, reverse                   bool
}

// listingQuery reads the query of a listing. If the query is refused, it
// answers.
func (c *call) listingQuery() (listing, bool) {
	q := c.query
	if c.method == http.MethodHead {
		return listing{}, true
	}
	for _, key := range []string{"format", "marker", "end_marker", "prefix", "delimiter", "path", "limit", "reverse"} {
		if !utf8.ValidString(q.Get(key)) {
			c.answerText(http.StatusBadRequest, typeHTML, `"`+key+`" parameter not valid UTF-8`)
			return listing{}, false
		}
	}
	l, ok := parseListing(q)
	if !ok {
		c.answerText(http.StatusPreconditionFailed, typeHTML, "Maximum limit is "+strconv.Itoa(listingLimit))
	}
	return l, ok
}

// parseListing reads the query of a listing. It returns false if the limit is
// too high. It ignores a limit that is no number.
func parseListing(q map[string][]string) (listing, bool) {
	get := func(key string) string {
		if v := q[key]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	l := listing{
		limit: listingLimit, prefix: get("prefix"), delimiter: get("delimiter"),
		marker: get("marker"), endMark: get("end_marker"), path: get("path"),
	}
	_, l.hasPath = q["path"]
	switch strings.ToLower(get("reverse")) {
	case "true", "1", "yes", "on", "t", "y":
		l.reverse = true
	}
	if text := get("limit"); text != "" && strings.Trim(text, "0123456789") == "" {
		n, err := strconv.Atoi(text)
		if err != nil || n > listingLimit {
			return l, false
		}
		l.limit = n
	}
	if l.hasPath {
		// An old form: what lies directly in a pseudo directory.
		l.prefix = l.path
		if l.prefix != "" {
			l.prefix = strings.TrimRight(l.prefix, "/") + "/"
		}
		l.delimiter = "/"
	}
	return l, true
}

// entry is one line of a listing: a name, or a common prefix.
type entry struct {
	name   string
	subdir bool
}

// choose goes through sorted names and returns the entries to list, up to the
// limit. It asks exists for each name that would be listed.
//
// With a delimiter, a common prefix stands for all names that begin with it. As
// in Swift, the prefix is listed if one of these names lies behind the marker
// and before the end marker, and the prefix itself equals neither.
func (l *listing) choose(names []string, exists func(string) bool) []entry {
	low, high := l.marker, l.endMark
	if l.reverse {
		low, high = high, low
	}
	from := 0
	if start := max(low, l.prefix); start != "" {
		from, _ = slices.BinarySearch(names, start)
	}
	to := len(names)
	if high != "" {
		to, _ = slices.BinarySearch(names, high)
	}
	if l.prefix != "" {
		n, _ := slices.BinarySearchFunc(names, l.prefix, func(name, prefix string) int {
			if strings.HasPrefix(name, prefix) {
				return -1
			}
			return strings.Compare(name, prefix)
		})
		to = min(to, n)
	}
	var out []entry
	for i := from; i < to && len(out) < l.limit; i++ {
		name := names[i]
		if l.reverse {
			name = names[to-1-(i-from)]
		}
		if low != "" && name == low || l.hasPath && name == l.prefix || !exists(name) {
			continue
		}
		e := entry{name: name}
		if l.delimiter != "" {
			if at := strings.Index(name[len(l.prefix):], l.delimiter); at >= 0 {
				e = entry{name: name[:len(l.prefix)+at+len(l.delimiter)], subdir: true}
			}
		}
		if e.subdir {
			if l.hasPath {
				continue
			}
			if e.name == l.marker || e.name == l.endMark || len(out) > 0 && out[len(out)-1] == e {
				continue
			}
		}
		out = append(out, e)
	}
	return out
}

// row is an entry with the fields that the formats show.
type row struct {
	entry
	fields []field // in the order of JSON
}

type field struct {
	key    string
	text   string
	number bool
}

// rows is a listing that is ready to be rendered.
type rows struct {
	account bool   // the listing of an account, not of a container
	of      string // the name of the account or container
	rows    []row
}

func containerListing(l listing, t *container, now timestamp) rows {
	names := t.sorted(now)
	out := rows{of: t.name}
	if l.limit == 0 {
		return out
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	chosen := l.choose(names, func(name string) bool {
		sl := t.slots[name]
		return sl != nil && sl.object != nil
	})
	out.rows = make([]row, len(chosen))
	for i, e := range chosen {
		out.rows[i].entry = e
		if e.subdir {
			continue
		}
		o := t.slots[e.name].object
		out.rows[i].fields = []field{
			{"bytes", strconv.FormatInt(o.blob.size, 10), true}, {"hash", o.etag, false}, {"name", o.name, false},
			{"content_type", o.contentType, false}, {"last_modified", o.metaTS.isoDate(), false},
		}
	}
	return out
}

func accountListing(l listing, of string, containers map[string]*container) rows {
	names := make([]string, 0, len(containers))
	for name := range containers {
		if strings.HasPrefix(name, reserved) {
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	out := rows{account: true, of: of}
	for _, e := range l.choose(names, func(string) bool { return true }) {
		r := row{entry: e}
		if !e.subdir {
			t := containers[e.name]
			t.mu.RLock()
			r.fields = []field{
				{"name", e.name, false}, {"count", strconv.FormatInt(t.count, 10), true},
				{"bytes", strconv.FormatInt(t.bytes, 10), true}, {"last_modified", t.changed.isoDate(), false},
			}
			t.mu.RUnlock()
		}
		out.rows = append(out.rows, r)
	}
	return out
}

// listingFormat chooses the content type of a listing. If the client takes
// none, it answers.
func (c *call) listingFormat() (string, bool) {
	switch format := c.query.Get("format"); strings.ToLower(format) {
	case "":
	case "json":
		return "application/json", true
	case "xml":
		return "application/xml", true
	default:
		return typePlain, true
	}
	format, ok := bestFormat(c.r.Header.Get("Accept"))
	switch {
	case !ok:
		c.answerText(http.StatusBadRequest, typeHTML, "Invalid Accept header")
		return "", false
	case format == "":
		c.answer(http.StatusNotAcceptable)
		return "", false
	}
	return format, true
}

// listingHeaders sets the headers that a listing and its HEAD have in common.
func (c *call) listingHeaders(format string) {
	c.header("Content-Type", format+"; charset=utf-8")
	if !c.query.Has("format") {
		c.header("Vary", "Accept")
	}
}

// answerListing renders a listing. Only plain text without a line is a 204.
func (c *call) answerListing(format string, l rows) {
	var body []byte
	switch format {
	case "application/json":
		body = l.json()
	case typePlain:
		body = l.plain()
	default:
		body = l.xml()
	}
	c.listingHeaders(format)
	if len(body) == 0 {
		c.begin(http.StatusNoContent)
		return
	}
	c.header("Content-Length", strconv.Itoa(len(body)))
	c.begin(http.StatusOK)
	c.write(body)
}

func (l rows) plain() []byte {
	var b bytes.Buffer
	for _, r := range l.rows {
		b.WriteString(r.name)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

func (l rows) json() []byte {
	var b bytes.Buffer
	b.WriteByte('[')
	for i, r := range l.rows {
		if i > 0 {
			b.WriteString(", ")
		}
		fields := r.fields
		if r.subdir {
			fields = []field{{"subdir", r.name, false}}
		}
		for k, f := range fields {
			b.WriteString([]string{"{", ", "}[min(k, 1)])
			b.WriteString(quoteJSON(f.key) + ": ")
			if f.number {
				b.WriteString(f.text)
			} else {
				b.WriteString(quoteJSON(f.text))
			}
		}
		b.WriteByte('}')
	}
	b.WriteByte(']')
	return b.Bytes()
}

// quoteJSON quotes a string in pure ASCII, as Swift does.
func quoteJSON(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil { // a string cannot fail
		return `""`
	}
	quoted := strings.TrimSuffix(b.String(), "\n")
	if isASCII(quoted) {
		return quoted
	}
	b.Reset()
	for _, r := range quoted {
		switch {
		case r < utf8.RuneSelf:
			b.WriteRune(r)
		case r > 0xFFFF:
			r -= 0x10000
			b.WriteString(escapeRune(0xD800+r>>10) + escapeRune(0xDC00+r&0x3FF))
		default:
			b.WriteString(escapeRune(r))
		}
	}
	return b.String()
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

func escapeRune(r rune) string {
	text := strconv.FormatInt(int64(r), 16)
	return `\u` + strings.Repeat("0", 4-len(text)) + text
}

func (l rows) xml() []byte {
	var b bytes.Buffer
	b.WriteString("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n")
	root, item, end := "container", "object", ""
	keys := []string{"name", "hash", "bytes", "content_type", "last_modified"}
	if l.account {
		root, item, end = "account", "container", "\n"
		keys = []string{"name", "count", "bytes", "last_modified"}
	}
	b.WriteString("<" + root + ` name="` + nameXML.Replace(l.of) + `"`)
	if len(l.rows) == 0 && !l.account {
		b.WriteString(" />")
		return b.Bytes()
	}
	b.WriteString(">" + end)
	for _, r := range l.rows {
		switch {
		case r.subdir && l.account:
			b.WriteString(`<subdir name="` + nameXML.Replace(r.name) + `" />` + end)
		case r.subdir:
			b.WriteString(`<subdir name="` + nameXML.Replace(r.name) + `"><name>` + textXML.Replace(r.name) + "</name></subdir>")
		default:
			b.WriteString("<" + item + ">")
			for _, key := range keys {
				for _, f := range r.fields {
					if f.key == key {
						b.WriteString("<" + key + ">" + textXML.Replace(f.text) + "</" + key + ">")
					}
				}
			}
			b.WriteString("</" + item + ">" + end)
		}
	}
	b.WriteString("</" + root + ">")
	return b.Bytes()
}

// textXML escapes text between tags, and nameXML an attribute.
var (
	textXML = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")
	nameXML = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "\r", "&#13;", "\n", "&#10;", "\t", "&#09;")
)
