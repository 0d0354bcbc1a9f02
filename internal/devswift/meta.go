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

// metaOf gives the headers that begin with prefix, by canonical key: an
// underscore in a name arrives as a dash, and case does not count.
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

// removals gives the keys of X-Remove-Container-Meta-* and its like, as keys to
// be emptied.
func removals(h http.Header, kind string) map[string]string {
	meta := map[string]string{}
	for key := range h {
		if rest, ok := strings.CutPrefix(canonical(key), "X-Remove-"+kind+"-"); ok {
			meta["X-"+kind+"-"+rest] = ""
		}
	}
	return meta
}

// checkMeta holds a request's own metadata against the limits, and gives the
// text of the refusal or "". Empty values count.
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

// mergeMeta lays changes over what is there, key by key; an empty value
// removes. The result is held against the limits anew, and refused as a whole.
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
