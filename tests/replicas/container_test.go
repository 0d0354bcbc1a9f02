// SPDX-License-Identifier: MIT

package replicas

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
	"swiftnbd/tests/harness"
)

// plainMark returns the lock mark as one request sees it that takes no care, or
// that asks for the newest copy.
func (d *disk) plainMark(newest bool) string {
	d.t.Helper()
	status, h, _ := d.account.Do(d.t, "HEAD", "/"+d.name, map[string]string{"X-Newest": fmt.Sprint(newest)}, nil)
	if status/100 != 2 {
		d.t.Fatalf("HEAD %s: status %d", d.name, status)
	}
	return h.Get(harness.MetaPrefix + "Client")
}

// notInOneSecond waits before another change of a mark. Of changes in one second it
// cannot be told for sure which is newer; then it is the lease's number, and no look at
// the mark, that keeps the second one out.
func notInOneSecond() { time.Sleep(1100 * time.Millisecond) }

// TestStaleMark changes the lock mark while one of three container servers is
// stopped, starts that server again with what it had, and reads the mark. Swift
// is no help there: a plain HEAD is answered by any replica, and X-Newest
// compares when each replica was made and not when it was changed, so it asks
// always the same one, be it behind or not.
func TestStaleMark(t *testing.T) {
	d := newDisk(t, 1, 4096)
	patient := store.Retry(d.store, patience)
	reads, stale := map[string]int{}, map[string]int{}
	for round := range max(harness.NumReplicas, repeat(3)) {
		behind := harness.ContainerServer(round)
		d.Stop(t, behind)
		mark := fmt.Sprintf("host:%d@1700000000", round)
		if round%4 == 1 {
			mark = "" // given back
		}
		notInOneSecond()
		if err := patient.SetMetadata(t.Context(), map[string]string{volume.KeyClient: mark}); err != nil {
			t.Fatal(err)
		}
		d.Start(t, behind)
		for range 15 {
			meta, err := volume.Read(t.Context(), patient)
			if err != nil {
				t.Fatal(err)
			}
			for how, got := range map[string]string{
				"ours": meta.Client, "plain": d.plainMark(false), "X-Newest": d.plainMark(true),
			} {
				reads[how]++
				if got != mark {
					stale[how]++
				}
			}
		}
	}
	t.Logf("of %d reads of each kind these were stale: %v", reads["ours"], stale)
	if stale["ours"] != 0 {
		t.Errorf("%d of %d reads of the mark were stale", stale["ours"], reads["ours"])
	}
	if stale["plain"] == 0 || stale["X-Newest"] == 0 {
		t.Error("no careless read was stale: this test shows nothing")
	}
}

// TestStaleMarkNbdkit has one of three container servers stopped while nbdkit
// takes a volume, and started again: another nbdkit does not get it, however
// often it tries. Then a server is stopped while nbdkit gives the volume back,
// and started again: the next one gets it.
func TestStaleMarkNbdkit(t *testing.T) {
	d := newDisk(t, 16, 64<<10)
	params := d.params(d.Cloud)
	for round := range repeat(2) {
		behind := harness.ContainerServer(round%harness.NumReplicas + 1)
		d.Stop(t, behind)
		notInOneSecond()
		n := harness.Serve(t, harness.Options{Params: params})
		// The volume is taken by the first client, and given back after the last.
		client := harness.StartNbdsh(t, n.URI, `
import time
h.pwrite(b"first", 0)
h.flush()
time.sleep(3600)
`)
		harness.Eventually(t, "the volume is taken", func() bool {
			if !client.Running() {
				t.Fatalf("the client came to an end: %s", client.Output())
			}
			return d.account.Holder(t, d.name) != ""
		})
		d.Start(t, behind)
		for range 3 {
			harness.Fail(t, harness.Options{Params: params}).Want(t, d.name, "lock")
		}
		d.Stop(t, behind)
		client.Signal(t, syscall.SIGKILL) // nbdkit waits for clients that are idle
		client.Wait(t)
		n.Stop(t)
		d.Start(t, behind)
		next := harness.Serve(t, harness.Options{Params: params})
		harness.Nbdsh(t, next.URI, `assert h.pread(5, 0) == b"first"`)
		next.Stop(t)
	}
}

// TestCreateContainer has 50 create the same container at once, with all three
// replicas and with one away, so that the lease may rest on it: Swift says 201
// to one of them at most, and the container is there afterwards. It may say 201
// to none, when they have split the replicas between them.
func TestCreateContainer(t *testing.T) {
	const contenders = 50
	r := harness.Replicated(t)
	client := login(t, r.Cloud)
	for _, c := range []struct {
		name string
		away []string
	}{{"all", nil}, {"one away", []string{harness.ContainerServer(1)}}} {
		t.Run(c.name, func(t *testing.T) {
			if c.away != nil {
				r.Stop(t, c.away...)
				defer r.Start(t, c.away...)
			}
			winners := map[int]int{}
			for range repeat(4) {
				s := client.Container(harness.Name(t))
				n := createAtOnce(t, s, contenders)
				winners[n]++
				if n > 1 {
					t.Errorf("%d of %d were told that they had created the container", n, contenders)
				}
				if _, err := store.Retry(s, patience).Metadata(t.Context()); err != nil {
					t.Errorf("after all have created it: %v", err)
				}
			}
			t.Logf("how often so many were told 201: %v", winners)
		})
	}
}

// TestRecreateContainer has one replica miss a container's deletion: whoever
// creates it again is told 202, as if it were there. So a lease must never use
// the name of a container that was deleted again. That never two are told 201
// holds there too.
func TestRecreateContainer(t *testing.T) {
	r := harness.Replicated(t)
	s := login(t, r.Cloud).Container(harness.Name(t))
	behind := harness.ContainerServer(2)
	for range repeat(2) {
		if _, err := s.CreateContainer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		r.Stop(t, behind)
		if err := s.DeleteContainer(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.Start(t, behind)
		if n := createAtOnce(t, s, 1); n != 0 {
			t.Errorf("a replica has the container still, and its creator is told 201: FORMAT and PROTOCOL need another look")
		}
		if err := s.DeleteContainer(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := createAtOnce(t, s, 50); n > 1 {
			t.Errorf("%d of 50 were told that they had created the container again", n)
		}
	}
}

// createAtOnce has n create s's container at once and returns how many are told
// that they were the one.
func createAtOnce(t *testing.T, s store.Store, n int) (winners int) {
	t.Helper()
	var (
		g     sync.WaitGroup
		mu    sync.Mutex
		begin = make(chan struct{})
		errs  []error
	)
	for range n {
		g.Go(func() {
			<-begin
			created, err := s.CreateContainer(t.Context(), nil)
			mu.Lock()
			defer mu.Unlock()
			if created {
				winners++
			}
			// One that Swift could not do is nobody's, and may be tried again.
			if err != nil && !store.Transient(err) {
				errs = append(errs, err)
			}
		})
	}
	close(begin)
	g.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	return winners
}
