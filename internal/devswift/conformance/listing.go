// SPDX-License-Identifier: MIT

package conformance

import (
	"fmt"
	"strings"
	"sync"
)

// fill puts objects of one byte, each named in quoted form.
func (r *run) fill(names ...string) {
	for _, name := range names {
		r.do(s("PUT {c}/"+name, 201).send("1"))
	}
}

// lists makes steps from queries and the lines of their answers. In the table,
// spaces separate the lines.
func lists(queries [][2]string) []*step {
	var steps []*step
	for _, q := range queries {
		if q[1] == "" {
			steps = append(steps, s("GET {c}?"+q[0], 204).soon().text(""))
			continue
		}
		steps = append(steps, s("GET {c}?"+q[0], 200).soon().text(strings.ReplaceAll(q[1], " ", "\n")+"\n"))
	}
	return steps
}

var listingCases = map[string]func(*run){
	"ListingQueries": func(r *run) {
		r.fill("a", "b/1", "b/2", "b/3", "c", "d/1", "d/x/1", "e")
		all := "a b/1 b/2 b/3 c d/1 d/x/1 e"
		r.do(lists([][2]string{
			{"", all}, {"limit=2", "a b/1"}, {"limit=0", ""}, {"limit=x", all}, {"limit=-1", all}, {"limit=10000", all},
			{"marker=b/1", "b/2 b/3 c d/1 d/x/1 e"}, {"marker=b", "b/1 b/2 b/3 c d/1 d/x/1 e"}, {"marker=z", ""},
			{"end_marker=b/2", "a b/1"}, {"marker=b/1&end_marker=b/3", "b/2"}, {"marker=c&end_marker=b", ""},
			{"prefix=b/", "b/1 b/2 b/3"}, {"prefix=b", "b/1 b/2 b/3"}, {"prefix=b/&marker=b/1", "b/2 b/3"},
			{"prefix=b/&end_marker=b/2", "b/1"}, {"prefix=zzz", ""}, {"prefix=b%2F2", "b/2"},
			{"prefix=b/&marker=a", "b/1 b/2 b/3"}, {"prefix=b/&marker=c", ""},
			{"delimiter=/", "a b/ c d/ e"}, {"delimiter=/&limit=2", "a b/"}, {"delimiter=/&marker=a", "b/ c d/ e"},
			{"delimiter=/&marker=b/", "c d/ e"}, {"delimiter=/&marker=b/2", "b/ c d/ e"}, {"delimiter=/&prefix=d/", "d/1 d/x/"},
			{"delimiter=/&prefix=d", "d/"}, {"delimiter=/&end_marker=b/2", "a b/"}, {"delimiter=/&end_marker=b/", "a"},
			{"prefix=d/&delimiter=/&marker=d/1", "d/x/"}, {"delimiter=/x", "a b/1 b/2 b/3 c d/1 d/x e"},
			{"reverse=true", "e d/x/1 d/1 c b/3 b/2 b/1 a"}, {"reverse=1&limit=2", "e d/x/1"}, {"reverse=on&marker=c", "b/3 b/2 b/1 a"},
			{"reverse=yes&marker=d/x/1&end_marker=b/2", "d/1 c b/3"}, {"reverse=true&delimiter=/", "e d/ c b/ a"},
			{"reverse=true&delimiter=/&limit=2", "e d/"}, {"reverse=true&delimiter=/&marker=d/", "c b/ a"}, {"reverse=false", all},
			{"limit=2&prefix=b/&reverse=true", "b/3 b/2"}, {"path=b", "b/1 b/2 b/3"}, {"path=", "a c e"}, {"format=text", all},
		})...)
		r.do(
			s("GET {c}?limit=10001", 412).text("Maximum limit is 10000").lacks("Vary"),
			s("GET {c}?marker=%FF", 400).text(`"marker" parameter not valid UTF-8`),
			s("GET {c}?prefix=%FF", 400),
			s("HEAD {c}?limit=10001", 204),
		)
	},
	"ListingFormats": func(r *run) {
		const item = `"hash": "c4ca4238a0b923820dcc509a6f75849b"`
		when := `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}`
		r.do(
			s("GET {c}", 204).text("").has("Content-Type", plain).has("Vary", "Accept"),
			s("GET {c}?format=json", 200).text("[]").has("Content-Type", "application/json; charset=utf-8").lacks("Vary"),
			s("GET {c}?format=xml", 200).text("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<container name=\""+r.c+"\" />").
				has("Content-Type", "application/xml; charset=utf-8"),
		)
		r.fill("a", "b/1")
		r.do(
			s("GET {c}?format=json", 200).soon().has("X-Container-Object-Count", "2").matches(`^\[\{"bytes": 1, `+item+
				`, "name": "a", "content_type": "application/octet-stream", "last_modified": "`+when+`"\}, \{"bytes": 1, .*"name": "b/1".*\}\]$`),
			s("GET {c}?format=json&delimiter=/&prefix=b", 200).soon().text(`[{"subdir": "b/"}]`),
			s("GET {c}?format=xml&delimiter=/", 200).soon().matches(`^<\?xml version="1.0" encoding="UTF-8"\?>\n<container name="`+r.c+
				`"><object><name>a</name><hash>c4ca4238a0b923820dcc509a6f75849b</hash><bytes>1</bytes><content_type>application/octet-stream</content_type>`+
				`<last_modified>`+when+`</last_modified></object><subdir name="b/"><name>b/</name></subdir></container>$`),
			s("GET {c}", 200).with("Accept", "application/json").has("Content-Type", "application/json; charset=utf-8").has("Vary", "Accept"),
			s("GET {c}", 200).with("Accept", "text/xml").has("Content-Type", "text/xml; charset=utf-8"),
			s("GET {c}", 200).with("Accept", "*/*").has("Content-Type", plain),
			s("GET {c}", 200).with("Accept", "application/*").has("Content-Type", "application/json; charset=utf-8"),
			s("GET {c}", 200).with("Accept", "application/json;q=0.5, text/plain").has("Content-Type", plain),
			s("GET {c}", 200).with("Accept", "application/xml;q=0.3,application/json;q=0.2").has("Content-Type", "application/xml; charset=utf-8"),
			s("GET {c}", 406).with("Accept", "image/png").has("Content-Type", html),
			s("GET {c}?format=json", 200).with("Accept", "image/png"),
			s("GET {c}", 400).with("Accept", "junk").text("Invalid Accept header"),
			s("HEAD {c}?format=json", 204).has("Content-Type", "application/json; charset=utf-8"),
			s("HEAD {c}", 406).with("Accept", "image/png"),
		)
	},
	"ListingNames": func(r *run) {
		r.fill("a%20b", "a+b", "%C3%A9", "a//b", "a%3Fb", "a%25b", "a;b", "a&b=c", "%3Cx%3E", "a%22b", "a%0Ab", "a~b", "%F0%9F%92%BE", "%2Fx", "d%2Fe")
		r.do(
			s("GET {c}", 200).soon().text("/x\n<x>\na\nb\na b\na\"b\na%b\na&b=c\na+b\na//b\na;b\na?b\na~b\nd/e\né\n💾\n"),
			s("GET {c}?format=json&prefix=%C3%A9", 200).soon().matches(`"name": "\\u00e9"`),
			s("GET {c}?format=json&prefix=%F0%9F", 400),
			s("GET {c}?format=json&prefix=%F0%9F%92%BE", 200).soon().matches(`"name": "\\ud83d\\udcbe"`),
			s("GET {c}?format=json&prefix=a%22", 200).soon().matches(`"name": "a\\"b"`),
			s("GET {c}?format=xml&prefix=%3C", 200).soon().matches(`<name>&lt;x&gt;</name>`),
			s("GET {c}?format=xml&prefix=a%0A", 200).soon().matches("<name>a\nb</name>"),
			s("GET {c}?prefix=a%2Bb", 200).soon().text("a+b\n"),
			s("GET {c}?prefix=a+b", 200).soon().text("a b\n"),
			s("GET {c}//x", 200).text("1"),
			s("GET {c}/d/e", 200).text("1"),
			s("GET {c}/a+b", 200),
			s("GET {c}/a%2Bb", 200),
		)
	},
	"ListingPages": func(r *run) {
		const n = 60
		var wg sync.WaitGroup
		for worker := range 4 {
			wg.Go(func() {
				for i := worker; i < n; i += 4 {
					r.do(s(fmt.Sprintf("PUT {c}/p/%08d", i), 201).send("x"))
				}
			})
		}
		wg.Wait()
		r.do(s("HEAD {c}", 204).soon().has("X-Container-Object-Count", fmt.Sprint(n)))
		marker, seen := "", 0
		for {
			a := r.send(s("GET {c}?limit=7&marker="+marker, 0))
			if a.body == "" {
				break
			}
			for line := range strings.Lines(a.body) {
				if want := fmt.Sprintf("p/%08d\n", seen); line != want {
					r.fault("GET {c}?limit=7&marker="+marker, fmt.Sprintf("line %q, want %q", line, want))
				}
				seen++
				marker = strings.TrimSpace(line)
			}
		}
		if seen != n {
			r.Errorf("pages gave %d names of %d", seen, n)
		}
	},
}
