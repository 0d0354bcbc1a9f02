// SPDX-License-Identifier: MIT

package crash

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

// rival is one of two nbdkits on one volume, and its client.
type rival struct {
	n      *harness.Nbdkit // nil: refused when it started
	c      *client         // nil: not let in
	said   string          // by an nbdkit that was refused when it started
	writes error           // of what the client wrote
}

// in says whether the rival's client may write.
func (r *rival) in() bool { return r.c != nil }

// refusals returns what nbdkit said to those that it did not let in.
func (r *rival) refusals() []string {
	out := r.said
	if r.n != nil {
		out = r.n.Server.Output()
	}
	var lines []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "error:") && strings.HasSuffix(line, "\n") { // nbdkit writes it in pieces
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// connect lets a client in, which writes and flushes at once: block of the
// chunks that all rivals write to.
func (r *rival) connect(chunks int, objectSize int64, block []byte) {
	c, err := dial(r.n.URI)
	if err != nil {
		return // refused; nbdkit says why
	}
	r.c = c
	for i := range chunks {
		if _, r.writes = c.do(cmdWrite, 0, int64(i)*objectSize, len(block), block); r.writes != nil {
			return
		}
	}
	_, r.writes = c.do(cmdFlush, 0, 0, 0, nil)
}

// refused is what whoever comes too late is told: who has it, where, since when.
var refused = regexp.MustCompile(`container (\S+): locked by (\S+):(\d+) since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC`)

// TestStarts starts two nbdkits on one volume at once, again and again, on the
// embedded Swift and on the real one. One of them, and one only, may write. The
// other is refused, when it starts or when its client comes, in one line that
// says who has the volume, where and since when; and gets it afterwards.
func TestStarts(t *testing.T) {
	for _, tc := range []struct {
		name  string
		cloud func(testing.TB) *harness.Cloud
	}{{"embedded", harness.Dev}, {"real", harness.Real}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			rng := newRand(t)
			s := &starts{t: t, account: tc.cloud(t).Account(t), name: harness.Name(t)}
			s.account.Setup(t, s.name, 8, 64<<10)
			// Nobody is killed here, so no lease is waited out. With the shortest one
			// a busy Swift may be too slow for the mark to be given back in time, and
			// nbdkit then ends with status 1.
			s.params = []string{s.name, "secrets=" + harness.Secrets(t, tc.cloud(t).Section(s.name)), "lease=30"}
			atStart, atClient := 0, 0
			rounds := (*startsFlag + 1) / 2
			for round := range rounds {
				if s.round(round, rng) {
					atStart++
				} else {
					atClient++
				}
				if t.Failed() {
					return
				}
			}
			t.Logf("%d rounds; the loser was refused %d times when it started, %d times when its client came", rounds, atStart, atClient)
		})
	}
}

type starts struct {
	t       *testing.T
	account *harness.Account
	name    string
	params  []string
}

// serve starts an nbdkit, which may be refused.
func (s *starts) serve(r *rival) {
	r.n, r.said = harness.TryServe(s.t, harness.Options{Params: s.params})
}

// round lets two rivals loose, and says whether the loser was refused when it
// started.
func (s *starts) round(round int, rng *rand.Rand) (atStart bool) {
	t := s.t
	t.Helper()
	const chunks = 4
	rivals := []*rival{{}, {}}
	blocks := [][]byte{
		bytes.Repeat([]byte(fmt.Sprintf("%08d", 2*round)), 512),
		bytes.Repeat([]byte(fmt.Sprintf("%08d", 2*round+1)), 512),
	}
	// Half of the time the clients come when both serve: then it is the
	// lease alone that decides.
	together := round%2 == 0
	late := time.Duration(rng.IntN(30)) * time.Millisecond
	var all, ready sync.WaitGroup
	ready.Add(2)
	for i, r := range rivals {
		all.Add(1)
		go func() {
			defer all.Done()
			if i == round/2%2 {
				time.Sleep(late)
			}
			s.serve(r)
			ready.Done()
			if together {
				ready.Wait()
			}
			if r.n != nil {
				r.connect(chunks, 64<<10, blocks[i])
			}
		}()
	}
	all.Wait()
	if rivals[0].in() == rivals[1].in() {
		t.Fatalf("round %d: both may write: %v", round, rivals[0].in())
	}
	w := 0
	if rivals[1].in() {
		w = 1
	}
	winner, loser := rivals[w], rivals[1-w]
	if winner.writes != nil {
		t.Fatalf("round %d: the one that was let in cannot write: %v", round, winner.writes)
	}
	var lines []string
	harness.Eventually(t, "the loser says why", func() bool {
		lines = loser.refusals()
		return len(lines) > 0
	})
	if len(lines) != 1 {
		t.Fatalf("round %d: the loser said %d lines, want 1:\n%s", round, len(lines), strings.Join(lines, "\n"))
	}
	if m := refused.FindStringSubmatch(lines[0]); m == nil || m[1] != s.name || m[3] != fmt.Sprint(winner.n.Server.Pid) {
		t.Errorf("round %d: %q does not say that %s is locked by process %d and since when", round, lines[0], s.name, winner.n.Server.Pid)
	}
	want := make([]byte, 64<<10)
	copy(want, blocks[w])
	disk := s.account.Read011(t, s.name)
	for i := range chunks {
		if got := disk[i*len(want):][:len(want)]; !bytes.Equal(got, want) {
			t.Errorf("round %d: chunk %d in Swift is not what the one that was let in has flushed", round, i)
		}
	}
	winner.c.close()
	atStart = loser.n == nil
	s.afterwards(round, winner, loser, blocks[w])
	return atStart
}

// afterwards lets the loser in, who finds what the winner wrote.
func (s *starts) afterwards(round int, winner, loser *rival, block []byte) {
	t := s.t
	t.Helper()
	var c *client
	// The winner's nbdkit may be slow to give the volume back; on a busy machine
	// that may take until its lease's end.
	harness.Eventually(t, "the winner has gone, and the loser is let in", func() (ok bool) {
		if loser.n == nil {
			if s.serve(loser); loser.n == nil {
				return false
			}
		}
		var err error
		if c, err = dial(loser.n.URI); err != nil {
			time.Sleep(200 * time.Millisecond)
		}
		return err == nil
	})
	if got, err := c.do(cmdRead, 0, 0, len(block), nil); err != nil || !bytes.Equal(got, block) {
		t.Errorf("round %d: the loser does not read what the winner wrote: %v", round, err)
	}
	if _, err := c.do(cmdWrite, flagFUA, 64<<10, len(block), block); err != nil {
		t.Errorf("round %d: the loser cannot write: %v", round, err)
	}
	c.close()
	winner.n.Stop(t)
	loser.n.Stop(t)
}
