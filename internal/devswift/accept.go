// SPDX-License-Identifier: MIT

package devswift

import (
	"slices"
	"strconv"
	"strings"
)

// formats are the formats of listings and of answers to a bulk delete. If the
// client has no preference, the first ones are preferred.
var formats = []string{"text/plain", "application/json", "application/xml", "text/xml"}

// bestFormat picks from formats by an Accept header: by quality, and among
// equals an entry without a star first. It returns "" if none fits, and false
// if the header cannot be read.
func bestFormat(accept string) (string, bool) {
	if accept == "" {
		return formats[0], true
	}
	type want struct {
		kind, sub string
		quality   float64
		exact     bool
	}
	var wants []want
	for part := range strings.SplitSeq(accept, ",") {
		name, params, _ := strings.Cut(part, ";")
		kind, sub, ok := strings.Cut(strings.TrimSpace(name), "/")
		if !ok || !isToken(kind) || !isToken(sub) {
			return "", false
		}
		w := want{kind, sub, 1, kind != "*" && sub != "*"}
		for param := range strings.SplitSeq(params, ";") {
			if strings.TrimSpace(param) == "" {
				continue
			}
			key, value, ok := strings.Cut(param, "=")
			if !ok {
				return "", false
			}
			if strings.TrimSpace(key) == "q" {
				q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err != nil {
					return "", false
				}
				w.quality = q
			}
		}
		wants = append(wants, w)
	}
	slices.SortStableFunc(wants, func(a, b want) int {
		switch {
		case a.quality > b.quality, a.quality == b.quality && a.exact && !b.exact:
			return -1
		case a.quality == b.quality && a.exact == b.exact:
			return 0
		}
		return 1
	})
	for _, w := range wants {
		for _, f := range formats {
			kind, sub, _ := strings.Cut(f, "/")
			if (w.kind == "*" || w.kind == kind) && (w.sub == "*" || w.sub == sub) {
				return f, true
			}
		}
	}
	return "", true
}

// isToken follows RFC 2616, section 2.2.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r == 0x7f || strings.ContainsRune(`()<>@,;:"/[]?={}\`, r)
	})
}
