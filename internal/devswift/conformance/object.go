// SPDX-License-Identifier: MIT

package conformance

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

var objectCases = map[string]func(*run){
	"ObjectPutGet": func(r *run) {
		r.do(
			s("PUT {c}/o", 201).send("hello").has("Etag", etag("hello")).has("Last-Modified", httpDate).has("Content-Type", html).text("").
				lacks("X-Timestamp"),
			s("GET {c}/o", 200).text("hello").has("Etag", etag("hello")).has("Last-Modified", httpDate).has("X-Timestamp", timestamp).
				has("Content-Type", octets).has("Content-Length", "5").has("Accept-Ranges", "bytes").check(lastModified),
			s("HEAD {c}/o", 200).text("").has("Etag", etag("hello")).has("Content-Length", "5").has("Content-Type", octets).
				has("X-Timestamp", timestamp).has("Accept-Ranges", "bytes"),
			s("PUT {c}/o", 201).send("other"),
			s("GET {c}/o", 200).text("other"),
			s("GET {c}/o", 200).with("X-Newest", "true").text("other"),
			s("HEAD {c}/o", 200).with("X-Newest", "true").has("Etag", etag("other")),
			s("DELETE {c}/o", 204).text("").has("Content-Type", html),
			s("DELETE {c}/o", 404).text(notFound),
			s("GET {c}/o", 404).text(notFound).has("Content-Type", html),
			s("GET {c}/o", 404).with("X-Newest", "true"),
			s("HEAD {c}/o", 404).text(""),
			s("PUT {c}/o", 201).send(""),
			s("GET {c}/o", 200).text("").has("Etag", etag("")).has("Content-Length", "0"),
		)
	},
	"ObjectChunked": func(r *run) {
		long := strings.Repeat("0123456789abcdef", 20000)
		r.do(
			s("PUT {c}/o", 201).sendChunked(long).has("Etag", etag(long)),
			s("GET {c}/o", 200).text(long),
			s("PUT {c}/p", 201).send(long).with("Etag", etag(long)),
			s("GET {c}/p", 206).with("Range", "bytes=300000-300004").text(long[300000:300005]),
		)
	},
	"ObjectEtag": func(r *run) {
		r.do(
			s("PUT {c}/o", 201).send("one").with("Etag", etag("one")),
			s("PUT {c}/o", 201).send("one").with("Etag", `"`+etag("one")+`"`),
			s("PUT {c}/o", 422).send("two").with("Etag", etag("one")).text(page("Unprocessable Entity", "Unable to process the contained instructions")),
			s("PUT {c}/o", 422).send("one").with("Etag", strings.ToUpper(etag("one"))),
			s("GET {c}/o", 200).text("one"),
			s("PUT {c}/n", 422).send("two").with("Etag", "junk"),
			s("GET {c}/n", 404),
		)
	},
	"ObjectNames": func(r *run) {
		long := strings.Repeat("n", 1024)
		r.do(
			s("PUT {c}/"+long, 201).send("x"),
			s("GET {c}/"+long, 200).text("x"),
			s("PUT {c}/"+long+"n", 400).send("x").text("Object name length of 1025 longer than 1024"),
			s("GET {c}/"+long+"n", 404),
			s("DELETE {c}/"+long+"n", 404),
			s("PUT {c}/d/", 201).send("slash"),
			s("GET {c}/d", 404),
			s("GET {c}/d/", 200).text("slash"),
		)
	},
	"ObjectContentType": func(r *run) {
		r.do(
			s("PUT {c}/a.txt", 201).send("x"), s("HEAD {c}/a.txt", 200).has("Content-Type", "text/plain"),
			s("PUT {c}/a.json", 201).send("x"), s("HEAD {c}/a.json", 200).has("Content-Type", "application/json"),
			s("PUT {c}/00000001", 201).send("x"), s("HEAD {c}/00000001", 200).has("Content-Type", octets),
			s("PUT {c}/o", 201).send("x").with("Content-Type", "text/plain; charset=utf-8"),
			s("HEAD {c}/o", 200).has("Content-Type", "text/plain; charset=utf-8"),
			s("PUT {c}/o", 400).send("x").with("Content-Type", "text/plain;swift_bytes=3"),
		)
	},
	"ObjectPostKeepsData": func(r *run) {
		r.do(s("PUT {c}/o", 201).send("data"))
		before := r.send(s("HEAD {c}/o", 0)).header
		r.do(
			s("POST {c}/o", 202).send("").with("X-Object-Meta-A", "1"),
			s("GET {c}/o", 200).text("data").has("Etag", before.Get("Etag")).check(func(a answer) error {
				if now := a.header.Get("X-Timestamp"); now <= before.Get("X-Timestamp") {
					return fmt.Errorf("X-Timestamp %s did not grow over %s", now, before.Get("X-Timestamp"))
				}
				return nil
			}),
		)
	},
}

