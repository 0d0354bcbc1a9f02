// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"swiftnbd/internal/devswift"
)

// serveCommand is the program's argument that makes it an embedded Swift.
const serveCommand = "serve-devswift"

// countsPath is where the embedded Swift tells its counts.
const countsPath = "/bench/counts"

// serveDev serves an embedded Swift in memory, with the latency that its
// argument gives, until it is killed. Its first line of output is the address.
func serveDev(args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "bench: embedded Swift:", err)
		return 1
	}
	if len(args) != 1 {
		return fail(fmt.Errorf("one argument, the latency, is wanted"))
	}
	latency, err := time.ParseDuration(args[0])
	if err != nil {
		return fail(err)
	}
	swift, err := devswift.New(devswift.Options{Latency: latency, Journal: -1})
	if err != nil {
		return fail(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fail(err)
	}
	fmt.Println(l.Addr())
	counter := &counter{next: swift, seen: make(map[string]*traffic)}
	return fail(http.Serve(l, counter))
}

// traffic is what was asked for the objects of a container.
type traffic struct {
	Requests counts
	Sent     int64 // bytes of PUTs
}

// counter counts the requests for the objects of each container that a disk
// consists of, in either version of the format.
type counter struct {
	next http.Handler

	mu   sync.Mutex // guards seen
	seen map[string]*traffic
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if container, ok := strings.CutPrefix(r.URL.Path, countsPath+"/"); ok {
		c.mu.Lock()
		data, err := json.Marshal(c.seen[container])
		c.mu.Unlock()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(data)
		return
	}
	// /v1/ACCOUNT/CONTAINER/disk.part/00000000 or …/swiftnbd/log/…. Counted
	// before the answer, so that whoever has it finds it counted.
	if parts := strings.SplitN(r.URL.Path, "/", 6); len(parts) == 6 && (parts[4] == "disk.part" || parts[4] == "swiftnbd") {
		c.count(parts[3], r.Method, max(0, r.ContentLength))
	}
	c.next.ServeHTTP(w, r)
}

func (c *counter) count(container, method string, sent int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.seen[container]
	if t == nil {
		t = &traffic{Requests: counts{}}
		c.seen[container] = t
	}
	t.Requests[method]++
	t.Sent += sent
}

func devTraffic(root, container string) (*traffic, error) {
	resp, err := http.Get(root + countsPath + "/" + container)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	t := &traffic{}
	if err := json.NewDecoder(resp.Body).Decode(t); err != nil {
		return nil, fmt.Errorf("the embedded Swift's counts: %w", err)
	}
	if t.Requests == nil { // "null": nothing yet
		t.Requests = counts{}
	}
	return t, nil
}
