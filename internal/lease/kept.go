// SPDX-License-Identifier: MIT

package lease

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// keyLease begins the keys of what stands in a lease's own container.
const keyLease = "Swiftnbd-Lease-"

// Kept has the items that a holder keeps in the lease (Options.Extra). For each
// key, which begins with Swiftnbd-Lease- and ends with a letter, it has the
// values of the last renewals, in no order. A renewal may arrive late, so its
// values do not replace those of the one before. The reader has to find out
// from the values which is the newest. Values of the lease before may be among
// them.
type Kept map[string][]string

// slotOf is what slotKey appends.
var slotOf = regexp.MustCompile("-[0-9]$")

// slotKey returns the key of the value of one renewal.
func slotKey(key string, slot int) string {
	if slot %= slots; slot > 0 {
		return fmt.Sprintf("%s-%d", key, slot)
	}
	return key
}

// keptIn returns what is kept in a lease whose container has these items.
func keptIn(items map[string]string) Kept {
	var k Kept
	for item, value := range items {
		if !strings.HasPrefix(item, keyLease) || strings.HasPrefix(item, keyTry) || value == "" {
			continue
		}
		key := slotOf.ReplaceAllString(item, "")
		if key == keyHolder || key == keyUntil || slices.Contains(k[key], value) {
			continue
		}
		if k == nil {
			k = make(Kept)
		}
		k[key] = append(k[key], value)
	}
	return k
}

// items returns the items to keep k in another lease.
func (k Kept) items() map[string]string {
	items := make(map[string]string)
	for key, values := range k {
		for slot, value := range values {
			items[slotKey(key, slot)] = value
		}
	}
	return items
}

// kept returns the kept items for the next write of the lease. These are the
// holder's items and, in a new lease, under them the items of the lease before.
// The caller has set the slot of this write.
func (h *Held) kept(fresh bool) map[string]string {
	if h.o.Extra == nil && len(h.former) == 0 {
		return nil
	}
	items := make(map[string]string)
	own := h.own()
	if fresh && len(own) == 0 {
		items = h.former.items()
	}
	for key, value := range own {
		items[slotKey(key, h.slot)] = value
	}
	return items
}
