// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"sync"
	"time"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/device"
	"swiftnbd/internal/metrics"
)

// disk is one container, open or not.
type disk struct {
	name string

	mu       sync.Mutex // guards all below; held while the device opens or closes
	clients  int
	device   *device.Device // nil: not open
	counts   *metrics.Volume
	readOnly bool // the device is
}

// close ends the device. d.mu is held.
func (d *disk) close() error {
	err := d.device.Close()
	var undrained *device.DrainError
	if errors.As(err, &undrained) {
		return err // it goes on
	}
	var lost *device.LostError
	if errors.As(err, &lost) && lost.Chunks > 0 {
		fail()
	}
	d.device = nil
	d.counts.Close()
	if debugLock() {
		nbdkit.Debugf("%s: closed", d.name)
	}
	return err
}

// leave is a client's end: the last one closes the disk.
func (d *disk) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clients--
	if d.clients > 0 || d.device == nil {
		return
	}
	if err := d.close(); err != nil {
		nbdkit.Errorf("%s: %v", d.name, err)
		if d.device != nil {
			go d.closeLater()
		}
	}
}

// closeLater goes on trying to write back what the last client left, until it
// is done or another client comes.
func (d *disk) closeLater() {
	defer recovered()
	for again := true; again; {
		time.Sleep(time.Second)
		d.mu.Lock()
		again = d.clients == 0 && d.device != nil && d.close() != nil && d.device != nil
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
		nbdkit.Errorf("%s: the lock is kept: the disk in Swift lacks these bytes", d.name)
		fail()
		d.counts.Close()
		d.device.Abandon()
		d.device = nil
	}
	return d.device == nil
}