// lastModified checks that Last-Modified is X-Timestamp, rounded up to a
// second.
func lastModified(a answer) error {
	stamp, err := strconv.ParseFloat(a.header.Get("X-Timestamp"), 64)
	if err != nil {
		return err
	}
	want := time.Unix(int64(math.Ceil(stamp)), 0).UTC().Format(http.TimeFormat)
	if got := a.header.Get("Last-Modified"); got != want {
		return fmt.Errorf("Last-Modified %s at X-Timestamp %s, want %s", got, a.header.Get("X-Timestamp"), want)
	}
	return nil
}

var expiryCases = map[string]func(*run){
	"Expiry": func(r *run) {
		r.do(
			s("PUT {c}/o", 201).send("x").with("X-Delete-After", "2"),
			s("HEAD {c}/o", 200).has("X-Delete-At", `~^\d{10}$`),
			s("PUT {c}/keep", 201).send("x").with("X-Delete-After", "2"),
			s("POST {c}/keep", 202).send("").with("X-Object-Meta-A", "1"),
			s("HEAD {c}/keep", 200).lacks("X-Delete-At"),
			s("PUT {c}/post", 201).send("x"),
			s("POST {c}/post", 202).send("").with("X-Delete-After", "2"),
		)
		r.do(
			s("GET {c}/post", 404).soon(), // the last to expire
			s("GET {c}/o", 404).text(notFound),
			s("HEAD {c}/o", 404),
			s("GET {c}/o", 404).with("X-Newest", "true"),
			s("POST {c}/o", 404).send(""),
			s("GET {c}/keep", 200).text("x"),
			s("GET {c}/post", 404),
			s("GET {c}", 200).soon().text("keep\no\npost\n"),
			s("HEAD {c}", 204).has("X-Container-Object-Count", "3"),
			s("PUT {c}/o", 201).send("again").with("If-None-Match", "*"),
			s("GET {c}/o", 200).text("again").lacks("X-Delete-At"),
			s("DELETE {c}/post", 404),
			s("GET {c}", 200).soon().text("keep\no\n"),
		)
	},
	"ExpiryHeaders": func(r *run) {
		now := fmt.Sprint(time.Now().Unix() - 2)
		r.do(
			s("PUT {c}/o", 400).send("x").with("X-Delete-After", "x").text("Non-integer X-Delete-After"),
			s("PUT {c}/o", 400).send("x").with("X-Delete-After", "1.5").text("Non-integer X-Delete-After"),
			s("PUT {c}/o", 400).send("x").with("X-Delete-After", "-1").text("X-Delete-After in past"),
			s("PUT {c}/o", 400).send("x").with("X-Delete-After", "0").text("X-Delete-After in past"),
			s("PUT {c}/o", 400).send("x").with("X-Delete-At", "x").text("Non-integer X-Delete-At"),
			s("PUT {c}/o", 400).send("x").with("X-Delete-At", now).text("X-Delete-At in past"),
			s("GET {c}/o", 404),
			s("PUT {c}/o", 201).send("x").with("X-Delete-At", "4000000000"),
			s("HEAD {c}/o", 200).has("X-Delete-At", "4000000000"),
			s("POST {c}/o", 400).send("").with("X-Delete-At", now),
			s("HEAD {c}/o", 200).has("X-Delete-At", "4000000000"),
			s("PUT {c}/o", 201).send("x").with("X-Delete-At", "4000000000").with("X-Delete-After", "100"),
			s("HEAD {c}/o", 200).has("X-Delete-At", "~^1"),
			s("POST {c}/o", 202).send("").with("X-Remove-Delete-At", "x"),
			s("HEAD {c}/o", 200).lacks("X-Delete-At"),
		)
	},
}

