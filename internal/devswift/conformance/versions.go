// SPDX-License-Identifier: MIT

package conformance

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// versionsCases check the three ways in which a container keeps overwritten or
// deleted objects (Swift's middleware versioned_writes).
var versionsCases = map[string]func(*run){
	"VersionsHeaders": func(r *run) {
		r.do(
			s("HEAD {c}", 204).lacks("X-Versions-Location", "X-History-Location", "X-Versions-Enabled"),
			s("POST {c}", 204).with("X-Versions-Location", "{d}").send(""),
			s("HEAD {c}", 204).has("X-Versions-Location", "{d}").lacks("X-History-Location"),
			s("POST {c}", 204).with("X-Container-Meta-A", "1").send(""),
			s("HEAD {c}", 204).has("X-Versions-Location", "{d}"),
			s("POST {c}", 204).with("X-History-Location", "{d}").send(""),
			s("HEAD {c}", 204).has("X-History-Location", "{d}").lacks("X-Versions-Location"),
			s("POST {c}", 400).with("X-History-Location", "{d}").with("X-Versions-Location", "{d}").send("").
				text("Only one of x-versions-location or x-history-location may be specified"),
			s("POST {c}", 412).with("X-Versions-Location", "a/b").send("").text("Container name cannot contain slashes"),
			s("POST {c}", 400).with("X-Versions-Enabled", "true").send(""),
			s("POST {c}", 204).with("X-Remove-Versions-Location", "x").send(""),
			s("HEAD {c}", 204).lacks("X-Versions-Location", "X-History-Location", "X-Versions-Enabled"),
			s("POST {c}", 204).with("X-Versions-Location", "{c}-none").send(""),
			s("PUT {c}/o", 201).send("1"),
			s("PUT {c}/o", 412).send("2"),
			s("GET {c}/o", 200).text("1"),
			s("DELETE {c}/o", 204),
			s("POST {c}", 204).with("X-Remove-History-Location", "x").send(""),
			s("HEAD {c}", 204).lacks("X-Versions-Location", "X-History-Location"),
		)
	},
	"VersionsStack": func(r *run) {
		r.do(
			s("PUT {d}", 201),
			s("POST {c}", 204).with("X-Versions-Location", "{d}").send(""),
			s("PUT {c}/o", 201).send("1").with("X-Object-Meta-A", "first"),
			s("PUT {c}/o", 201).send("22"),
			s("PUT {c}/o", 201).send("333"),
			s("HEAD {d}", 204).soon().has("X-Container-Object-Count", "2").has("X-Container-Bytes-Used", "3"),
			s("DELETE {c}/o", 204),
			s("GET {c}/o", 200).text("22"),
			s("DELETE {c}/o", 204),
			s("GET {c}/o", 200).text("1").has("X-Object-Meta-A", "first"),
			s("DELETE {c}/o", 204),
			s("GET {c}/o", 404),
			s("DELETE {c}/o", 404),
			s("POST {c}", 204).with("X-Remove-Versions-Location", "x").send(""),
		)
	},
	"VersionsHistory": func(r *run) {
		r.do(
			s("PUT {d}", 201),
			s("POST {c}", 204).with("X-History-Location", "{d}").send(""),
			s("PUT {c}/o", 201).send("1"),
			s("PUT {c}/o", 201).send("22"),
			s("DELETE {c}/o", 204),
			s("GET {c}/o", 404),
			s("HEAD {d}", 204).soon().has("X-Container-Object-Count", "3").has("X-Container-Bytes-Used", "3"),
			s("DELETE {c}/o", 404),
			s("HEAD {d}", 204).soon().has("X-Container-Object-Count", "4").has("X-Container-Bytes-Used", "3"),
			// In stack mode a DELETE takes the mark of a deletion back first.
			s("POST {c}", 204).with("X-Versions-Location", "{d}").send(""),
			s("PUT {c}/o", 201).send("333"),
			s("DELETE {c}/o", 204),
			s("GET {c}/o", 404),
			s("POST {c}", 204).with("X-Remove-Versions-Location", "x").send(""),
		)
	},
	"VersionsEnabled": func(r *run) {
		r.do(
			s("PUT {c}/before", 201).send("0"),
			s("POST {c}", 204).with("X-Versions-Enabled", "true").send(""),
			s("HEAD {c}", 204).has("X-Versions-Enabled", "True"),
			s("PUT {c}/o", 201).send("1").has("X-Object-Version-Id", timestamp),
			s("PUT {c}/o", 201).send("22").has("X-Object-Version-Id", timestamp),
			s("DELETE {c}/before", 204).has("X-Object-Version-Id", timestamp),
			s("GET {c}/before", 404),
			s("GET {c}/o", 200).text("22"),
			s("GET {c}", 200).soon().text("o\n"),
			s("HEAD {c}", 204).soon().has("X-Container-Object-Count", "1").has("X-Container-Bytes-Used", "4"),
			s("DELETE {c}", 409).text("Delete all versions before deleting container."),
		)
		type version struct {
			Name   string `json:"name"`
			ID     string `json:"version_id"`
			Latest bool   `json:"is_latest"`
			Bytes  int64
			Type   string `json:"content_type"`
		}
		list := func(query string) []version {
			got := r.send(s("GET {c}?versions&format=json"+query, 200))
			var all []version
			if err := json.Unmarshal([]byte(got.body), &all); err != nil || got.status != http.StatusOK {
				r.Fatalf("listing of versions: status %d, %v: %s", got.status, err, got.body)
			}
			return all
		}
		all := list("")
		want := []version{
			{"before", "", true, 0, "application/x-deleted;swift_versions_deleted=1"}, {"before", "", false, 1, ""},
			{"o", "", true, 2, ""}, {"o", "", false, 1, ""},
		}
		if len(all) != len(want) {
			r.fault("GET {c}?versions", fmt.Sprintf("%d versions, want %d: %v", len(all), len(want), all))
			return
		}
		for i, w := range want {
			g := all[i]
			if g.Name != w.Name || g.Latest != w.Latest || g.Bytes != w.Bytes || w.Type != "" && g.Type != w.Type || !strings.Contains(g.ID, ".") {
				r.Errorf("version %d is %v, want %v", i, g, w)
			}
		}
		if got := list("&marker=" + all[0].Name + "&version_marker=" + all[0].ID); len(got) != 3 || got[0] != all[1] {
			r.Errorf("after the first: %v", got)
		}
		if got := list("&marker=before"); len(got) != 2 {
			r.Errorf("after the first object: %v", got)
		}
		if got := list("&limit=2"); len(got) != 2 {
			r.Errorf("two versions: %v", got)
		}
		for _, v := range all {
			r.do(s("DELETE {c}/"+v.Name+"?version-id="+v.ID, 204).has("X-Object-Version-Id", v.ID))
		}
		r.do(
			s("GET {c}/o", 404),
			s("DELETE {c}", 204).soon(),
			s("PUT {c}", 201),
			s("DELETE {c}/o?version-id=1234567890.12345", 400).text("version-aware operations require that the container is versioned"),
		)
	},
}
