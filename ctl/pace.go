// SPDX-License-Identifier: MIT

package main

import (
	"os"
	"time"

	"swiftnbd/internal/store"
)

// pace says how long a run waits for what, how much it holds, and when its work is
// worth a note. Each test has its own, and a shorter one.
type pace struct {
	// contact is how long the first requests of a verb are tried, while a person
	// sits in front of the terminal. work is for those after them: a download may
	// run over night.
	contact, work store.Policy
	// verify is how long an object of a disk of version 2 is looked for that has to
	// be there, and that Swift does not find.
	verify time.Duration
	// youngest is how old an object that nothing needs has to be, and the newest
	// root with it, before verify deletes it: docs/FORMAT-V2.md, "Deleting".
	youngest time.Duration
	// setup is how long a disk that is just being made by somebody else gets at
	// least, where the container is there and holds no disk. Whose turn it is not,
	// waits for three to five times as long.
	setup time.Duration
	// ours is how long a look at the lock of a disk that is deleted is good for.
	ours time.Duration
	// uploadTerm is the lease of an upload, as downloadTerm is that of a download.
	uploadTerm time.Duration
	// uploadNote and downloadNote are the times between two notes of how far an
	// upload or a download is.
	uploadNote, downloadNote time.Duration
	// uploadCache is the least cache of a disk that an upload writes, bytes.
	uploadCache int64
	// A download that has got less than keptBytes, and less than keptChunks, is not
	// kept when it ends too early: it is there again in a moment.
	keptBytes, keptChunks int64
	// sync is os.File.Sync.
	sync func(*os.File) error
}

// usual is the pace of the program.
var usual = pace{
	contact:      store.Policy{Timeout: 20 * time.Second, Attempt: 20 * time.Second},
	work:         store.Policy{Timeout: 2 * time.Minute, Attempt: time.Minute},
	verify:       10 * time.Second,
	youngest:     10 * time.Minute,
	setup:        time.Second,
	ours:         2 * time.Second,
	uploadTerm:   30 * time.Second,
	uploadNote:   15 * time.Second,
	downloadNote: 15 * time.Second,
	uploadCache:  16 << 20,
	keptBytes:    16 << 20,
	keptChunks:   4096,
	sync:         (*os.File).Sync,
}
