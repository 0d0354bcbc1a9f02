// SPDX-License-Identifier: MIT

package conformance

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
)

var containerCases = map[string]func(*run){
	"ContainerLifecycle": func(r *run) {
		r.do(
			s("PUT {d}", 201).has("Content-Type", html).text(""),
			s("PUT {d}", 202).text(accepted),
			s("PUT {d}/", 202),
			s("HEAD {d}", 204).has("X-Container-Object-Count", "0").has("X-Container-Bytes-Used", "0").has("X-Timestamp", timestamp).
				has("Last-Modified", httpDate).has("Accept-Ranges", "bytes").has("X-Storage-Policy", "~.").has("Content-Type", plain).has("Vary", "Accept"),
			s("PUT {d}/o", 201).send("hello"),
			s("HEAD {d}", 204).soon().has("X-Container-Object-Count", "1").has("X-Container-Bytes-Used", "5"),
			s("DELETE {d}", 409).text(page("Conflict", "There was a conflict when trying to complete your request.")),
			s("DELETE {d}/o", 204).has("Content-Type", html).text(""),
			s("HEAD {d}", 204).soon().has("X-Container-Object-Count", "0").has("X-Container-Bytes-Used", "0"),
			s("DELETE {d}", 204).text(""),
			s("DELETE {d}", 404).text(notFound),
			s("HEAD {d}", 404).text("").has("Content-Type", html).lacks("Vary"),
			s("GET {d}", 404).text(notFound),
			s("POST {d}", 404).send(""),
			s("PUT {d}/o", 404).send("x").text(notFound),
			s("GET {d}/o", 404),
			s("POST {d}/o", 404).send(""),
			s("DELETE {d}/o", 404),
			s("PUT {d}", 201),
		)
	},
	"ContainerNames": func(r *run) {
		r.do(
			s("PUT "+strings.Repeat("x", 257), 400).text("Container name length of 257 longer than 256"),
			s("PUT {d}", 400).with("X-Storage-Policy", "no-such-policy").text("Invalid X-Storage-Policy 'no-such-policy'"),
		)
		name := r.d + strings.Repeat("x", 256-len(r.d))
		r.do(s("PUT "+name, 201), s("HEAD "+name, 204), s("DELETE "+name, 204))
		odd := r.d + "%20%C3%A9%3F%25"
		r.do(s("PUT "+odd, 201), s("PUT "+odd+"/o", 201).send("x"), s("GET "+odd, 200).soon().text("o\n"),
			s("DELETE "+odd+"/o", 204), s("DELETE "+odd, 204).soon())
	},
	"ContainerCreateIsAtomic": func(r *run) {
		const n = 16
		var wg sync.WaitGroup
		status := make([]int, n)
		for i := range n {
			wg.Go(func() { status[i] = r.send(s("PUT {d}", 0)).status })
		}
		wg.Wait()
		created := 0
		for _, got := range status {
			switch got {
			case http.StatusCreated:
				created++
			case http.StatusAccepted:
			default:
				r.fault("PUT {d}", fmt.Sprintf("status %d, want 201 or 202", got))
			}
		}
		if created != 1 {
			r.Errorf("%d of %d PUTs of one container gave 201", created, n)
		}
	},
}

