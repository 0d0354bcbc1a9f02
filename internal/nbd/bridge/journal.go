// SPDX-License-Identifier: MIT

package bridge

// journal has the changes that the server has acknowledged and that no flush
// covers yet, in the order of their acknowledgements. Two changes of one place
// are in their order, since a client sends the second one only when it has the
// answer to the first; where it sends both at once, any order is right.
//
// A change with FUA is in it too. It is durable, but an older one of the same
// place may be in the journal, and must not come after it.
type journal struct {
	limit   int64 // of bytes
	changes []change
	bytes   int64
	last    uint64 // the number of the newest change
	missing uint64 // the number of the newest change that was not kept; 0: none
}

type change struct {
	number uint64
	r      *request
}

// overhead is what a change costs beside its bytes.
const overhead = 256

func cost(r *request) int64 { return int64(len(r.data)) + overhead }

func (j *journal) len() int { return len(j.changes) }

// full says whether no further change is kept.
func (j *journal) full() bool { return j.bytes >= j.limit }

// add adds a change. If the journal is full, it has a gap from then on, until a
// flush covers it.
func (j *journal) add(r *request) {
	j.last++
	if j.full() {
		j.missing = j.last
		return
	}
	j.changes = append(j.changes, change{j.last, r})
	j.bytes += cost(r)
}

// flushed forgets the changes up to number, which are durable.
func (j *journal) flushed(number uint64) {
	n := 0
	for n < len(j.changes) && j.changes[n].number <= number {
		j.bytes -= cost(j.changes[n].r)
		n++
	}
	clear(j.changes[:n])
	j.changes = j.changes[n:]
	if len(j.changes) == 0 {
		j.changes = nil
	}
	if j.missing <= number {
		j.missing = 0
	}
}
