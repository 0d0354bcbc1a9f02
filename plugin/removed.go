// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"time"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/config"
)

// Sections that are removed from the secrets file, while clients use their
// disks. With removed=end such a disk is closed as at nbdkit's end: requests
// are turned away, dirty data is written back, mark and lease are given back.
// Its clients stay connected, since nbdkit 1.32 cannot end a single connection
// from outside. Each of their requests ends with ESHUTDOWN. When the section is
// back, the next client opens the disk anew.

// watchEvery is the pause between two looks at the secrets file. A section has
// to be missing at two of them: the file may be half written at the first.
const watchEvery = time.Second

// watch ends the disks whose sections have been removed, until nbdkit ends.
func (e *exports) watch() {
	var before, said *config.Secrets
	for {
		time.Sleep(watchEvery)
		e.mu.Lock()
		closing := e.closing
		disks := make([]*disk, 0, len(e.disks))
		for _, d := range e.disks {
			disks = append(disks, d)
		}
		e.mu.Unlock()
		if closing {
			return
		}
		now := e.current()
		switch {
		case now != before:
		case len(now.Containers()) == 0:
			// An editor that has emptied the file, or a full file system, is
			// more likely than a user who ends all disks in this way.
			if now != said && len(disks) > 0 {
				nbdkit.Errorf("%s has no section any more: this ends no disk", e.params.secretsPath())
				said = now
			}
		default:
			for _, d := range disks {
				if !now.Has(d.name) {
					goLogged(func() { e.remove(d) })
				}
			}
		}
		before = now
	}
}

// remove ends the disk, if its section had removed=end. If some data cannot be
// written back, the disk goes on, and watch tries again.
func (e *exports) remove(d *disk) {
	if !d.mu.TryLock() {
		return // it is being opened or closed: watch tries again
	}
	defer d.mu.Unlock()
	if d.device == nil || !d.removed || e.current().Has(d.name) {
		return
	}
	clients := d.clients
	switch err := d.close(); {
	case d.device != nil:
		nbdkit.Errorf("%s: its section has been removed, and it cannot end yet: %v", d.name, err)
	case err != nil:
		nbdkit.Errorf("%s: its section has been removed: %v", d.name, err)
	default:
		nbdkit.Errorf("%s: its section has been removed: all is written, the lock is given back, and %s from now on", d.name, get(clients))
	}
}

// get says how many clients get errors.
func get(clients int) string {
	if clients == 1 {
		return "1 client gets errors"
	}
	return fmt.Sprintf("%d clients get errors", clients)
}
