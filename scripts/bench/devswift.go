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

// besideMark stands before a container's name where the counts are those of
// requests that came by the second address.
const besideMark = "beside/"

// serveDev serves an embedded Swift in memory, with the latency that its
// argument gives, until it is killed. Its first line of output is two addresses:
// who is told the second one is counted apart.
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
	var ls [2]net.Listener
	for i := range ls {
		if ls[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return fail(err)
		}
	}
	fmt.Println(ls[0].Addr(), ls[1].Addr())
	counter := &counter{next: swift, seen: make(map[string]*traffic)}
	go http.Serve(ls[1], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { counter.serve(w, r, besideMark) }))
	return fail(http.Serve(ls[0], counter))
}

// traffic is what was asked of a container.
type traffic struct {
	Requests counts // for its objects
	All      counts // for its objects, and for the container itself
	Kinds    counts // PUTs of objects of version 2, by kind: log, root, run and more
	Sent     int64  // bytes of PUTs of objects
}

// newTraffic returns one of no request.
func newTraffic() *traffic { return &traffic{Requests: counts{}, All: counts{}, Kinds: counts{}} }

// minus returns what was asked after before.
func (t *traffic) minus(before *traffic) *traffic {
	return &traffic{
		Requests: t.Requests.minus(before.Requests), All: t.All.minus(before.All),
		Kinds: t.Kinds.minus(before.Kinds), Sent: t.Sent - before.Sent,
	}
}

// counter counts the requests for the objects of each container that a disk
// consists of, in either version of the format.
type counter struct {
	next http.Handler

	mu   sync.Mutex // guards seen
	seen map[string]*traffic
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.serve(w, r, "") }

// serve counts the request under the container's name with mark before it.
func (c *counter) serve(w http.ResponseWriter, r *http.Request, mark string) {
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
	// Counted before the answer, so that whoever has it finds it counted.
	c.count(mark, r.Method, r.URL.Path, max(0, r.ContentLength))
	c.next.ServeHTTP(w, r)
}

// count counts a request for /v1/ACCOUNT/CONTAINER, or for an object of it that a
// disk consists of: …/disk.part/00000000 or …/swiftnbd/KIND/….
func (c *counter) count(mark, method, path string, sent int64) {
	parts := strings.SplitN(path, "/", 7)
	if len(parts) < 4 || parts[1] != "v1" || parts[3] == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	name := mark + parts[3]
	t := c.seen[name]
	if t == nil {
		t = newTraffic()
		c.seen[name] = t
	}
	t.All[method]++
	if len(parts) < 6 || parts[4] != "disk.part" && parts[4] != "swiftnbd" {
		return
	}
	t.Requests[method]++
	t.Sent += sent
	if parts[4] == "swiftnbd" && method == http.MethodPut {
		t.Kinds[parts[5]]++
	}
}

func devTraffic(root, container string) (*traffic, error) {
	resp, err := http.Get(root + countsPath + "/" + container)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	t := newTraffic() // which "null" leaves: nothing yet
	if err := json.NewDecoder(resp.Body).Decode(t); err != nil {
		return nil, fmt.Errorf("the embedded Swift's counts: %w", err)
	}
	return t, nil
}
