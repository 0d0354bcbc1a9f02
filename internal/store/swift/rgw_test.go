// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
	swiftstore "swiftnbd/internal/store/swift"
)

// TestFencedRGW has Ceph's gateway, which does not look at the container's key,
// take writes that are signed with the account's, and refuse those that are over.
func TestFencedRGW(t *testing.T) {
	f := newFenced(t, swiftstore.Options{Login: storetest.RGWLogin(t)})
	ctx := t.Context()
	f.rotate("the container's")
	g := f.grant("the container's")
	if err := f.client.CheckFence(ctx, f.name, g); err != nil {
		t.Fatal(err)
	}
	if !f.client.FencedByAccount() {
		t.Error("the gateway is said to look at the container's key")
	}
	f.fence.Set(g)
	data := storetest.Bytes(70_000, 1)
	for _, object := range []string{"o", "disk.part/00000007", "odd é?%&=+ name"} {
		if err := f.writer.Put(ctx, object, data, storetest.Sum(data)); err != nil {
			t.Errorf("put %s: %v", object, err)
		}
		if info, err := f.plain.Head(ctx, object); err != nil || info.ETag != storetest.Sum(data) {
			t.Errorf("head %s: %+v, %v", object, info, err)
		}
		if err := f.writer.Delete(ctx, object); err != nil {
			t.Errorf("delete %s: %v", object, err)
		}
	}
	// The lease is over by the gateway's clock, and not by ours.
	over := g
	over.Server, over.UntilServer = g.Server.Add(-time.Minute), g.Server.Add(-time.Second)
	f.fence.Set(over)
	f.refused("a signature that is over")
	// SeeFence finds the same, and sets nothing.
	if err := f.client.SeeFence(ctx, f.name, g); err != nil || !f.client.FencedByAccount() {
		t.Errorf("see: %v", err)
	}
}

// stubborn is a server with one account, whose answers to signed requests are
// all 403; its account has key, and takes no other.
func stubborn(t *testing.T, info, key string) (*swiftstore.Client, *[]string) {
	var asked []string
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/auth":
			w.Header().Set("X-Storage-Url", "http://"+r.Host+"/swift/v1/AUTH_test")
			w.Header().Set("X-Auth-Token", "t")
			w.WriteHeader(http.StatusNoContent)
		case r.URL.Path == "/swift/info":
			_, _ = w.Write([]byte(info))
		case r.URL.Query().Has("temp_url_sig"):
			asked = append(asked, "signed "+r.Method)
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Path == "/swift/v1/AUTH_test" && r.URL.Query().Has("bulk-delete"):
			asked = append(asked, "bulk")
			_, _ = w.Write([]byte(`{"Number Deleted":1,"Number Not Found":0,"Response Body":"","Response Status":"200 OK","Errors":[]}`))
		case r.URL.Path == "/swift/v1/AUTH_test":
			asked = append(asked, r.Method+" account")
			if key != "" {
				w.Header().Set("X-Account-Meta-Temp-Url-Key", key)
			}
			w.WriteHeader(http.StatusNoContent)
		case r.Method == http.MethodGet:
			_, _ = w.Write([]byte(`[{"name":"b1","hash":"9dd4e461268c8034f5c8564e155c67a6","bytes":1,"last_modified":"2026-11-26T12:55:11.960Z"}]`))
		default:
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	t.Cleanup(web.Close)
	return dial(t, swiftstore.Options{Login: config.Login{AuthURL: web.URL + "/auth", Version: 1, Username: "u", Password: "p"}}), &asked
}

const rgwInfo = `{"bulk_delete":{},"swift":{"version":"16.2.15"},"tempurl":{"methods":["GET","HEAD","PUT","POST","DELETE"]}}`

// TestFenceForbidden has every signature be refused with 403: there is no fence,
// which is no error of another kind. Looking sets no key.
func TestFenceForbidden(t *testing.T) {
	g := store.Grant{Key: "k", Server: time.Now(), Taken: time.Now(), UntilServer: time.Now().Add(time.Hour)}
	c, asked := stubborn(t, rgwInfo, "")
	if err := c.SeeFence(t.Context(), "vol", g); !errors.Is(err, swiftstore.ErrNoFence) || store.Transient(err) {
		t.Errorf("see: %v", err)
	}
	if got := strings.Join(*asked, ", "); got != "signed HEAD, HEAD account" {
		t.Errorf("asked for %s", got)
	}
	if err := c.CheckFence(t.Context(), "vol", g); !errors.Is(err, swiftstore.ErrNoFence) || store.Transient(err) {
		t.Errorf("check, the account takes no key: %v", err)
	}
	c, _ = stubborn(t, rgwInfo, "one")
	if err := c.CheckFence(t.Context(), "vol", g); !errors.Is(err, swiftstore.ErrNoFence) || store.Transient(err) {
		t.Errorf("check, the account's key is refused: %v", err)
	}
	if c.FencedByAccount() {
		t.Error("the account's key is said to fence")
	}
}

// TestRGWForms reads what Ceph's gateway writes in a form of its own: a bulk
// delete without a limit, dates with a Z, and a bare 400 to a name of two letters.
func TestRGWForms(t *testing.T) {
	c, asked := stubborn(t, rgwInfo, "")
	if err := c.Container("vol").BulkDelete(t.Context(), []string{"b1"}); err != nil || strings.Join(*asked, ", ") != "bulk" {
		t.Errorf("bulk delete: %v, asked for %v", err, *asked)
	}
	page, err := c.Container("vol").List(t.Context(), store.ListOptions{})
	if want := time.Date(2026, 11, 26, 12, 55, 11, 960e6, time.UTC); err != nil || len(page) != 1 || !page[0].LastModified.Equal(want) {
		t.Errorf("list: %v, %v", page, err)
	}
	for name, rule := range map[string]bool{"ab": true, "abc": false} {
		_, err := c.Container(name).CreateContainer(t.Context(), nil)
		if err == nil || strings.Contains(err.Error(), "less than three letters") != rule {
			t.Errorf("create %s: %v", name, err)
		}
		_, err = c.Container(name).Metadata(t.Context())
		if err == nil || strings.Contains(err.Error(), "less than three letters") != rule {
			t.Errorf("metadata of %s: %v", name, err)
		}
	}
}
