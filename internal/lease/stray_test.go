// SPDX-License-Identifier: MIT

package lease_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"swiftnbd/internal/lease"
)

// TestStrayMark has the request that sets a mark be reset, tried again with success, and
// arrive once more when others have had the volume and are gone: mark, number and key
// are the first holder's again, which was cut off all the time. It must not take that
// for a proof that nobody has had the volume, and go on with what it has in memory.
func TestStrayMark(t *testing.T) {
	for _, plain := range []bool{false, true} {
		for _, unlocked := range []bool{false, true} {
			t.Run(fmt.Sprintf("plain=%t unlocked=%t", plain, unlocked), func(t *testing.T) {
				inScene(t, func(t *testing.T, s *scene) {
					first, second, third := s.party("first"), s.party("second"), s.party("third")
					for _, p := range s.parties {
						p.plain, p.again = plain, true
					}
					hook, arrives := late(t, marks)
					first.set(hook)
					first.mustAcquire()
					first.writes("before")
					first.set(cut)
					if unlocked {
						if _, err := lease.Unlock(context.Background(), third.options()); err != nil {
							t.Fatal(err)
						}
					} else {
						time.Sleep(term + grace)
					}
					second.mustAcquire()
					second.writes("meanwhile")
					if err := second.has().Release(context.Background()); err != nil {
						t.Fatal(err)
					}
					arrives()
					first.set(nil)
					time.Sleep(term + grace)
					first.isLost("after that")
					if w := s.written(); w != "second" {
						t.Errorf("the disk has what %s has written", w)
					}
					third.mustAcquire() // the mark that came late is one of a lease that is over
					third.writes("in the end")
				})
			})
		}
	}
}

// TestStrayRenewal has the request of a renewal be reset, tried again with success, and
// arrive once more just before its holder dies, some renewals later: what that kept last
// must still be there, and the lease must not end earlier than the holder knows.
func TestStrayRenewal(t *testing.T) {
	for after := range 12 {
		inScene2(t, func(t *testing.T, s *scene) {
			first, second := s.party("first"), s.party("second")
			first.again = true
			first.keeps("01/000")
			first.mustAcquire()
			hook, arrives := late(t, renews)
			n, last, next := 0, "", "01/000"
			dead := make(chan bool)
			first.set(func(r request, call func() error) error {
				if !renews(r) {
					return call()
				}
				if n++; n == 1 {
					return hook(r, call)
				}
				err := call()
				last = next
				if n == 2+after {
					arrives()
					first.mu.Lock()
					first.dead, first.hook = true, nil
					first.mu.Unlock()
					close(dead)
				}
				next = fmt.Sprintf("01/%03d", n)
				first.keeps(next)
				return err
			})
			<-dead
			for until := s.state().Until.Add(-time.Second); time.Now().Before(until) && first.holds(); {
				time.Sleep(100 * time.Millisecond)
			}
			if first.holds() {
				t.Errorf("after %d: the lease ends before its holder knows", after)
			}
			time.Sleep(term)
			second.mustAcquire()
			second.finds(fmt.Sprintf("after %d", after), last)
		})
	}
}
