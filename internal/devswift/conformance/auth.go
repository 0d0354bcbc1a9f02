// SPDX-License-Identifier: MIT

package conformance

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
)

var authCases = map[string]func(*run){
	"Login": func(r *run) {
		u, err := url.Parse(r.target.AuthURL)
		if err != nil {
			r.Fatal(err)
		}
		path, account, user := u.Path, "", ""
		account, user, _ = strings.Cut(r.target.User, ":")
		good := func(p *step) *step {
			return p.has("X-Auth-Token", r.token).has("X-Storage-Token", r.token).has("X-Storage-Url", r.storageURL).
				has("X-Auth-Token-Expires", `~^\d+$`).has("Content-Type", html).text("")
		}
		r.do(
			good(s("GET "+path, 200).anonymous().with("X-Auth-User", r.target.User).with("X-Auth-Key", r.target.Key)),
			good(s("GET "+path, 200).anonymous().with("X-Storage-User", r.target.User).with("X-Storage-Pass", r.target.Key)),
			good(s("GET "+path+"/", 200).anonymous().with("X-Auth-User", r.target.User).with("X-Auth-Key", r.target.Key)),
			good(s("GET /auth/v1/"+account+"/auth", 200).anonymous().with("X-Storage-User", user).with("X-Storage-Pass", r.target.Key)),
			s("GET "+path, 401).anonymous().text(unauthorized).has("Www-Authenticate", `Swift realm="unknown"`),
			s("GET "+path, 401).anonymous().with("X-Auth-User", r.target.User).with("X-Auth-Key", "wrong").
				text(unauthorized).has("Www-Authenticate", `Swift realm="unknown"`).lacks("X-Auth-Token", "X-Storage-Url"),
			s("GET "+path, 401).anonymous().with("X-Auth-User", account+":nobody").with("X-Auth-Key", r.target.Key).
				has("Www-Authenticate", `Swift realm="`+account+`"`),
			s("GET "+path, 401).anonymous().with("X-Auth-User", "no-colon").with("X-Auth-Key", "x"),
			s("POST "+path, 405).anonymous().with("X-Auth-User", r.target.User).with("X-Auth-Key", r.target.Key),
			s("HEAD "+path, 405).anonymous().with("X-Auth-User", r.target.User).with("X-Auth-Key", r.target.Key),
			s("GET /auth/v1", 400).anonymous(),
			s("GET /auth/v2.0", 400).anonymous(),
		)
	},
	"Token": func(r *run) {
		realm := `Swift realm="{a}"`
		r.do(
			s("GET {c}", 401).anonymous().text(unauthorized).has("Www-Authenticate", realm).has("Content-Type", html),
			s("HEAD {c}/o", 401).anonymous().text("").has("Www-Authenticate", realm),
			s("PUT {c}/o", 401).anonymous().with("X-Auth-Token", "AUTH_tkwrong").send("x").has("Www-Authenticate", realm),
			s("GET {c}/o", 404), // it was not stored
			s("DELETE {c}", 401).anonymous(),
			s("GET @", 401).anonymous(),
			s("GET {c}", 204).anonymous().with("X-Storage-Token", r.token),
			s("GET /v1/AUTH_somebody_else", 403).text(page("Forbidden", "Access was denied to this resource.")),
			s("GET /v1/AUTH_somebody_else/c/o", 403),
			s("PUT @", 403),
			s("DELETE @", 403),
		)
	},
	"Paths": func(r *run) {
		badUTF8 := "Invalid UTF8 or contains NULL"
		r.do(
			s("GET /", 404),
			s("GET /v1", 412).text("Bad URL"),
			s("GET /nothing", 412).text("Bad URL"),
			s("GET /v2/{a}", 400),
			s("GET /v1.0/{a}/{c}", 204),
			s("GET /v1/{a}//o", 412).text("Bad URL"),
			s("PUT {c}/%FF", 412).send("").text(badUTF8),
			s("PUT {c}/%00", 412).send("").text(badUTF8),
			s("PUT %FF", 412).send("").text(badUTF8),
			s("PATCH {c}", 405).has("Allow", "~POST"),
			s("PATCH {c}/o", 405),
			s("PATCH @", 405),
			s("OPTIONS {c}", 200).anonymous().has("Allow", "~PUT"),
		)
	},
	"Info": func(r *run) {
		r.do(
			s("GET /healthcheck", 0).anonymous().check(func(a answer) error {
				if a.status != 200 || a.body != "OK" || a.header.Get("Content-Type") != "text/plain" {
					return fmt.Errorf("%d %q %v", a.status, a.body, a.header)
				}
				return nil
			}),
			s("HEAD /info", 200).anonymous().text(""),
			s("PUT /info", 405).anonymous().send("").has("Allow", "~GET"),
			s("GET /info", 200).anonymous().has("Content-Type", "application/json; charset=UTF-8").check(checkInfo),
		)
	},
	"Account": func(r *run) {
		r.do(
			s("HEAD @", 204).has("X-Account-Container-Count", `~^\d+$`).has("X-Account-Object-Count", `~^\d+$`).
				has("X-Account-Bytes-Used", `~^\d+$`).has("X-Timestamp", timestamp).has("Content-Type", plain),
			s("POST @", 204).with("X-Account-Meta-{c}", "one"),
			s("HEAD @", 204).has("X-Account-Meta-{c}", "one"),
			s("POST @", 204).with("X-Remove-Account-Meta-{c}", "x"),
			s("HEAD @", 204).lacks("X-Account-Meta-"+r.c),
			s("GET @?prefix={c}", 200).soon().text(r.c+"\n").has("Content-Type", plain).has("Accept-Ranges", "bytes"),
			s("GET @?prefix={c}&format=json", 200).soon().
				matches(`^\[\{"name": "`+r.c+`", "count": 0, "bytes": 0, "last_modified": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}"\}\]$`),
			s("GET @?prefix={c}&format=xml", 200).soon().
				matches(`^<\?xml version="1.0" encoding="UTF-8"\?>\n<account name="[^"]+">\n<container><name>`+r.c+`</name><count>0</count><bytes>0</bytes><last_modified>[^<]+</last_modified></container>\n</account>$`),
			s("GET @?prefix={d}", 204).text(""),
			s("GET @?prefix={d}&format=json", 200).text("[]"),
			s("GET @?limit=10001", 412).text("Maximum limit is 10000"),
		)
	},
}

