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

// Account is plain HTTP to a Swift account. Tests check swiftnbd with it, and
// make containers that swiftnbd has never seen. It is written from Swift's API
// and does not use swiftnbd's client.
type Account struct {
	StorageURL string
	Token      string

	ProjectID, UserID string // of Keystone's login
}

var (
	accountMu sync.Mutex
	accounts  = map[string]*Account{}
)

// Account logs in with v1 authentication, once for all tests of a user.
func (c *Cloud) Account(t testing.TB) *Account {
	t.Helper()
	accountMu.Lock()
	defer accountMu.Unlock()
	// An embedded Swift may have the port of an earlier one that has ended. It
	// does not know the tokens of that one.
	if a := accounts[c.User+" "+c.AuthURL]; a != nil && !a.refused(t) {
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
	accounts[c.User+" "+c.AuthURL] = a
	return a
}

// refused says whether Swift refuses the token.
func (a *Account) refused(t testing.TB) bool {
	t.Helper()
	req, err := http.NewRequest("HEAD", a.StorageURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", a.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return true // for example on a connection to the earlier one
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusUnauthorized
}

// Forget makes the next Account log in again, as after a restart of an embedded
// Swift, which forgets its tokens.
func Forget(c *Cloud) {
	accountMu.Lock()
	defer accountMu.Unlock()
	delete(accounts, c.User+" "+c.AuthURL)
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
			Project, User struct{ ID string }
			Catalog       []struct {
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
				return &Account{StorageURL: e.URL, Token: resp.Header.Get("X-Subject-Token"),
					ProjectID: answer.Token.Project.ID, UserID: answer.Token.User.ID}
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

// Send makes a request with a body of size bytes. It reads the body when Swift
// is ready for it (100 Continue). It returns the status, or 0 if no answer
// came.
func (a *Account) Send(method, path string, size int64, body io.Reader) int {
	req, err := http.NewRequest(method, a.StorageURL+path, body)
	if err != nil {
		panic(err)
	}
	req.ContentLength = size
	req.Header.Set("X-Auth-Token", a.Token)
	req.Header.Set("Expect", "100-continue")
	transport := &http.Transport{ExpectContinueTimeout: time.Minute}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

func (a *Account) must(t testing.TB, method, path string, header map[string]string, body []byte) (http.Header, []byte) {
	t.Helper()
	status, h, data := a.Do(t, method, path, header, body)
	if status/100 != 2 {
		t.Fatalf("%s %s: status %d\n%s", method, path, status, data)
	}
	return h, data
}

// MetaPrefix is the beginning of the container's headers that swiftnbd writes.
const MetaPrefix = "X-Container-Meta-Swiftnbd-"

// Setup makes a container exactly as swiftnbd 0.11's "ctl setup" left it: the
// container, then the metadata with 0.11's underscore, which Swift makes a
// dash. The container goes when the test ends. With -format 2 it makes a disk of
// the same size in version 2 of the format.
func (a *Account) Setup(t testing.TB, container string, objects, objectSize int64) {
	t.Helper()
	if Format() == 2 {
		a.SetupLog(t, container, objects*objectSize)
		return
	}
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
		// A Swift of the test's own may have ended already.
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

// Holder returns the holder in 0.11's mark, or "" if there is no mark.
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

// Remove deletes a container and all objects in it. It is no error if there is
// no such container.
func (a *Account) Remove(t testing.TB, container string) {
	t.Helper()
	path := "/" + url.PathEscape(container)
	if status, _, _ := a.Do(t, "HEAD", path, nil, nil); status == http.StatusNotFound {
		return
	}
	// A bulk delete has one name on each line, and at most 10,000 names.
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

// Read011 reads a whole volume as swiftnbd 0.11 did. Object size and number of
// objects come from the metadata. Each object has its decimal number as name. A
// missing object is zeroes. An object of another size is an error. A disk of
// version 2 is read as docs/FORMAT-V2.md describes it.
func (a *Account) Read011(t testing.TB, container string) []byte {
	t.Helper()
	meta := a.Meta(t, container)
	if meta["version"] == "2" {
		return a.readLog(t, container)
	}
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

// Write011 writes to a volume as a session of swiftnbd 0.11 did. It leaves its
// mark in Client, writes, and moves the mark to Last. This makes the notes of
// other programs void. chunks maps the number of an object to its bytes. On a
// disk of version 2, which was never opened, it begins the log with them.
func (a *Account) Write011(t testing.TB, container string, chunks map[int][]byte) {
	t.Helper()
	if a.Meta(t, container)["version"] == "2" {
		a.writeLog(t, container, chunks)
		return
	}
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
