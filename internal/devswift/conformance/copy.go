// SPDX-License-Identifier: MIT

package conformance

var copyCases = map[string]func(*run){
	"Copy": func(r *run) {
		r.do(
			s("PUT {d}", 201),
			s("PUT {c}/o", 201).send("hello").with("Content-Type", "a/b").with("X-Object-Meta-A", "1").with("X-Delete-At", "4000000000"),
			s("PUT {c}/n", 201).with("X-Copy-From", "/{c}/o").with("X-Object-Meta-B", "2").text("").has("Etag", etag("hello")).
				has("X-Copied-From", "{c}/o").has("X-Copied-From-Account", "{a}").has("X-Copied-From-Last-Modified", httpDate).has("X-Object-Meta-A", "1"),
			s("GET {c}/n", 200).text("hello").has("Content-Type", "a/b").has("X-Object-Meta-A", "1").has("X-Object-Meta-B", "2").has("X-Delete-At", "4000000000"),
			s("PUT {c}/n", 201).with("X-Copy-From", "{c}/o").with("X-Fresh-Metadata", "true").with("Content-Type", "c/d"),
			s("GET {c}/n", 200).text("hello").has("Content-Type", "c/d").lacks("X-Object-Meta-A", "X-Object-Meta-B"),
			s("COPY {c}/o", 201).with("Destination", "/{d}/x%20y"),
			s("GET {d}/x%20y", 200).text("hello").has("X-Object-Meta-A", "1"),
			s("PUT {c}/part", 201).with("X-Copy-From", "{c}/o").with("Range", "bytes=1-2").has("Etag", etag("el")),
			s("GET {c}/part", 200).text("el"),
			s("COPY {c}/o", 412).text("Destination header required"),
			s("COPY {c}/o", 412).with("Destination", "no-slash"),
			s("COPY {c}/o", 412).with("Destination", "{c}/x").with("If-Match", "other").has("X-Object-Meta-A", "1"),
			s("COPY {c}/none", 404).with("Destination", "{c}/x"),
			s("COPY {c}/o", 404).with("Destination", "{c}-none/x"),
			s("PUT {c}/x", 404).with("X-Copy-From", "{c}/none"),
			s("PUT {c}/x", 412).with("X-Copy-From", "no-slash"),
			s("PUT {c}/x", 400).with("X-Copy-From", "{c}/o").send("body"),
			s("GET {c}/x", 404),
		)
	},
}