// checkInfo compares the sections of /info that swiftnbd reads with those of
// Swift 2.30.
func checkInfo(a answer) error {
	var info struct {
		Swift struct {
			MaxFileSize           int64 `json:"max_file_size"`
			MaxMetaNameLength     int   `json:"max_meta_name_length"`
			MaxMetaValueLength    int   `json:"max_meta_value_length"`
			MaxMetaCount          int   `json:"max_meta_count"`
			MaxMetaOverallSize    int   `json:"max_meta_overall_size"`
			MaxObjectNameLength   int   `json:"max_object_name_length"`
			ContainerListingLimit int   `json:"container_listing_limit"`
		} `json:"swift"`
		BulkDelete struct {
			MaxDeletesPerRequest int `json:"max_deletes_per_request"`
			MaxFailedDeletes     int `json:"max_failed_deletes"`
		} `json:"bulk_delete"`
		TempURL struct {
			Methods        []string `json:"methods"`
			AllowedDigests []string `json:"allowed_digests"`
		} `json:"tempurl"`
	}
	if err := json.Unmarshal([]byte(a.body), &info); err != nil {
		return err
	}
	got := fmt.Sprintf("%+v", info)
	want := "{Swift:{MaxFileSize:5368709122 MaxMetaNameLength:128 MaxMetaValueLength:256 MaxMetaCount:90 MaxMetaOverallSize:4096 " +
		"MaxObjectNameLength:1024 ContainerListingLimit:10000} BulkDelete:{MaxDeletesPerRequest:10000 MaxFailedDeletes:1000} " +
		"TempURL:{Methods:[GET HEAD PUT POST DELETE] AllowedDigests:[sha1 sha256 sha512]}}"
	if got != want {
		return fmt.Errorf("info %s, want %s", got, want)
	}
	return nil
}
