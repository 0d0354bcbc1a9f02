// SPDX-License-Identifier: MIT

package logdisk

import (
	"slices"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/store/etag"
)

// hashes gathers full objects on their way to Swift, so that several are hashed
// together (package etag). They wait for each other only while nobody waits for
// them: not when a flush waits, and not when clients wait for room while Swift has
// little to do. Then all go out, or where there is room for a batch beside them, as
// many as Swift lacks. Disk.mu guards it.
type hashes struct {
	gathered []*pendingHash
	putting  int           // objects that are hashed, with a PUT that has not ended
	hashing  bool          // a batch is being hashed
	vectors  *etag.Vectors // exists from the first batch until no object is being put
}

// pendingHash is an object that waits for its hash.
type pendingHash struct {
	p     []byte
	etag  store.ETag    // valid after ready; empty: the waiting goroutine hashes the object itself
	ready chan struct{} // closed when the object's turn has come
}

const (
	// leastGathered is how large an object is, at least, that waits for others,
	// bytes. It has half of what an object takes at least, too.
	leastGathered = 256 << 10
	// gatherTime is how long an object waits for others, at most.
	gatherTime = 500 * time.Millisecond
	// fewPuts is how many PUTs of full objects are little for Swift to do.
	fewPuts = 4
)

// hash returns the ETag of an object's bytes. The caller calls putEnded when the
// object is in Swift, or will not be.
func (d *Disk) hash(p []byte) store.ETag {
	one := &pendingHash{p: p, ready: make(chan struct{})}
	d.mu.Lock()
	if len(p) < max(d.o.Seal/2, leastGathered) {
		d.hashes.putting++
		d.mu.Unlock()
		return etag.Sum(p)
	}
	d.hashes.gathered = append(d.hashes.gathered, one)
	d.hashGathered(false)
	d.mu.Unlock()
	t := time.NewTimer(gatherTime)
	defer t.Stop()
	select {
	case <-one.ready:
	case <-t.C:
		d.hashOut()
	case <-d.ctx.Done():
		d.hashOut()
	}
	<-one.ready
	if one.etag == "" {
		return etag.Sum(p)
	}
	return one.etag
}

// hashOut has all hashed that is gathered.
func (d *Disk) hashOut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hashGathered(true)
}

// putEnded notes that a PUT has ended.
func (d *Disk) putEnded() {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := &d.hashes
	h.putting--
	d.hashGathered(false)
	if h.putting == 0 && h.vectors != nil { // and nothing is being hashed: it would count
		h.vectors.Close()
		h.vectors = nil
	}
}

// hashGathered begins to hash what is gathered if there is enough of it, or if
// now is set or somebody waits for it. d.mu is held.
func (d *Disk) hashGathered(now bool) {
	h := &d.hashes
	for len(h.gathered) > 0 {
		n := min(len(h.gathered), etag.Batch)
		switch {
		case now || d.crowd.waiting > 0:
		case !h.hashing && n >= etag.BatchMin:
		case h.putting < fewPuts && d.room.crowded():
			if d.room.reaches(int64(fewPuts+etag.BatchMin+1)*int64(d.o.Seal), d.lends()) {
				n = min(n, fewPuts-h.putting) // a batch of the others may come together
			}
		default:
			return
		}
		all := slices.Clone(h.gathered[:n])
		h.gathered = slices.Delete(h.gathered, 0, n)
		h.putting += n
		if h.hashing || n < etag.BatchMin {
			for _, one := range all {
				close(one.ready) // each goroutine hashes its own object
			}
			continue
		}
		h.hashing = true
		if h.vectors == nil {
			h.vectors = etag.NewVectors()
		}
		d.wg.Add(1)
		go d.hashBatch(h.vectors, all)
	}
}

// hashBatch hashes a batch with v, which is nobody else's meanwhile.
func (d *Disk) hashBatch(v *etag.Vectors, all []*pendingHash) {
	defer d.wg.Done()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.hashes.hashing = false
		for _, one := range all {
			close(one.ready) // also after a panic: without a sum each hashes its own
		}
		d.hashGathered(false)
	}()
	defer d.recoverPanic()
	data := make([][]byte, len(all))
	for i, one := range all {
		data[i] = one.p
	}
	for i, sum := range v.Sum(data) {
		all[i].etag = sum
	}
}