var conditionCases = map[string]func(*run){
	"IfMatch": func(r *run) {
		tag := etag("hello")
		r.do(
			s("PUT {c}/o", 201).send("hello").with("X-Object-Meta-A", "1"),
			s("GET {c}/o", 200).with("If-Match", tag).text("hello"),
			s("GET {c}/o", 200).with("If-Match", `"`+tag+`"`).text("hello"),
			s("GET {c}/o", 200).with("If-Match", `"other", "`+tag+`"`).text("hello"),
			s("GET {c}/o", 200).with("If-Match", "*").text("hello"),
			s("GET {c}/o", 412).with("If-Match", "other").text("").has("Etag", tag).has("X-Timestamp", timestamp).has("X-Object-Meta-A", "1").
				lacks("Accept-Ranges"),
			s("GET {c}/o", 412).with("If-Match", `W/"`+tag+`"`),
			s("HEAD {c}/o", 412).with("If-Match", "other").has("Etag", tag),
			s("GET {c}/o", 412).with("If-Match", "other").with("Range", "bytes=0-1").text(""),
			s("GET {c}/o", 206).with("If-Match", tag).with("Range", "bytes=0-1").text("he"),
			s("GET {c}/o", 412).with("If-Match", "other").with("X-Newest", "true"),
			s("GET {c}/none", 404).with("If-Match", tag),
			s("GET {c}/none", 412).with("If-Match", "*").text(""),
			// If-Match does not prevent a change.
			s("PUT {c}/o", 201).send("new").with("If-Match", "other"),
			s("DELETE {c}/o", 204).with("If-Match", "other"),
		)
	},
	"IfNoneMatch": func(r *run) {
		tag := etag("hello")
		r.do(
			s("PUT {c}/o", 201).send("hello").with("If-None-Match", "*"),
			s("PUT {c}/o", 412).send("other").with("If-None-Match", "*").text(page("Precondition Failed", "A precondition for this request was not met.")),
			s("PUT {c}/o", 400).send("other").with("If-None-Match", tag).text("If-None-Match only supports *").has("Content-Type", "text/plain"),
			s("PUT {c}/n", 400).send("other").with("If-None-Match", `"x"`),
			s("GET {c}/o", 304).with("If-None-Match", tag).text("").has("Etag", tag).has("Last-Modified", httpDate),
			s("GET {c}/o", 304).with("If-None-Match", `"`+tag+`"`),
			s("GET {c}/o", 304).with("If-None-Match", "*"),
			s("HEAD {c}/o", 304).with("If-None-Match", tag),
			s("GET {c}/o", 200).with("If-None-Match", "other").text("hello"),
			s("GET {c}/none", 404).with("If-None-Match", "*"),
			s("DELETE {c}/o", 204),
			s("PUT {c}/o", 201).send("again").with("If-None-Match", "*"),
		)
	},
	"IfModified": func(r *run) {
		past, future := "Sun, 01 Jan 2023 00:00:00 GMT", time.Now().UTC().Add(24*time.Hour).Format("Mon, 02 Jan 2006 15:04:05 GMT")
		r.do(
			s("PUT {c}/o", 201).send("hello"),
			s("GET {c}/o", 200).with("If-Modified-Since", past).text("hello"),
			s("GET {c}/o", 304).with("If-Modified-Since", future).text(""),
			s("HEAD {c}/o", 304).with("If-Modified-Since", future),
			s("GET {c}/o", 200).with("If-Modified-Since", "junk").text("hello"),
			s("GET {c}/o", 412).with("If-Unmodified-Since", past).text(""),
			s("GET {c}/o", 200).with("If-Unmodified-Since", future).text("hello"),
			s("GET {c}/o", 200).with("If-Unmodified-Since", "junk").text("hello"),
			s("PUT {c}/o", 201).send("new").with("If-Unmodified-Since", past),
		)
		same := r.send(s("HEAD {c}/o", 0)).header.Get("Last-Modified")
		r.do(
			s("GET {c}/o", 304).with("If-Modified-Since", same),
			s("GET {c}/o", 200).with("If-Unmodified-Since", same).text("new"),
		)
	},
}
