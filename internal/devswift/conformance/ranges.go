// SPDX-License-Identifier: MIT

package conformance

import (
	"fmt"
	"strings"
)

var rangeCases = map[string]func(*run){
	"RangeSingle": func(r *run) {
		body := "0123456789"
		r.do(s("PUT {c}/o", 201).send(body))
		for _, c := range []struct{ spec, text, contentRange string }{
			{"bytes=0-0", "0", "bytes 0-0/10"}, {"bytes=2-", "23456789", "bytes 2-9/10"}, {"bytes=-3", "789", "bytes 7-9/10"},
			{"bytes=9-100", "9", "bytes 9-9/10"}, {"bytes=-100", body, "bytes 0-9/10"}, {"bytes=0-9", body, "bytes 0-9/10"},
			{"BYTES=1-2", "12", "bytes 1-2/10"}, {"bytes= 1 - 2 ", "12", "bytes 1-2/10"}, {"bytes=0-1,20-30", "01", "bytes 0-1/10"},
			{"bytes=0-0,-0", "0", "bytes 0-0/10"}, {"bytes=3-99999999999999999999", "3456789", "bytes 3-9/10"},
		} {
			r.do(s("GET {c}/o", 206).with("Range", c.spec).text(c.text).has("Content-Range", c.contentRange).has("Content-Length", fmt.Sprint(len(c.text))).
				has("Etag", etag(body)).has("Content-Type", octets))
		}
		for _, spec := range []string{"bytes=10-", "bytes=-0", "bytes=20-30", "bytes=20-30,30-40", "bytes=99999999999999999999-"} {
			r.do(s("GET {c}/o", 416).with("Range", spec).has("Content-Range", "bytes */10").has("Etag", etag(body)).has("Content-Type", octets).
				text(page("Requested Range Not Satisfiable", "The Range requested is not available.")))
		}
		for _, spec := range []string{"bytes=5-2", "bytes=x", "bytes=", "bytes=-", "bytes=1-2-3", "bytes=1", "bytes=0-1,x", "bytes=0-1,", "items=0-1", "junk", "0-1"} {
			r.do(s("GET {c}/o", 200).with("Range", spec).text(body).lacks("Content-Range"))
		}
		r.do(
			s("HEAD {c}/o", 200).with("Range", "bytes=0-1").has("Content-Length", "10").lacks("Content-Range"),
			s("HEAD {c}/o", 200).with("Range", "bytes=20-21"),
		)
	},
	"RangeOfEmpty": func(r *run) {
		r.do(
			s("PUT {c}/o", 201).send(""),
			s("GET {c}/o", 416).with("Range", "bytes=0-").has("Content-Range", "bytes */0"),
			s("GET {c}/o", 416).with("Range", "bytes=0-0"),
			s("GET {c}/o", 200).with("Range", "bytes=-1").text(""),
		)
	},
	"RangeMultipart": func(r *run) {
		body := strings.Repeat("0123456789", 20)
		r.do(s("PUT {c}/o", 201).send(body).with("Content-Type", "text/x"))
		multipart := func(spec string, parts ...[2]int) {
			r.do(s("GET {c}/o", 206).with("Range", spec).lacks("Content-Range").check(func(a answer) error {
				boundary, ok := strings.CutPrefix(a.header.Get("Content-Type"), "multipart/byteranges;boundary=")
				if !ok || boundary == "" {
					return fmt.Errorf("Content-Type %q", a.header.Get("Content-Type"))
				}
				var want strings.Builder
				for _, p := range parts {
					fmt.Fprintf(&want, "--%s\r\nContent-Type: text/x\r\nContent-Range: bytes %d-%d/%d\r\n\r\n%s\r\n", boundary, p[0], p[1], len(body), body[p[0]:p[1]+1])
				}
				want.WriteString("--" + boundary + "--")
				if a.body != want.String() || a.header.Get("Content-Length") != fmt.Sprint(want.Len()) {
					return fmt.Errorf("body %q, want %q", a.body, want.String())
				}
				return nil
			}))
		}
		multipart("bytes=0-1,3-4", [2]int{0, 1}, [2]int{3, 4})
		multipart("bytes=3-4, 0-1, -2", [2]int{3, 4}, [2]int{0, 1}, [2]int{198, 199})
		multipart("bytes=0-9,0-9,0-9", [2]int{0, 9}, [2]int{0, 9}, [2]int{0, 9})
		multipart("bytes=0-5,3-8", [2]int{0, 5}, [2]int{3, 8})
		r.do(
			// More than Swift allows: three overlaps, 51 ranges, eight out of
			// order.
			s("GET {c}/o", 416).with("Range", "bytes=0-10,1-9,2-8"),
			s("GET {c}/o", 206).with("Range", "bytes=0-5,1-6,9-9"),
			s("GET {c}/o", 206).with("Range", "bytes="+singles(50)),
			s("GET {c}/o", 416).with("Range", "bytes="+singles(51)),
			s("GET {c}/o", 206).with("Range", "bytes=5-5,4-4,3-3,2-2,1-1,0-0,7-7"),
			s("GET {c}/o", 416).with("Range", "bytes=5-5,4-4,3-3,2-2,1-1,0-0,7-7,8-8"),
		)
	},
}

// singles returns n ranges of one byte each.
func singles(n int) string {
	var specs []string
	for i := range n {
		specs = append(specs, fmt.Sprintf("%d-%d", i, i))
	}
	return strings.Join(specs, ",")
}
