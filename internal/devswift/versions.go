// SPDX-License-Identifier: MIT

package devswift

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// The headers of a container that make Swift keep older versions of its
// objects, as keys of its metadata.
const (
	stackHeader   = "X-Versions-Location"
	historyHeader = "X-History-Location"
	enabledHeader = "X-Versions-Enabled"
)

// deletionType is the content type of the mark of a deletion.
const deletionType = "application/x-deleted;swift_versions_deleted=1"

// reserved is the beginning of names that no client can use: the names of the
// containers with the older versions of X-Versions-Enabled, and of the objects
// in them.
const reserved = "\x00"

func versionsContainer(name string) string { return reserved + "versions" + reserved + name }

// refusal is a status and the text of its body.
type refusal struct {
	status int
	text   string
}

// versionsChanges adds to changes the settings for older versions in a PUT or
// POST of a container. before is the container's metadata.
func (c *call) versionsChanges(changes map[string]string) *refusal {
	h := c.r.Header
	stack, history := h.Get(stackHeader), h.Get(historyHeader)
	switch {
	case stack != "" && history != "":
		return &refusal{http.StatusBadRequest, "Only one of x-versions-location or x-history-location may be specified"}
	case strings.Contains(stack+history, "/"):
		return &refusal{http.StatusPreconditionFailed, "Container name cannot contain slashes"}
	case stack != "" || history != "":
		changes[stackHeader], changes[historyHeader] = stack, history
	case h.Get("X-Remove-Versions-Location") != "" || h.Get("X-Remove-History-Location") != "" || h[stackHeader] != nil || h[historyHeader] != nil:
		changes[stackHeader], changes[historyHeader] = "", ""
	}
	switch strings.ToLower(h.Get(enabledHeader)) {
	case "":
	case "true", "1", "yes", "on", "t", "y":
		changes[enabledHeader] = "True"
	default:
		changes[enabledHeader] = "False"
	}
	return nil
}

// changeVersions is versionsChanges, but if the change is refused, it answers.
func (c *call) changeVersions(a *account, changes map[string]string) bool {
	no := c.versionsChanges(changes)
	if no == nil && changes[enabledHeader] != "" {
		if t := a.container(c.containerName); t != nil {
			if archive, _, _ := t.versioning(); archive != "" {
				no = &refusal{http.StatusBadRequest, "Cannot enable object versioning on a container that is already using the legacy versioned writes feature."}
			}
		}
	}
	if no != nil {
		c.answerText(no.status, typePlain, no.text)
		return false
	}
	if changes[enabledHeader] == "True" {
		c.hidden(a, c.containerName, true)
	}
	return true
}

// versioning returns how a container keeps older versions.
func (t *container) versioning() (archive string, stack, enabled bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if archive = t.meta[stackHeader]; archive != "" {
		return archive, true, false
	}
	return t.meta[historyHeader], false, t.meta[enabledHeader] == "True"
}

// hidden returns the container with the older versions of the objects of name.
// If there is none, it makes one if make is set, and otherwise returns nil.
func (c *call) hidden(a *account, name string, make bool) *container {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.containers[versionsContainer(name)]
	if t == nil && make {
		t = newContainer(versionsContainer(name), c.ts)
		if err := c.s.disk.saveContainer(a, t); err != nil {
			c.s.log.Error("devswift: versions container", "container", name, "err", err)
			return nil
		}
		a.containers[t.name] = t
	}
	return t
}

// versionName returns the name of a version in a hidden container. The newest
// version comes first.
func versionName(name string, ts timestamp) string {
	return reserved + name + reserved + fmt.Sprintf("%016x", ^uint64(ts))
}

// archivePrefix returns the beginning of the names of an object's versions in
// the container of X-Versions-Location or X-History-Location. The oldest
// version comes first.
func archivePrefix(name string) string { return fmt.Sprintf("%03x%s/", len(name), name) }

// copyTo puts a copy of o into t, under another name and with another
// timestamp.
func (c *call) copyTo(a *account, t *container, o *object, name string, ts timestamp) error {
	r, err := o.blob.open()
	if err != nil {
		return err
	}
	defer r.close()
	copied := &object{name: name, ts: ts, metaTS: ts, contentType: o.contentType, headers: maps.Clone(o.headers), deleteAt: o.deleteAt}
	up, err := c.s.disk.receive(a, t, copied, r.section(byteRange{0, o.blob.size}), o.blob.size)
	if err != nil {
		return err
	}
	defer up.discard()
	return c.commit(t, copied, up)
}

// mark puts the mark of a deletion into t.
func (c *call) mark(a *account, t *container, name string, ts timestamp) error {
	o := &object{name: name, ts: ts, metaTS: ts, contentType: deletionType, headers: map[string]string{}}
	up, err := c.s.disk.receive(a, t, o, strings.NewReader(""), 0)
	if err != nil {
		return err
	}
	defer up.discard()
	return c.commit(t, o, up)
}

// kept returns the objects of t whose names begin with prefix, in order.
func (t *container) kept(prefix string, now timestamp) []*object {
	names := t.sorted(now)
	t.mu.RLock()
	defer t.mu.RUnlock()
	var all []*object
	for i, _ := slices.BinarySearch(names, prefix); i < len(names) && strings.HasPrefix(names[i], prefix); i++ {
		if sl := t.slots[names[i]]; sl != nil && sl.object != nil {
			all = append(all, sl.object)
		}
	}
	return all
}

// current returns an object of t that can be read, or nil.
func (t *container) current(name string, now timestamp) *object {
	if o, _ := t.get(name); o != nil && !o.expired(now.time()) {
		return o
	}
	return nil
}

