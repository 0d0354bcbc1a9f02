// SPDX-License-Identifier: MIT

package conformance

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"net/url"
	"time"
)

// signature describes a TempURL. Its zero value is a GET signed with SHA-256.
type signature struct {
	method, key string
	digest      string // sha1, sha256 or sha512
	base64      bool
	expires     time.Duration // from now
	iso         bool
	prefix      *string
	ipRange     string
}

// query signs an object of {c} and returns the query with the signature.
func (r *run) query(g signature, object string) string {
	digests := map[string]func() hash.Hash{"sha1": sha1.New, "": sha256.New, "sha256": sha256.New, "sha512": sha512.New}
	at := time.Now().Add(g.expires)
	path := "/v1/" + r.account + "/" + r.c + "/" + object
	if g.prefix != nil {
		path = "prefix:/v1/" + r.account + "/" + r.c + "/" + *g.prefix
	}
	method := g.method
	if method == "" {
		method = "GET"
	}
	text := fmt.Sprintf("%s\n%d\n%s", method, at.Unix(), path)
	if g.ipRange != "" {
		text = "ip=" + g.ipRange + "\n" + text
	}
	mac := hmac.New(digests[g.digest], []byte(g.key))
	mac.Write([]byte(text))
	q := url.Values{}
	q.Set("temp_url_sig", hex.EncodeToString(mac.Sum(nil)))
	if g.base64 {
		q.Set("temp_url_sig", g.digest+":"+base64.URLEncoding.EncodeToString(mac.Sum(nil)))
	}
	q.Set("temp_url_expires", fmt.Sprint(at.Unix()))
	if g.iso {
		q.Set("temp_url_expires", at.UTC().Format("2006-01-02T15:04:05Z"))
	}
	if g.prefix != nil {
		q.Set("temp_url_prefix", *g.prefix)
	}
	if g.ipRange != "" {
		q.Set("temp_url_ip_range", g.ipRange)
	}
	return "?" + q.Encode()
}

const tempURLInvalid = "401 Unauthorized: Temp URL invalid\n"