var metadataCases = map[string]func(*run){
	"ContainerMetadataMerges": func(r *run) {
		r.do(
			s("PUT {d}", 201).with("X-Container-Meta-One", "1"),
			s("HEAD {d}", 204).has("X-Container-Meta-One", "1"),
			s("POST {d}", 204).with("X-Container-Meta-Two", "2").with("X-Container-Meta-three_3", "three").has("Content-Type", html).text(""),
			s("HEAD {d}", 204).has("X-Container-Meta-One", "1").has("X-Container-Meta-Two", "2").has("X-Container-Meta-Three-3", "three").
				lacks("X-Container-Meta-Three_3"),
			s("GET {d}", 204).has("X-Container-Meta-One", "1"),
			s("PUT {d}", 202).with("X-Container-Meta-Four", "4"),
			s("HEAD {d}", 204).has("X-Container-Meta-One", "1").has("X-Container-Meta-Four", "4"),
			s("POST {d}", 204).with("X-Container-Meta-One", "").with("X-Remove-Container-Meta-Two", "anything"),
			s("HEAD {d}", 204).lacks("X-Container-Meta-One", "X-Container-Meta-Two").has("X-Container-Meta-Four", "4"),
			s("POST {d}", 204).with("X-Remove-Container-Meta-Four", "x").with("X-Container-Meta-Four", "new"),
			s("HEAD {d}", 204).has("X-Container-Meta-Four", "new"),
			s("POST {d}", 204).with("X-CONTAINER-META-FOUR", "case"),
			s("HEAD {d}", 204).has("X-Container-Meta-Four", "case"),
			s("POST {d}", 204).with("X-Container-Meta-Utf", "é ü"),
			s("HEAD {d}", 204).has("X-Container-Meta-Utf", "é ü"),
			s("POST {d}", 204),
			s("HEAD {d}", 204).has("X-Container-Meta-Four", "case"),
			s("POST {d}", 204).with("X-Container-Read", ".r:*"),
			s("HEAD {d}", 204).has("X-Container-Read", ".r:*"),
			s("POST {d}", 204).with("X-Remove-Container-Read", "x"),
			s("HEAD {d}", 204).lacks("X-Container-Read"),
			s("POST {d}", 204).with("X-Unknown-Header", "x"),
			s("HEAD {d}", 204).lacks("X-Unknown-Header"),
		)
	},
	"ContainerMetadataLimits": func(r *run) {
		text := "text/plain"
		r.do(
			s("POST {c}", 204).with("X-Container-Meta-"+strings.Repeat("n", 128), "1"),
			s("POST {c}", 400).with("X-Container-Meta-"+strings.Repeat("n", 129), "1").has("Content-Type", text).matches("^Metadata name too long: x-container-meta-"),
			s("POST {c}", 204).with("X-Container-Meta-V", strings.Repeat("v", 256)),
			s("POST {c}", 400).with("X-Container-Meta-V", strings.Repeat("v", 257)).text("Metadata value longer than 256: x-container-meta-V"),
			s("POST {c}", 400).with("X-Container-Meta-", "v").text("Metadata name cannot be empty"),
			s("POST {c}", 400).with("X-Container-Meta-Bad", "\xff").text("Metadata must be valid UTF-8"),
			many(s("POST {c}", 400), "X-Container-Meta-E", 91, "").text("Too many metadata items; max 90"),
			many(s("POST {c}", 400), "X-Container-Meta-M", 91, "1").has("Content-Type", text).text("Too many metadata items; max 90"),
			many(s("POST {c}", 204), "X-Container-Meta-M", 50, "1"),
			// The existing items count too. If there are too many, none is
			// taken.
			many(s("POST {c}", 400), "X-Container-Meta-L", 50, "1").has("Content-Type", html).text("Too many metadata items; max 90"),
			s("HEAD {c}", 204).has("X-Container-Meta-M49", "1").lacks("X-Container-Meta-L0"),
			many(s("POST {c}", 400), "X-Container-Meta-S", 17, strings.Repeat("v", 250)).text("Total metadata too large; max 4096"),
			many(s("POST {c}", 204), "X-Container-Meta-M", 50, ""),
			many(s("POST {c}", 204), "X-Container-Meta-S", 10, strings.Repeat("v", 250)),
			many(s("POST {c}", 400), "X-Container-Meta-T", 10, strings.Repeat("v", 250)).has("Content-Type", html).text("Total metadata too large; max 4096"),
			s("HEAD {c}", 204).lacks("X-Container-Meta-T0", "X-Container-Meta-M0"),
			s("PUT {d}", 400).with("X-Container-Meta-V", strings.Repeat("v", 257)),
			s("HEAD {d}", 404),
		)
	},
	"ObjectMetadata": func(r *run) {
		r.do(
			s("PUT {c}/o", 201).send("x").with("X-Object-Meta-A_b", "1").with("X-Object-Meta-Empty", "").with("Content-Type", "text/x").
				with("Content-Disposition", "attachment").with("Content-Encoding", "x-none").with("Cache-Control", "no-store").
				with("Expires", "never").with("Content-Language", "de").with("X-Unknown", "u").with("X-Timestamp", "1.0"),
			s("HEAD {c}/o", 200).has("X-Object-Meta-A-B", "1").has("X-Object-Meta-Empty", "").has("Content-Type", "text/x").
				has("Content-Disposition", "attachment").has("Content-Encoding", "x-none").has("Cache-Control", "no-store").
				has("Expires", "never").has("Content-Language", "de").lacks("X-Unknown").has("X-Timestamp", timestamp),
			s("POST {c}/o", 202).send("").with("X-Object-Meta-New", "2").text(accepted),
			s("HEAD {c}/o", 200).has("X-Object-Meta-New", "2").has("Content-Type", "text/x").has("Etag", etag("x")).
				lacks("X-Object-Meta-A-B", "Content-Disposition", "Content-Encoding", "Cache-Control", "Expires", "Content-Language"),
			s("POST {c}/o", 202).send("").with("Content-Type", "text/y"),
			s("HEAD {c}/o", 200).has("Content-Type", "text/y").lacks("X-Object-Meta-New"),
			s("GET {c}?format=json", 200).soon().matches(`"content_type": "text/y"`),
			s("PUT {c}/o", 201).send("y"),
			s("GET {c}/o", 200).text("y").has("Content-Type", octets),
			s("POST {c}/none", 404).send("").text(notFound),
		)
	},
	"ObjectMetadataLimits": func(r *run) {
		r.do(
			s("PUT {c}/o", 400).send("x").with("X-Object-Meta-"+strings.Repeat("n", 129), "1").has("Content-Type", "text/plain"),
			s("PUT {c}/o", 400).send("x").with("X-Object-Meta-V", strings.Repeat("v", 257)).text("Metadata value longer than 256: x-object-meta-V"),
			s("PUT {c}/o", 400).send("x").with("X-Object-Meta-", "1").text("Metadata name cannot be empty"),
			many(s("PUT {c}/o", 400).send("x"), "X-Object-Meta-M", 91, "1").text("Too many metadata items; max 90"),
			many(s("PUT {c}/o", 400).send("x"), "X-Object-Meta-M", 17, strings.Repeat("v", 256)).text("Total metadata too large; max 4096"),
			s("GET {c}/o", 404),
			many(s("PUT {c}/o", 201).send("x"), "X-Object-Meta-M", 90, "1"),
			many(s("POST {c}/o", 400).send(""), "X-Object-Meta-M", 91, "1"),
			s("HEAD {c}/o", 200).has("X-Object-Meta-M89", "1"),
		)
	},
}

// many adds n numbered headers to a request.
func many(p *step, prefix string, n int, value string) *step {
	for i := range n {
		p.with(fmt.Sprintf("%s%d", prefix, i), value)
	}
	return p
}
