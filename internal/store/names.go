// SPDX-License-Identifier: MIT

package store

import (
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"
)

// The limits of Swift's default configuration (swift.conf, swift-constraints)
// that a request can exceed. The store in memory has the same limits.
const (
	MaxObjectName    = 1024  // bytes of an object's name
	MaxContainerName = 256   // bytes of a container's name
	MaxListing       = 10000 // names in one page of a listing
	MaxMetaName      = 128   // bytes of a metadata key
	MaxMetaValue     = 256   // bytes of a metadata value
	MaxMetaCount     = 90    // metadata items of a container
	MaxMetaOverall   = 4096  // bytes of all its keys and values
)

// CheckObjectName says whether name can name an object. An empty name must
// never reach Swift: the request would go to the container itself.
func CheckObjectName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("object name is empty")
	case len(name) > MaxObjectName:
		return fmt.Errorf("object name of %d bytes: at most %d are allowed", len(name), MaxObjectName)
	case !utf8.ValidString(name) || strings.ContainsRune(name, 0):
		return fmt.Errorf("object name %q is not valid UTF-8", name)
	case name == "." || name == ".." || strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../") ||
		strings.HasSuffix(name, "/.") || strings.HasSuffix(name, "/..") ||
		strings.Contains(name, "/./") || strings.Contains(name, "/../"):
		// Swift allows this name, but a proxy on the way may resolve the path
		// and reach another object or container.
		return fmt.Errorf("object name %q has a path element \".\" or \"..\"", name)
	}
	return nil
}

// CheckContainerName says whether name can name a container. An empty name
// would address the account. A name with a slash would address an object.
func CheckContainerName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("container name is empty")
	case strings.Contains(name, "/"):
		return fmt.Errorf("container name %q has a slash", name)
	case len(name) > MaxContainerName:
		return fmt.Errorf("container name of %d bytes: at most %d are allowed", len(name), MaxContainerName)
	case !utf8.ValidString(name) || strings.ContainsRune(name, 0):
		return fmt.Errorf("container name %q is not valid UTF-8", name)
	case name == "." || name == "..":
		return fmt.Errorf("container name %q is a path element", name)
	}
	return nil
}

// MetaKey brings a metadata key into the form in which Metadata holds it:
// canonical as an HTTP header, with dashes instead of underscores
// ("object_size" becomes "Object-Size"). A WSGI server cannot tell dashes and
// underscores apart.
func MetaKey(key string) string {
	const prefix = "X-"
	return http.CanonicalHeaderKey(prefix + strings.ReplaceAll(key, "_", "-"))[len(prefix):]
}

// CheckMeta says whether one metadata item can be sent as a header.
func CheckMeta(key, value string) error {
	switch {
	case key == "":
		return fmt.Errorf("metadata key is empty")
	case len(key) > MaxMetaName:
		return fmt.Errorf("metadata key %q: at most %d bytes are allowed", key, MaxMetaName)
	case len(value) > MaxMetaValue:
		return fmt.Errorf("metadata %s: value of %d bytes, at most %d are allowed", key, len(value), MaxMetaValue)
	case value != strings.TrimSpace(value):
		return fmt.Errorf("metadata %s: value %q begins or ends with a space", key, value)
	}
	for _, c := range []byte(key) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return fmt.Errorf("metadata key %q: only letters, digits, - and _ are allowed", key)
		}
	}
	for _, c := range []byte(value) {
		if c < ' ' || c == 0x7f {
			return fmt.Errorf("metadata %s: value %q has a control character", key, value)
		}
	}
	if !utf8.ValidString(value) {
		return fmt.Errorf("metadata %s: value %q is not valid UTF-8", key, value)
	}
	return nil
}

// CheckGet says whether the arguments of a Get make sense.
func CheckGet(name string, p []byte, o GetOptions) error {
	switch {
	case o.Offset < 0:
		return fmt.Errorf("offset %d is negative", o.Offset)
	case o.Whole && o.Offset != 0:
		return fmt.Errorf("a whole object is read from offset 0, not %d", o.Offset)
	}
	return CheckObjectName(name)
}