var tempURLCases = map[string]func(*run){
	"TempURLKeys": func(r *run) {
		get := func(key string, status int) *step {
			return s("GET {c}/o"+r.query(signature{key: key, expires: 5 * time.Minute}, "o"), status).anonymous().remembered()
		}
		r.do(
			s("PUT {c}/o", 201).send("hello"),
			get("one", 401).text(tempURLInvalid).has("Www-Authenticate", `Swift realm="unknown"`).has("Content-Type", html),
			s("POST {c}", 204).with("X-Container-Meta-Temp-URL-Key", "one").with("X-Container-Meta-Temp-URL-Key-2", "two"),
			get("one", 200).text("hello"), get("two", 200).text("hello"), get("three", 401),
			// A change of the second key leaves the first.
			s("POST {c}", 204).with("X-Container-Meta-Temp-URL-Key-2", "three"),
			get("one", 200), get("two", 401), get("three", 200),
			s("POST {c}", 204).with("X-Container-Meta-Temp-URL-Key", "").with("X-Remove-Container-Meta-Temp-URL-Key-2", "x"),
			get("one", 401), get("three", 401),
			s("POST @", 204).with("X-Account-Meta-Temp-URL-Key-2", "account"),
			get("account", 200).text("hello"),
			s("POST @", 204).with("X-Account-Meta-Temp-URL-Key-2", ""),
			get("account", 401),
		)
	},
	"TempURLMethods": func(r *run) {
		sign := func(method, object string) string {
			return object + r.query(signature{key: "k", method: method, expires: time.Minute}, object)
		}
		r.do(
			s("POST {c}", 204).with("X-Container-Meta-Temp-URL-Key", "k"),
			s("PUT {c}/"+sign("PUT", "o"), 201).anonymous().send("hello").with("Etag", etag("hello")).has("Etag", etag("hello")),
			s("PUT {c}/"+sign("PUT", "o"), 422).anonymous().send("hello").with("Etag", "wrong"),
			s("GET {c}/"+sign("GET", "o"), 200).anonymous().text("hello").has("Etag", etag("hello")),
			s("GET {c}/"+sign("GET", "o"), 206).anonymous().with("Range", "bytes=1-2").text("el"),
			s("GET {c}/"+sign("GET", "o"), 412).anonymous().with("If-Match", "x"),
			s("GET {c}/"+sign("GET", "none"), 404).anonymous(),
			s("HEAD {c}/"+sign("HEAD", "o"), 200).anonymous(), s("HEAD {c}/"+sign("GET", "o"), 200).anonymous(),
			s("HEAD {c}/"+sign("PUT", "o"), 200).anonymous(), s("HEAD {c}/"+sign("POST", "o"), 200).anonymous(),
			s("HEAD {c}/"+sign("DELETE", "o"), 401).anonymous().text(""),
			s("GET {c}/"+sign("PUT", "o"), 401).anonymous(), s("GET {c}/"+sign("HEAD", "o"), 401).anonymous(),
			s("PUT {c}/"+sign("GET", "o"), 401).anonymous().send("x"), s("DELETE {c}/"+sign("PUT", "o"), 401).anonymous(),
			s("POST {c}/"+sign("POST", "o"), 202).anonymous().send("").with("X-Object-Meta-A", "1"),
			s("GET {c}/"+sign("GET", "other"), 404).anonymous(),
			s("GET {c}/o"+r.query(signature{key: "k", expires: time.Minute}, "other"), 401).anonymous(),
			s("PUT {c}/"+sign("PUT", "a%20b"), 401).anonymous().send("x"), // the path is signed unquoted
			s("PUT {c}/a%20b"+r.query(signature{key: "k", method: "PUT", expires: time.Minute}, "a b"), 201).anonymous().send("x"),
			s("PUT {c}/"+sign("PUT", "o"), 400).anonymous().send("x").with("X-Object-Manifest", "a/b"),
			// If there is a signature, a token does not count.
			s("GET {c}/"+sign("GET", "o"), 200).with("X-Auth-Token", "wrong"),
			s("GET {c}/o?temp_url_sig=00", 401), s("GET {c}/o?temp_url_expires=4000000000", 401), s("GET {c}?temp_url_sig=00&temp_url_expires=4000000000", 401),
			s("COPY {c}/"+sign("COPY", "o"), 401).anonymous().with("Destination", "{c}/x"),
			s("DELETE {c}/"+sign("DELETE", "o"), 204).anonymous(),
			s("GET {c}/o", 404),
		)
	},
	// A lease's fence relies on this.
	"TempURLFence": func(r *run) {
		sign := func(method, key string, expires time.Duration) string {
			return method + " {c}/o" + r.query(signature{key: key, method: method, expires: expires}, "o")
		}
		const soon = 10 * time.Second
		r.do(
			s("HEAD {c}", 204).has("Date", httpDate), s("POST {c}", 204).has("Date", httpDate),
			s("POST {c}", 204).with("X-Container-Meta-Temp-URL-Key-2", "first"),
			s(sign("PUT", "first", soon), 201).anonymous().send("one").with("Etag", etag("one")),
			s(sign("PUT", "first", -2*time.Second), 401).anonymous().send("late").text(tempURLInvalid),
			s(sign("DELETE", "first", -2*time.Second), 401).anonymous().text(tempURLInvalid),
			s("POST {c}", 204).with("X-Container-Meta-Temp-URL-Key-2", "second"),
			s(sign("PUT", "first", soon), 401).anonymous().send("old").text(tempURLInvalid),
			s(sign("DELETE", "first", soon), 401).anonymous().text(tempURLInvalid),
			s("GET {c}/o", 200).text("one"),
			s(sign("PUT", "second", soon), 201).anonymous().send("two"),
			s(sign("DELETE", "second", soon), 204).anonymous(), s(sign("DELETE", "second", soon), 404).anonymous(),
		)
	},
	"TempURLForms": func(r *run) {
		empty, pre, other := "", "pre/", "other/"
		get := func(g signature, status int) *step {
			g.key = "k"
			if g.expires == 0 {
				g.expires = time.Minute
			}
			return s("GET {c}/pre/o"+r.query(g, "pre/o"), status).anonymous()
		}
		r.do(
			s("POST {c}", 204).with("X-Container-Meta-Temp-URL-Key", "k"),
			s("PUT {c}/pre/o", 201).send("hello"),
			get(signature{digest: "sha1"}, 200), get(signature{digest: "sha256"}, 200), get(signature{digest: "sha512"}, 200),
			get(signature{digest: "sha1", base64: true}, 200), get(signature{digest: "sha256", base64: true}, 200),
			get(signature{digest: "sha512", base64: true}, 200),
			get(signature{iso: true}, 200), get(signature{expires: -5 * time.Second}, 401), get(signature{expires: -5 * time.Second, iso: true}, 401),
			get(signature{prefix: &empty}, 200), get(signature{prefix: &pre}, 200), get(signature{prefix: &other}, 401),
			get(signature{ipRange: "127.0.0.0/8"}, 200), get(signature{ipRange: "10.0.0.1"}, 401),
			s("PUT {c}/pre/n"+r.query(signature{method: "PUT", key: "k", expires: time.Minute, prefix: &pre}, ""), 201).anonymous().send("x"),
			s("GET {c}/pre/o?temp_url_sig=&temp_url_expires=4000000000", 401), s("GET {c}/pre/o?temp_url_sig=zz&temp_url_expires=4000000000", 401),
		)
	},
	"TempURLHeaders": func(r *run) {
		get := func(method, object, more string) *step {
			return s(method+" {c}/"+object+r.query(signature{key: "k", expires: time.Minute}, object)+more, 200).anonymous()
		}
		r.do(
			s("POST {c}", 204).with("X-Container-Meta-Temp-URL-Key", "k"),
			s("PUT {c}/d/o", 201).send("hello").with("X-Object-Meta-A", "1").with("X-Object-Meta-Public-B", "2"),
			get("GET", "d/o", "").has("Content-Disposition", `attachment; filename="o"; filename*=UTF-8''o`).has("Expires", httpDate).
				lacks("X-Object-Meta-A").has("X-Object-Meta-Public-B", "2"),
			get("HEAD", "d/o", "").has("Content-Disposition", `attachment; filename="o"; filename*=UTF-8''o`),
			get("GET", "d/o", "&inline").has("Content-Disposition", "inline"),
			get("GET", "d/o", "&filename=a%20b").has("Content-Disposition", `attachment; filename="a b"; filename*=UTF-8''a%20b`),
			get("GET", "d/o", "&inline&filename=x").has("Content-Disposition", `inline; filename="x"; filename*=UTF-8''x`),
			s("PUT {c}/own", 201).send("x").with("Content-Disposition", "own"),
			get("GET", "own", "").has("Content-Disposition", "own"),
		)
	},
}
