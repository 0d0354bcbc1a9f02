// SPDX-License-Identifier: MIT

package replicas

import (
	"fmt"
	"io"
	"slices"
	"testing"

	"swiftnbd/tests/harness"
)

// statuses counts what Swift answers to each way of asking for an object.
type statuses map[string]map[int]int

// ask asks for the object with a GET and a HEAD, each with and without
// X-Newest, and notes the statuses. A body that comes with a success must be
// content.
func (s statuses) ask(d *disk, name, content string) {
	d.t.Helper()
	for _, method := range []string{"GET", "HEAD"} {
		for _, newest := range []string{"false", "true"} {
			how := method
			if newest == "true" {
				how += " with X-Newest"
			}
			status, _, body := d.account.Do(d.t, method, "/"+d.name+"/"+name, map[string]string{"X-Newest": newest}, nil)
			if method == "GET" && status == 200 && string(body) != content {
				d.t.Errorf("%s of %s: 200 with other bytes", how, name)
			}
			if s[how] == nil {
				s[how] = map[int]int{}
			}
			s[how][status]++
		}
	}
}

// only fails the test unless every answer had one of these statuses, and at
// least one had the first of them.
func (s statuses) only(t *testing.T, when string, want ...int) {
	t.Helper()
	t.Logf("%s: %v", when, s)
	for how, counts := range s {
		for status, n := range counts {
			if !slices.Contains(want, status) {
				t.Errorf("%s: %s is answered %d, %d times", when, how, status, n)
			}
		}
		if counts[want[0]] == 0 {
			t.Errorf("%s: %s is never answered %d", when, how, want[0])
		}
	}
}

// TestNewName shows what Swift says of an object whose name was never used
// before, which is what a log of objects with new names rests on. One of three
// object servers was away when it was put. No answer has other bytes than it,
// and it is found as long as one server answers that has it. Where those that
// have it are away, the one that lacks it does not answer for all: its 404 is
// no majority, and Swift says 503.
func TestNewName(t *testing.T) {
	d := newDisk(t, 1, 4096)
	found, oneAway, bothAway := statuses{}, statuses{}, statuses{}
	for round := range repeat(1) {
		behind := harness.ObjectServer(round)
		first, second := harness.ObjectServer(round+1), harness.ObjectServer(round+2)
		d.Stop(t, behind)
		var names []string
		for i := range 10 {
			name := fmt.Sprintf("new/%08d-%012d", round, i)
			if status, _, _ := d.account.Do(t, "PUT", "/"+d.name+"/"+name, nil, []byte(name)); status != 201 {
				t.Fatalf("PUT %s with %s away: status %d", name, behind, status)
			}
			names = append(names, name)
		}
		d.Start(t, behind)
		look := func(s statuses) {
			for _, name := range names {
				s.ask(d, name, name)
			}
		}
		look(found)
		d.Stop(t, first)
		look(oneAway)
		d.Stop(t, second)
		look(bothAway)
		d.Start(t, first, second)
		look(found)
	}
	found.only(t, "with all servers", 200)
	oneAway.only(t, "with one away that has it", 200)
	bothAway.only(t, "with both away that have it", 503)
}

// TestFailedPutSurfaces shows that a PUT which Swift has answered with an error
// may be there all the same, and that a 404 of before is then no proof that
// there was nothing. Two of three object servers die when the body has been
// sent and before they have answered. That is no success, but the third has kept it. While the third is
// away, a majority says 404; when it is back, the object is there. A log must
// therefore have on record where it ended.
func TestFailedPutSurfaces(t *testing.T) {
	d := newDisk(t, 1, 4096)
	hidden, surfaced := statuses{}, statuses{}
	for round := range repeat(1) {
		keeps := harness.ObjectServer(round)
		first, second := harness.ObjectServer(round+1), harness.ObjectServer(round+2)
		const puts = 8
		var name, content [puts]string
		var send [puts]*io.PipeWriter
		status := make(chan int, puts)
		for i := range puts {
			name[i] = fmt.Sprintf("failed/%08d-%012d", round, i)
			content[i] = string(harness.Random(uint64(i), 20<<10))
			body, w := io.Pipe()
			send[i] = w
			go func() { status <- d.account.Send("PUT", "/"+d.name+"/"+name[i], int64(len(content[i])), body) }()
		}
		// All three are ready for each body. Two take it into their sockets
		// and no further, and are killed seconds later.
		for i, w := range send {
			if _, err := io.WriteString(w, content[i][:1]); err != nil {
				t.Fatal(err)
			}
		}
		d.Freeze(t, first, second)
		for i, w := range send {
			io.WriteString(w, content[i][1:]) // an error shows in the status
			w.Close()
		}
		d.Stop(t, first, second)
		for range puts {
			if got := <-status; got != 503 {
				t.Fatalf("a PUT while two of three servers die: status %d", got)
			}
		}
		d.Start(t, first, second)
		d.Stop(t, keeps)
		for i := range puts {
			hidden.ask(d, name[i], content[i])
		}
		d.Start(t, keeps)
		for i := range puts {
			surfaced.ask(d, name[i], content[i])
		}
	}
	hidden.only(t, "a PUT that was answered 503, with the server away that has it", 404)
	surfaced.only(t, "a PUT that was answered 503, with all servers", 200)
}
