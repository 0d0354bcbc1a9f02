// SPDX-License-Identifier: MIT

package harness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Account is plain HTTP to a Swift account: what a test checks swiftnbd with,
// and what it makes containers with that swiftnbd has never seen. It is
// written from Swift's API, not with swiftnbd's client.
type Account struct {
	StorageURL string
	Token      string
}

var (
	accountMu sync.Mutex
	accounts  = map[string]*Account{}
)

// Account logs in with v1 authentication, once for all tests.
func (c *Cloud) Account(t testing.TB) *Account {
	t.Helper()
	accountMu.Lock()
	defer accountMu.Unlock()
	if a := accounts[c.AuthURL]; a != nil {
		return a
	}
	req, err := http.NewRequest("GET", c.AuthURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-User", c.User)
	req.Header.Set("X-Auth-Key", c.Key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	a := &Account{StorageURL: resp.Header.Get("X-Storage-Url"), Token: resp.Header.Get("X-Auth-Token")}
	if a.StorageURL == "" || a.Token == "" {
		t.Fatalf("login at %s: %s", c.AuthURL, resp.Status)
	}
	accounts[c.AuthURL] = a
	return a
}

// Forget makes the next Account log in again, as after a restart of an embedded
// Swift, which forgets its tokens.
func Forget(c *Cloud) {
	accountMu.Lock()
	defer accountMu.Unlock()
	delete(accounts, c.AuthURL)
}

// Account logs in with Keystone's user and password.
func (k *Keystone) Account(t testing.TB) *Account {
	t.Helper()
	domain := map[string]string{"name": k.Domain}
	body, err := json.Marshal(map[string]any{"auth": map[string]any{
		"identity": map[string]any{"methods": []string{"password"}, "password": map[string]any{
			"user": map[string]any{"name": k.User, "domain": domain, "password": k.Password}}},
		"scope": map[string]any{"project": map[string]any{"name": k.Project, "domain": domain}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(k.AuthURL+"/auth/tokens", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Token struct {
			Catalog []struct {
				Type      string
				Endpoints []struct{ Interface, URL string }
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatalf("login at %s: %s: %v", k.AuthURL, resp.Status, err)
	}
	for _, service := range answer.Token.Catalog {
		for _, e := range service.Endpoints {
			if service.Type == "object-store" && e.Interface == "public" {
				return &Account{StorageURL: e.URL, Token: resp.Header.Get("X-Subject-Token")}
			}
		}
	}
	t.Fatalf("login at %s: %s, and no object-store in the catalogue", k.AuthURL, resp.Status)
	return nil
}

// Do sends a request for a path below the account and returns the status, the
// headers and the body.
func (a *Account) Do(t testing.TB, method, path string, header map[string]string, body []byte) (int, http.Header, []byte) {
	t.Helper()
	req, err := http.NewRequest(method, a.StorageURL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", a.Token)
	req.Header.Set("X-Newest", "true")
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, data
}

func (a *Account) must(t testing.TB, method, path string, header map[string]string, body []byte) (http.Header, []byte) {
	t.Helper()
	status, h, data := a.Do(t, method, path, header, body)
	if status/100 != 2 {
		t.Fatalf("%s %s: status %d\n%s", method, path, status, data)
	}
	return h, data
}

// MetaPrefix begins the headers of a container that swiftnbd writes.
const MetaPrefix = "X-Container-Meta-Swiftnbd-"

// Setup makes a container exactly as swiftnbd 0.11's "ctl setup" left it: the
// container, then the metadata with 0.11's underscore, which Swift makes a
// dash. The container goes when the test ends.
func (a *Account) Setup(t testing.TB, container string, objects, objectSize int64) {
	t.Helper()
	a.Create(t, container, nil)
	a.must(t, "POST", "/"+url.PathEscape(container), map[string]string{
		"x-container-meta-swiftnbd-version":     "1",
		"x-container-meta-swiftnbd-objects":     strconv.FormatInt(objects, 10),
		"x-container-meta-swiftnbd-object_size": strconv.FormatInt(objectSize, 10),
		"x-container-meta-swiftnbd-client":      "",
		"x-container-meta-swiftnbd-last":        "",
	}, nil)
}

// Create makes a container that goes when the test ends.
func (a *Account) Create(t testing.TB, container string, header map[string]string) {
	t.Helper()
	a.must(t, "PUT", "/"+url.PathEscape(container), header, nil)
	t.Cleanup(func() {
		// A Swift of the test's own may have gone before.
		if c, err := net.Dial("tcp", strings.Split(a.StorageURL, "/")[2]); err == nil {
			c.Close()
			a.Remove(t, container)
		}
	})
}

// Meta returns swiftnbd's metadata of a container, with lower-case keys such
// as "object-size".
func (a *Account) Meta(t testing.TB, container string) map[string]string {
	t.Helper()
	h, _ := a.must(t, "HEAD", "/"+url.PathEscape(container), nil, nil)
	meta := make(map[string]string)
	for k := range h {
		if name, ok := strings.CutPrefix(k, MetaPrefix); ok {
			meta[strings.ToLower(name)] = h.Get(k)
		}
	}
	return meta
}

// SetMeta sets one item of swiftnbd's metadata; "" removes it.
func (a *Account) SetMeta(t testing.TB, container, key, value string) {
	t.Helper()
	a.must(t, "POST", "/"+url.PathEscape(container), map[string]string{MetaPrefix + key: value}, nil)
}

// Holder returns who holds the volume by 0.11's mark, "" when nobody does.
func (a *Account) Holder(t testing.TB, container string) string {
	t.Helper()
	return a.Meta(t, container)["client"]
}

// Put stores an object, whose name may hold slashes.
func (a *Account) Put(t testing.TB, container, object string, data []byte) {
	t.Helper()
	status, _, body := a.Do(t, "PUT", "/"+url.PathEscape(container)+"/"+object,
		map[string]string{"Content-Type": "application/octet-stream"}, data)
	if status != http.StatusCreated {
		t.Fatalf("PUT %s/%s: status %d\n%s", container, object, status, body)
	}
}

// Get returns an object's bytes, and false when there is none.
func (a *Account) Get(t testing.TB, container, object string) ([]byte, bool) {
	t.Helper()
	status, _, data := a.Do(t, "GET", "/"+url.PathEscape(container)+"/"+object, nil, nil)
	switch status {
	case http.StatusOK:
		return data, true
	case http.StatusNotFound:
		return nil, false
	}
	t.Fatalf("GET %s/%s: status %d\n%s", container, object, status, data)
	return nil, false
}

// List returns the names of a container's objects, in order.
func (a *Account) List(t testing.TB, container string) []string {
	t.Helper()
	var names []string
	marker := ""
	for {
		_, data := a.must(t, "GET", "/"+url.PathEscape(container)+"?marker="+url.QueryEscape(marker), nil, nil)
		page := strings.Fields(string(data))
		if len(page) == 0 {
			return names
		}
		names = append(names, page...)
		marker = page[len(page)-1]
	}
}

// Leases returns the containers that are leases of a volume.
func (a *Account) Leases(t testing.TB, volume string) []string {
	t.Helper()
	_, data := a.must(t, "GET", "?prefix="+url.QueryEscape(volume+".swiftnbd-lease."), nil, nil)
	return strings.Fields(string(data))
}

// Remove deletes a container and all in it, whether or not it is there.
func (a *Account) Remove(t testing.TB, container string) {
	t.Helper()
	path := "/" + url.PathEscape(container)
	if status, _, _ := a.Do(t, "HEAD", path, nil, nil); status == http.StatusNotFound {
		return
	}
	// Bulk delete: names a line, 10,000 a request at most.
	for names := range slices.Chunk(a.List(t, container), 5000) {
		var body strings.Builder
		for _, name := range names {
			body.WriteString(path + "/" + url.PathEscape(name) + "\n")
		}
		a.Do(t, "POST", "?bulk-delete", map[string]string{"Content-Type": "text/plain"}, []byte(body.String()))
	}
	if status, _, data := a.Do(t, "DELETE", path, nil, nil); status != http.StatusNoContent {
		t.Errorf("DELETE %s: status %d\n%s", path, status, data)
	}
}

// Read011 reads a whole volume as swiftnbd 0.11 did: object size and number of
// objects from the metadata, each object by its decimal number, a missing one
// as zeroes, one of another size an error.
func (a *Account) Read011(t testing.TB, container string) []byte {
	t.Helper()
	meta := a.Meta(t, container)
	number := func(key string) int {
		n, err := strconv.Atoi(meta[key])
		if err != nil {
			t.Fatalf("container %s: %s: %v", container, key, err)
		}
		return n
	}
	if meta["version"] != "1" {
		t.Fatalf("container %s: version %q", container, meta["version"])
	}
	objects, size := number("objects"), number("object-size")
	disk := make([]byte, objects*size)
	for i := range objects {
		name := fmt.Sprintf("disk.part/%08d", i)
		data, ok := a.Get(t, container, name)
		if !ok {
			continue
		}
		if len(data) != size {
			t.Fatalf("container %s: %s has %d bytes, not %d", container, name, len(data), size)
		}
		copy(disk[i*size:], data)
	}
	return disk
}

// Write011 writes to a volume as a session of swiftnbd 0.11 did: it leaves its
// mark in Client, writes, moves the mark to Last, and so makes void whatever
// others have noted. chunks maps the number of an object to its bytes.
func (a *Account) Write011(t testing.TB, container string, chunks map[int][]byte) {
	t.Helper()
	mark := fmt.Sprintf("127.0.0.1:51120@%d", time.Now().Unix())
	a.SetMeta(t, container, "Client", mark)
	for _, i := range slices.Sorted(maps.Keys(chunks)) {
		a.Put(t, container, fmt.Sprintf("disk.part/%08d", i), chunks[i])
	}
	a.SetMeta(t, container, "Last", mark)
	a.SetMeta(t, container, "Client", "")
}

// Chunks returns the names of the objects that hold the disk's bytes, in order.
func (a *Account) Chunks(t testing.TB, container string) []string {
	t.Helper()
	return slices.DeleteFunc(a.List(t, container), func(name string) bool {
		return !strings.HasPrefix(name, "disk.part/")
	})
}
