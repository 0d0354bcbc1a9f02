// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
)

// TestDeleteOvertaken has a deletion stopped in one of its requests, as by Ctrl-Z or a
// network that hangs. Another one, or one after an unlock, comes to the end, and a new
// disk is made under the name. When the first goes on, it must leave that alone, and
// say so.
func TestDeleteOvertaken(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	listing := func(r *devswift.Request) bool {
		return r.Method == http.MethodGet && r.Container == "disk" && r.Object == ""
	}
	bulk := func(r *devswift.Request) bool { return r.Method == http.MethodPost && r.Container == "" }
	single := func(r *devswift.Request) bool {
		return r.Method == http.MethodDelete && r.Container == "disk" && r.Object != ""
	}
	container := func(r *devswift.Request) bool {
		return r.Method == http.MethodDelete && r.Container == "disk" && r.Object == ""
	}
	drop := &devswift.Action{Drop: true}
	for what, c := range map[string]struct {
		format string
		at     func(r *devswift.Request) bool // where it is stopped
		skip   int64
		then   *devswift.Action // what comes of that request
		unlock bool             // and not another deletion at once
	}{
		"the first listing, version 1":         {"1", listing, 0, nil, false},
		"the last listing, version 1":          {"1", listing, 1, nil, false},
		"the first listing, version 2":         {"2", listing, 2, nil, false}, // two look for clones
		"the last listing, version 2":          {"2", listing, 4, nil, false},
		"a bulk delete that is not answered":   {"1", bulk, 0, drop, false},
		"a DELETE that is not answered":        {"2", single, 1, drop, false},
		"the container's DELETE":               {"1", container, 0, nil, false},
		"the same, not answered, version 2":    {"2", container, 0, drop, false},
		"the first listing, after an unlock":   {"2", listing, 2, nil, true},
		"a bulk delete, after an unlock":       {"2", bulk, 0, drop, true},
		"a listing, and no disk is made again": {"", listing, 0, nil, false},
	} {
		t.Run(what, func(t *testing.T) {
			o := devswift.Options{}
			if strings.Contains(what, "a DELETE") {
				o.Without = []string{"bulk_delete"}
			}
			b := newBench(t, o, "disk")
			b.pace.ours = 0 // each attempt looks
			fill := func(seed byte) []byte {
				b.ok("setup", "disk", "--size", itoa(size), "--format", fmt.Sprint(max(c.format, "1")))
				data := bytes.Repeat([]byte{seed}, size)
				b.serve("disk", func(d *device.Device) {
					if _, err := d.WriteAt(data, 0); err != nil {
						t.Fatal(err)
					}
				})
				return data
			}
			fill(1)
			var n atomic.Int64
			stopped, goOn := make(chan bool), make(chan bool)
			b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
				if !c.at(r) || n.Add(1) != c.skip+1 {
					return nil
				}
				close(stopped)
				<-goOn
				return c.then
			})
			first := make(chan result)
			go func() { first <- b.run("delete", "disk", "--yes") }()
			select {
			case <-stopped:
			case r := <-first:
				t.Fatalf("it is not stopped: %+v", r)
			}
			if c.unlock {
				b.ok("unlock", "disk")
			}
			b.ok("delete", "disk", "--yes")
			b.gone("disk")
			if c.format == "" {
				close(goOn)
				if r := <-first; r.code != 0 {
					t.Errorf("%+v", r)
				}
				b.gone("disk")
				return
			}
			want := fill(2)
			close(goOn)
			r := <-first
			b.swift.SetFault(nil)
			if r.code != 1 || !strings.Contains(r.err, "nothing more is deleted") || strings.Contains(r.err, "delete it again") {
				t.Errorf("%+v", r)
			}
			if !bytes.Equal(b.content("disk", size), want) {
				t.Error("the new disk is not what was written")
			}
			b.ok("verify", "disk")
		})
	}
}
