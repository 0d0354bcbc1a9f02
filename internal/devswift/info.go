// SPDX-License-Identifier: MIT

package devswift

import (
	"encoding/json"
	"net/http"
)

// infoSections returns the content of /info: the real Swift's sections for
// everything that this Server does, with the same limits.
func infoSections(policy string) map[string]map[string]any {
	return map[string]map[string]any{
		"swift": {
			"version": "2.30.1", "strict_cors_mode": true, "account_autocreate": true, "allow_account_management": true,
			"policies":                  []map[string]any{{"name": policy, "aliases": policy, "default": true}},
			"max_file_size":             maxFileSize,
			"max_meta_name_length":      maxMetaName,
			"max_meta_value_length":     maxMetaValue,
			"max_meta_count":            maxMetaCount,
			"max_meta_overall_size":     maxMetaSize,
			"max_header_size":           8192,
			"max_object_name_length":    maxObjectName,
			"max_container_name_length": maxContainerName,
			"max_account_name_length":   256,
			"container_listing_limit":   listingLimit,
			"account_listing_limit":     listingLimit,
			"extra_header_count":        0,
		},
		"tempauth": {"account_acls": true},
		"tempurl": {
			"methods":                 tempURLMethods,
			"incoming_remove_headers": []string{"x-timestamp"},
			"incoming_allow_headers":  []string{},
			"outgoing_remove_headers": []string{"x-object-meta-*"},
			"outgoing_allow_headers":  []string{"x-object-meta-public-*"},
			"allowed_digests":         []string{"sha1", "sha256", "sha512"},
			"deprecated_digests":      []string{"sha1"},
		},
		"versioned_writes":  {"allowed_flags": []string{"x-versions-location", "x-history-location"}},
		"object_versioning": {},
		"bulk_delete":       {"max_deletes_per_request": maxBulkDeletes, "max_failed_deletes": maxFailedDeletes},
	}
}

func (c *call) info() {
	if c.method != http.MethodGet && c.method != http.MethodHead {
		c.notAllowed("GET, OPTIONS, HEAD")
		return
	}
	sections := infoSections(c.s.policy)
	for section := range c.s.without {
		delete(sections, section)
	}
	body, err := json.Marshal(sections)
	if err != nil {
		c.broken(err)
		return
	}
	c.answerHead(http.StatusOK, "application/json; charset=UTF-8", string(body))
}
