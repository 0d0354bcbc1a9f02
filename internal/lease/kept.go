// SPDX-License-Identifier: MIT

package lease

import (
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"swiftnbd/internal/volume"
)

// keyLease begins the keys of what stands in a lease's own container.
const keyLease = "Swiftnbd-Lease-"

// keyDisk, in a lease's container that keeps something, is the identity of the volume
// of which that is true. A lease of an earlier volume of the same name may be left.
const keyDisk = "Swiftnbd-Lease-Disk"

// Kept has the items that a holder keeps in the lease (Options.Extra). For each
// key, which begins with Swiftnbd-Lease- and ends with a letter, it has the
// values of the last renewals, in no order. A renewal may arrive late, so its
// values do not replace those of the one before. The reader has to find out
// from the values which is the newest. Values of leases before may be among
// them. Where there are more than keptSlots, those that come last in the order of their
// bytes stay.
type Kept map[string][]string

// keptSlots is how many values a key may have. Mostly it has as many as the end; the
// others are for renewals after those whose answers were lost.
const keptSlots = 10

// slotOf is what slotKey appends.
var slotOf = regexp.MustCompile("-[0-9]$")

// slotKey returns the key of the value of one renewal.
func slotKey(key string, slot int) string {
	if slot > 0 {
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
		if key == keyHolder || key == keyUntil || key == keyDisk || key == keyStray || slices.Contains(k[key], value) {
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
		values = slices.Sorted(slices.Values(values))
		for slot, value := range values[max(0, len(values)-keptSlots):] {
			items[slotKey(key, slot)] = value
		}
	}
	return items
}

// with returns what k and other have.
func (k Kept) with(other Kept) Kept {
	all := maps.Clone(k)
	for key, values := range other {
		for _, value := range values {
			if !slices.Contains(all[key], value) {
				if all == nil {
					all = make(Kept)
				}
				all[key] = append(slices.Clone(all[key]), value)
			}
		}
	}
	return all
}

// has says whether k has all that other has.
func (k Kept) has(other Kept) bool {
	for key, values := range other {
		for _, value := range values {
			if !slices.Contains(k[key], value) {
				return false
			}
		}
	}
	return true
}

// identity returns what a lease says of the volume that meta describes; empty: of its
// version nothing is kept.
func identity(meta volume.Meta) string {
	if meta.UUID == [16]byte{} {
		return ""
	}
	return hex.EncodeToString(meta.UUID[:])
}

// keptBy returns what r keeps of the volume, if r says that it is this one.
func (o *Options) keptBy(r record) Kept {
	if r.disk == "" || r.disk != o.disk {
		return nil
	}
	return r.kept
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
	maps.Copy(items, inSlot(own, h.values.now))
	return items
}

// inSlot returns the items under the keys of a renewal.
func inSlot(items map[string]string, slot int) map[string]string {
	in := make(map[string]string)
	for key, value := range items {
		in[slotKey(key, slot)] = value
	}
	return in
}
