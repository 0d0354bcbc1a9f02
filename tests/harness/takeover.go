// SPDX-License-Identifier: MIT

package harness

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TryServe is Serve in the foreground for an nbdkit that may be refused. Then
// it returns nbdkit's messages and no server. Any goroutine of the test may
// call it.
func TryServe(t testing.TB, o Options) (n *Nbdkit, said string) {
	t.Helper()
	dir := TempDir(t)
	socket := filepath.Join(dir, "s")
	n = &Nbdkit{mode: Foreground, PidFile: filepath.Join(dir, "pid"), URI: UnixURI(socket, "")}
	where := []string{"-U", socket}
	if o.TCP {
		n.Port, n.URI = o.Port, fmt.Sprintf("nbd://127.0.0.1:%d/", o.Port)
		where = []string{"-i", "127.0.0.1", "-p", strconv.Itoa(o.Port)}
	}
	p, err := start(o.cmd(o.command(t, append(where, "-f", "-P", n.PidFile)...)))
	if err != nil {
		t.Error(err)
		return nil, err.Error()
	}
	t.Cleanup(func() { p.end(t) })
	if !within(Patience, func() bool { return n.hasPidFile() || !p.Running() }) {
		t.Errorf("nbdkit neither serves nor ends: %s", p.Output())
		return nil, p.Output()
	}
	if !n.hasPidFile() {
		return nil, p.Output()
	}
	n.Server = p
	return n, ""
}

// Said waits until nbdkit has written a line with all of these words, and
// returns the line. nbdkit writes a line in pieces, so Said ignores an
// unfinished one.
func (n *Nbdkit) Said(t testing.TB, words ...string) string {
	t.Helper()
	var found string
	if !within(Patience, func() bool {
		found = n.said(words)
		return found != ""
	}) {
		t.Fatalf("nbdkit does not say %q:\n%s", words, n.Server.Output())
	}
	return found
}

func (n *Nbdkit) said(words []string) string {
lines:
	for line := range strings.Lines(n.Server.Output()) {
		for _, w := range append(words[:len(words):len(words)], "\n") {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		return strings.TrimSpace(line)
	}
	return ""
}

// Has says whether nbdkit has written such a line already.
func (n *Nbdkit) Has(words ...string) bool { return n.said(words) != "" }

// TakeOver serves the volume of a holder that died or is out of reach. Like a
// supervisor, it starts nbdkit until nbdkit stays. Until the lease has ended,
// nbdkit is refused, with the holder's name and the time that is left. Then it
// serves without an unlock. TakeOver returns how often nbdkit was refused.
func TakeOver(t testing.TB, o Options, holder string) (n *Nbdkit, refused int) {
	t.Helper()
	command := Options{Plugin: o.Plugin, Args: o.Args, Env: o.Env, Params: append(o.Params[:len(o.Params):len(o.Params)], "--run", "true")}
	Eventually(t, "the lease of "+holder+" runs out", func() bool {
		r := RunCmd(t, command.cmd(command.command(t, "-U", "-")))
		if r.Status == 0 {
			return true
		}
		if !strings.Contains(r.Stderr, "locked by "+holder+" since ") ||
			!strings.Contains(r.Stderr, " more unless the lease is renewed") && !strings.Contains(r.Stderr, "whose lease is running out") {
			t.Fatalf("nbdkit is refused, but not for the lease of %s: status %d\n%s", holder, r.Status, r.Stderr)
		}
		refused++
		time.Sleep(500 * time.Millisecond)
		return false
	})
	n = Serve(t, o)
	Must(t, "nbdinfo", "--size", n.URI) // the lease is taken when a client comes
	if o.Mode == Foreground {
		n.Said(t, "took the volume over from "+holder+": its lease ended at ")
	}
	return n, refused
}
