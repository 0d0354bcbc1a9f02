// SPDX-License-Identifier: MIT

package conformance

import "strings"

// asGuest sends the request as the user of another account.
func (r *run) asGuest(p *step) *step { return p.anonymous().with("X-Auth-Token", r.guest) }

var aclCases = map[string]func(*run){
	"ACL": func(r *run) {
		if r.guest == "" {
			r.Log("the target has no user of another account")
			return
		}
		account, _, _ := strings.Cut(r.target.Guest, ":")
		g := r.asGuest
		const read, write, key = "X-Container-Read", "X-Container-Write", "X-Container-Meta-Temp-Url-Key"
		r.fill("o")
		r.do(
			s("POST {c}", 204).with("X-Container-Meta-A", "1").with(key, "secret"),
			g(s("GET {c}/o", 403)),
			g(s("GET {c}", 403)),
			s("POST {c}", 204).with(read, "nobody , "+r.target.Guest+",,x"),
			s("HEAD {c}", 204).has(read, "nobody,"+r.target.Guest+",x").has(key, "secret"),
			g(s("GET {c}/o", 200)),
			g(s("HEAD {c}/o", 200)),
			g(s("GET {c}", 200)).text("o\n").has("X-Container-Meta-A", "1").lacks(read, key),
			g(s("HEAD {c}", 204)).has("X-Container-Meta-A", "1").lacks(read, key),
			g(s("PUT {c}/p", 403)).send("x"),
			g(s("DELETE {c}/o", 403)),
			g(s("POST {c}", 403)).with("X-Container-Meta-A", "2"),
			g(s("PUT {c}", 403)),
			g(s("DELETE {c}", 403)),
			g(s("HEAD @", 403)),
			s("GET {c}/o", 401).anonymous(),
			s("POST {c}", 204).with(read, account).with(write, account),
			g(s("PUT {c}/p", 201)).send("x"),
			g(s("GET {c}/p", 200)).text("x"),
			g(s("DELETE {c}/p", 204)),
			g(s("POST {c}", 403)).with("X-Container-Meta-A", "2"),
			g(s("PUT {d}", 403)),
			s("POST {c}", 204).with(read, ".ref:*").with(write, ""),
			s("HEAD {c}", 204).has(read, ".r:*").lacks(write),
			s("GET {c}/o", 200).anonymous(),
			s("GET {c}", 401).anonymous(),
			g(s("GET {c}", 403)),
			s("POST {c}", 204).with(read, ".r:*,.rlistings"),
			s("GET {c}", 200).anonymous().text("o\n").lacks(read, key),
			s("PUT {c}/p", 401).anonymous().send("x"),
			s("POST {c}", 400).with(write, ".r:*"),
			s("POST {c}", 400).with(read, ".x:y"),
			s("POST {c}", 400).with(read, ".r:"),
			s("PUT {d}", 400).with(read, ".r:-"),
			s("HEAD {c}", 204).has(read, ".r:*,.rlistings"),
		)
	},
}
