// SPDX-License-Identifier: MIT

package devswift

import (
	"slices"
	"sync"
	"time"
)

// account is one account (AUTH_…).
type account struct {
	name string

	mu         sync.RWMutex
	created    timestamp
	meta       map[string]string // X-Account-Meta-*, canonical keys
	containers map[string]*container
}

func newAccount(name string, ts timestamp) *account {
	return &account{name: name, created: ts, meta: map[string]string{}, containers: map[string]*container{}}
}

// container returns the container of that name, or nil.
func (a *account) container(name string) *container {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.containers[name]
}

// container holds objects. The slot of a deleted object stays as its tombstone.
// It has the time of the deletion. An older PUT has no effect then.
//
// names is sorted and holds the names of all slots except those in fresh. A
// listing sorts fresh into names. A PUT therefore costs only a map access, and
// a listing of n objects does not sort n names each time.
type container struct {
	name string

	mu      sync.RWMutex
	created timestamp
	changed timestamp         // by PUT or POST of the container
	meta    map[string]string // X-Container-Meta-*, X-Container-Read, X-Container-Write
	slots   map[string]*slot
	names   []string
	fresh   []string
	count   int64
	bytes   int64
	gone    bool // deleted; a request that still holds it must look it up again
}

type slot struct {
	object *object   // nil for a tombstone
	ts     timestamp // of the PUT or DELETE that made it so
}

// object is immutable. A change replaces it by another one.
type object struct {
	name        string
	ts          timestamp // of the data
	metaTS      timestamp // of the last POST, or ts
	etag        string
	contentType string
	headers     map[string]string // canonical keys
	deleteAt    int64             // unix seconds; 0 means never
	blob        blob
}

// expired says whether X-Delete-At has passed.
func (o *object) expired(now time.Time) bool { return o.deleteAt != 0 && o.deleteAt <= now.Unix() }

func newContainer(name string, ts timestamp) *container {
	return &container{name: name, created: ts, changed: ts, meta: map[string]string{}, slots: map[string]*slot{}}
}

// get returns an object, even an expired one, and the time of its last change
// or of its deletion.
func (t *container) get(name string) (*object, timestamp) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if sl := t.slots[name]; sl != nil {
		return sl.object, sl.ts
	}
	return nil, 0
}

// set makes an object visible, or a tombstone if o is nil, unless there is a
// newer change already. It returns the object before, and whether set took
// effect.
func (t *container) set(name string, o *object, ts timestamp) (before *object, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.setLocked(name, o, ts)
}

func (t *container) setLocked(name string, o *object, ts timestamp) (before *object, ok bool) {
	sl := t.slots[name]
	if sl == nil {
		sl = &slot{}
		t.slots[name] = sl
		t.fresh = append(t.fresh, name)
	} else if sl.ts >= ts {
		return sl.object, false
	}
	before = sl.object
	if before != nil {
		t.count--
		t.bytes -= before.blob.size
	}
	if o != nil {
		t.count++
		t.bytes += o.blob.size
	}
	sl.object, sl.ts = o, ts
	return before, true
}

// update replaces an object's metadata, if the object is still the same.
func (t *container) update(old, changed *object) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	sl := t.slots[old.name]
	if sl == nil || sl.object != old {
		return false
	}
	sl.object = changed
	return true
}

// sorted returns the names of all slots in order, tombstones included. The
// slice does not change afterwards.
func (t *container) sorted(now timestamp) []string {
	t.mu.RLock()
	if len(t.fresh) == 0 {
		defer t.mu.RUnlock()
		return t.names
	}
	t.mu.RUnlock()

	t.mu.Lock()
	defer t.mu.Unlock()
	slices.Sort(t.fresh)
	merged := make([]string, 0, len(t.names)+len(t.fresh))
	i, j := 0, 0
	for i < len(t.names) || j < len(t.fresh) {
		var name string
		if j == len(t.fresh) || i < len(t.names) && t.names[i] < t.fresh[j] {
			name = t.names[i]
			i++
		} else {
			name = t.fresh[j]
			j++
		}
		sl := t.slots[name]
		if sl.object == nil && now-sl.ts > timestamp(reclaimAge/time.Second*ticksPerSecond) {
			delete(t.slots, name)
			continue
		}
		merged = append(merged, name)
	}
	t.names, t.fresh = merged, nil
	return merged
}
