// SPDX-License-Identifier: MIT

package devswift

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	accountMeta   = "X-Account-Meta-"
	containerMeta = "X-Container-Meta-"
	objectMeta    = "X-Object-Meta-"
)

// metaOf returns the headers that begin with prefix, by canonical key. An
// underscore in a name becomes a dash, and case does not count.
func metaOf(h http.Header, prefix string) map[string]string {
	meta := map[string]string{}
	for key, values := range h {
		key = canonical(key)
		if strings.HasPrefix(key, prefix) {
			meta[key] = strings.Join(values, ",")
		}
	}
	return meta
}

func canonical(key string) string {
	return http.CanonicalHeaderKey(strings.ReplaceAll(key, "_", "-"))
}

// removals returns the keys of X-Remove-Container-Meta-* and similar headers,
// with empty values.
func removals(h http.Header, kind string) map[string]string {
	meta := map[string]string{}
	for key := range h {
		if rest, ok := strings.CutPrefix(canonical(key), "X-Remove-"+kind+"-"); ok {
			meta["X-"+kind+"-"+rest] = ""
		}
	}
	return meta
}

// checkMeta compares a request's own metadata with the limits. It returns the
// text of a refusal or "". Empty values count.
func checkMeta(meta map[string]string, prefix string) string {
	size := 0
	for _, key := range slices.Sorted(maps.Keys(meta)) {
		name, value := strings.TrimPrefix(key, prefix), meta[key]
		switch {
		case name == "":
			return "Metadata name cannot be empty"
		case !utf8.ValidString(name) || !utf8.ValidString(value):
			return "Metadata must be valid UTF-8"
		case len(name) > maxMetaName:
			return "Metadata name too long: " + strings.ToLower(prefix) + name
		case len(value) > maxMetaValue:
			return fmt.Sprintf("Metadata value longer than %d: %s%s", maxMetaValue, strings.ToLower(prefix), name)
		}
		size += len(name) + len(value)
	}
	if len(meta) > maxMetaCount {
		return fmt.Sprintf("Too many metadata items; max %d", maxMetaCount)
	}
	if size > maxMetaSize {
		return fmt.Sprintf("Total metadata too large; max %d", maxMetaSize)
	}
	return ""
}

// mergeMeta changes old key by key. An empty value removes a key. If the result
// exceeds the limits, it is refused as a whole.
func mergeMeta(old, changes map[string]string, prefix string) (map[string]string, string) {
	merged := maps.Clone(old)
	for key, value := range changes {
		if value == "" {
			delete(merged, key)
		} else {
			merged[key] = value
		}
	}
	count, size := 0, 0
	for key, value := range merged {
		if name, ok := strings.CutPrefix(key, prefix); ok {
			count++
			size += len(name) + len(value)
		}
	}
	switch {
	case count > maxMetaCount:
		return nil, fmt.Sprintf("Too many metadata items; max %d", maxMetaCount)
	case size > maxMetaSize:
		return nil, fmt.Sprintf("Total metadata too large; max %d", maxMetaSize)
	}
	return merged, ""
}
