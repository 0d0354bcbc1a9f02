// SPDX-License-Identifier: MIT

package conformance

import (
	"fmt"
	"strings"
)

// jsonResult is the body of a bulk delete that was asked for JSON.
func jsonResult(status, body string, deleted, notFound int, errors string) string {
	return fmt.Sprintf(`{"Response Status": %q, "Response Body": %q, "Number Deleted": %d, "Number Not Found": %d, "Errors": [%s]}`,
		status, body, deleted, notFound, errors)
}

var bulkCases = map[string]func(*run){
	"BulkDelete": func(r *run) {
		js := func(method, body string) *step {
			return s(method, 200).send(body).with("Accept", "application/json").with("Content-Type", "text/plain").has("Content-Type", "application/json")
		}
		r.fill("a", "b%20c", "%C3%A9", "d/e", "f", "g", "h", "i", "j")
		r.do(
			js("POST @?bulk-delete", "/{c}/a\n{c}/b%20c\n\n/{c}/%C3%A9\n/{c}/d/e\n/{c}/none\n/{d}/x\n/{d}").text(jsonResult("200 OK", "", 4, 3, "")),
			s("GET {c}/a", 404),
			s("GET {c}/%C3%A9", 404),
			js("DELETE @?bulk-delete=true", "/{c}/f\n").text(jsonResult("200 OK", "", 1, 0, "")),
			js("POST {c}?bulk-delete", "/{c}/g").text(jsonResult("200 OK", "", 1, 0, "")),
			s("GET {c}", 200).soon().text("h\ni\nj\n"),
			js("POST @?bulk-delete", "/{c}\n/{c}/h").text(jsonResult("400 Bad Request", "", 1, 0, `["/{c}", "409 Conflict"]`)),
			s("POST @?bulk-delete", 200).send("/{c}/none").has("Content-Type", "text/plain").
				text("Number Deleted: 0\nNumber Not Found: 1\nResponse Body: \nResponse Status: 200 OK\nErrors:\n"),
			s("POST @?bulk-delete", 200).send("/{c}/i\n/{c}").with("Accept", "application/xml").has("Content-Type", "application/xml").
				text("<delete>\n<number_deleted>1</number_deleted>\n<number_not_found>0</number_not_found>\n<response_body></response_body>\n"+
					"<response_status>400 Bad Request</response_status>\n<errors>\n<object><name>/{c}</name><status>409 Conflict</status></object>\n</errors>\n</delete>\n"),
			s("POST @?bulk-delete", 200).sendChunked("/{c}/j\n").with("Accept", "application/json").text(jsonResult("200 OK", "", 1, 0, "")),
			s("GET {c}", 204).soon().text(""),
			js("POST @?bulk-delete", "/{c}").text(jsonResult("200 OK", "", 1, 0, "")),
			s("HEAD {c}", 404),
		)
	},
	"BulkDeleteRefused": func(r *run) {
		js := func(body string) *step {
			return s("POST @?bulk-delete", 200).send(body).with("Accept", "application/json")
		}
		r.fill("a")
		var many strings.Builder
		for i := range 10001 {
			fmt.Fprintf(&many, "/{c}/a%d\n", i)
		}
		r.do(
			js("").text(jsonResult("400 Bad Request", "Invalid bulk delete.", 0, 0, "")),
			js("/{c}/a").with("Content-Type", "image/png").text(jsonResult("406 Not Acceptable", "", 0, 0, "")),
			js(many.String()).text(jsonResult("413 Request Entity Too Large", "Maximum Bulk Deletes: 10000 per request", 0, 0, "")),
			js("/{c}/a").with("X-Auth-Token", "wrong").text(jsonResult("400 Bad Request", "", 0, 0, `["/{c}/a", "401 Unauthorized"]`)),
			js("/{c}/%FF\n/{c}/none\n/").text(jsonResult("400 Bad Request", "", 0, 1, `["/{c}/%FF", "412 Precondition Failed"], ["/", "403 Forbidden"]`)),
			js("/{c}/"+strings.Repeat("n", 1100)).text(jsonResult("200 OK", "", 0, 1, "")),
			s("POST @?bulk-delete", 200).send("/{c}/a").with("Accept", "image/png").
				text("Number Deleted: 0\nNumber Not Found: 0\nResponse Body: \nResponse Status: 406 Not Acceptable\nErrors:\n"),
			s("GET {c}/a", 200).text("1"),
			s("PUT @?bulk-delete", 403).send("/{c}/a"),
		)
	},
}