// keepCurrent is called before the object of that name is replaced or deleted.
// If the container keeps older versions, keepCurrent keeps the object as one. A
// status other than 0 refuses the request.
func (c *call) keepCurrent(a *account, t *container, name string) (int, error) {
	archive, _, enabled := t.versioning()
	o := t.current(name, c.ts)
	switch {
	case o == nil || archive == "" && !enabled:
		return 0, nil
	case enabled:
		return 0, c.copyTo(a, c.hidden(a, t.name, true), o, versionName(name, o.ts), o.ts)
	}
	into := a.container(archive)
	if into == nil {
		return http.StatusPreconditionFailed, nil
	}
	return 0, c.copyTo(a, into, o, archivePrefix(name)+o.metaTS.String(), c.s.now()+c.skew)
}

// deleteVersioned answers a DELETE in a container that may keep older versions.
func (c *call) deleteVersioned(a *account, containerName, objectName string) (int, error) {
	t := a.container(containerName)
	if t == nil {
		return c.deleteObject(a, containerName, objectName)
	}
	archive, stack, enabled := t.versioning()
	into := a.container(archive)
	switch {
	case stack && into != nil:
		return c.pop(a, t, into, objectName)
	case archive != "" && !stack && into == nil:
		if t.current(objectName, c.ts) != nil {
			return http.StatusPreconditionFailed, nil
		}
	case archive != "" && !stack || enabled:
		if status, err := c.keepCurrent(a, t, objectName); status != 0 || err != nil {
			return status, err
		}
		ts := c.s.now() + c.skew
		name := archivePrefix(objectName) + ts.String()
		if enabled {
			into, name = c.hidden(a, t.name, true), versionName(objectName, ts)
			c.header("X-Object-Version-Id", ts.String())
		}
		if err := c.mark(a, into, name, ts); err != nil {
			return 0, err
		}
		c.ts = c.s.now() + c.skew
	}
	return c.deleteObject(a, containerName, objectName)
}

// pop deletes an object in stack mode. Its latest version takes its place.
func (c *call) pop(a *account, t, archive *container, name string) (int, error) {
	versions := archive.kept(archivePrefix(name), c.ts)
	slices.Reverse(versions)
	if len(versions) == 0 {
		return c.deleteObject(a, t.name, name)
	}
	latest := versions[0]
	switch {
	case latest.contentType != deletionType:
		if err := c.copyTo(a, t, latest, name, c.s.now()+c.skew); err != nil {
			return 0, err
		}
	case t.current(name, c.ts) != nil:
		return c.deleteObject(a, t.name, name) // the object was deleted before, and is again
	case len(versions) > 1 && versions[1].contentType != deletionType:
		if err := c.restore(a, t, archive, name, versions[1]); err != nil {
			return 0, err
		}
	}
	c.ts = c.s.now() + c.skew
	return c.deleteObject(a, archive.name, latest.name)
}

// restore moves a version back to where it came from.
func (c *call) restore(a *account, t, archive *container, name string, v *object) error {
	if err := c.copyTo(a, t, v, name, c.s.now()+c.skew); err != nil {
		return err
	}
	c.ts = c.s.now() + c.skew
	_, err := c.deleteObject(a, archive.name, v.name)
	return err
}

// deleteVersion answers DELETE with ?version-id.
func (c *call) deleteVersion(a *account, id string) {
	t, hidden := a.container(c.containerName), c.hidden(a, c.containerName, false)
	if t == nil {
		c.answer(http.StatusNotFound)
		return
	}
	if hidden == nil {
		c.answerText(http.StatusBadRequest, typePlain, "version-aware operations require that the container is versioned")
		return
	}
	from, name := t.name, c.objectName
	if o := t.current(name, c.ts); o == nil || o.ts.String() != id {
		ts, err := parseTimestamp(id)
		if err != nil {
			c.answer(http.StatusNotFound)
			return
		}
		from, name = hidden.name, versionName(name, ts)
	}
	status, err := c.deleteObject(a, from, name)
	if err != nil {
		c.broken(err)
		return
	}
	c.header("X-Object-Version-Id", id)
	c.answer(status)
}

// version is a line of a listing of versions.
type version struct {
	name, id string
	o        *object
	latest   bool
}

// listVersions answers GET with ?versions: all versions, the newest of each
// object first.
func (c *call) listVersions(a *account, t *container, l listing) {
	hidden := c.hidden(a, t.name, false)
	var all []version
	for _, o := range t.kept(l.prefix, c.ts) {
		id := "null"
		if hidden != nil {
			id = o.ts.String()
		}
		all = append(all, version{o.name, id, o, true})
	}
	if hidden != nil {
		for _, o := range hidden.kept(reserved+l.prefix, c.ts) {
			name := o.name[1:strings.LastIndex(o.name, reserved)]
			all = append(all, version{name, o.ts.String(), o, false})
		}
	}
	slices.SortStableFunc(all, func(x, y version) int {
		if x.name != y.name {
			return strings.Compare(x.name, y.name)
		}
		return strings.Compare(y.id, x.id)
	})
	out := rows{of: t.name}
	for i, v := range all {
		v.latest = i == 0 || all[i-1].name != v.name
		from := c.query.Get("version_marker")
		if v.name < l.marker || v.name == l.marker && l.marker != "" && (from == "" || v.id >= from) || len(out.rows) >= l.limit {
			continue
		}
		contentType := v.o.contentType
		out.rows = append(out.rows, row{entry: entry{name: v.name}, fields: []field{
			{"bytes", strconv.FormatInt(v.o.blob.size, 10), true}, {"hash", v.o.etag, false}, {"name", v.name, false},
			{"content_type", contentType, false}, {"last_modified", v.o.metaTS.isoDate(), false},
			{"is_latest", strconv.FormatBool(v.latest), true}, {"version_id", v.id, false},
		}})
	}
	c.answerListing("application/json", out)
}
