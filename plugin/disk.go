// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/device"
	"swiftnbd/internal/metrics"
)

// disk is one container, open or not.
type disk struct {
	name string

	mu       sync.Mutex     // guards all below; held while the device opens or closes
	device   *device.Device // nil: not open
	clients  int            // of this device; 0 without one
	removed  bool           // the disk ends when its section is removed
	counts   *metrics.Volume
	readOnly bool // the device is
}

// close ends the device. d.mu is held.
func (d *disk) close() error {
	err := d.device.Close()
	var undrained *device.DrainError
	if errors.As(err, &undrained) {
		return err // the device goes on
	}
	var lost *device.LostError
	if err != nil && !errors.As(err, &lost) || lost != nil && lost.Chunks > 0 {
		fail() // the mark stays, or data is lost
	}
	d.device, d.clients = nil, 0
	d.counts.Close()
	if debugLock() {
		nbdkit.Debugf("%s: closed", d.name)
	}
	return err
}

// full returns an error if the device has limit clients already, and otherwise
// nil. d.mu is held.
func (d *disk) full(limit int) error {
	if limit == 0 || d.clients < limit {
		return nil
	}
	return fmt.Errorf("clients=%d: %d connected already, the next is turned away", limit, d.clients)
}

// leave is called when a client of dev ends. The last client closes the disk.
// If the section was removed, a client may end later than its device. It closes
// nothing then.
func (d *disk) leave(dev *device.Device) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.device != dev {
		return
	}
	d.clients--
	if debugLock() {
		nbdkit.Debugf("%s: a client has left, and %d stay", d.name, d.clients)
	}
	if d.clients > 0 {
		return
	}
	if err := d.close(); err != nil {
		nbdkit.Errorf("%s: %v", d.name, err)
		if d.device != nil {
			go d.closeLater()
		}
	}
}

// closeLater tries again to write back what the last client left, until it
// succeeds or another client comes, or another process has the disk.
func (d *disk) closeLater() {
	defer recovered()
	for again := true; again; {
		time.Sleep(time.Second)
		d.mu.Lock()
		if again = d.clients == 0 && d.device != nil; again {
			err := d.close()
			again = d.device != nil // then the error is the one that was printed
			if err != nil && !again {
				nbdkit.Errorf("%s: %v", d.name, err)
			}
		}
		d.mu.Unlock()
	}
}

// end closes the disk if it is open, and says whether it is closed now.
func (d *disk) end(last bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.device == nil {
		return true
	}
	err := d.close()
	if err == nil {
		return true
	}
	nbdkit.Errorf("%s: %v", d.name, err)
	if d.device != nil && last {
		nbdkit.Errorf("%s: the lock is kept: the disk in Swift lacks these bytes, which are lost. What was flushed is there: look at the disk, and free it with \"swiftnbd-ctl unlock %[1]s\"", d.name)
		fail()
		d.counts.Close()
		d.device.Abandon()
		d.device, d.clients = nil, 0
	}
	return d.device == nil
}
