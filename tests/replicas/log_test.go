// SPDX-License-Identifier: MIT

package replicas

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/tests/harness"
)

// logDisk is a volume of version 2 of the format on the Swift with three
// replicas. It is driven without a lease: each session has the next number.
type logDisk struct {
	*harness.Replicas
	t       *testing.T
	store   store.Store
	uuid    layout.UUID
	root    string
	epoch   uint32
	durable layout.Position // of the newest session
	want    []byte
	disk    *logdisk.Disk
}

const logSize = 8 << 20

func newLogDisk(t *testing.T) *logDisk {
	t.Helper()
	r := harness.Replicated(t)
	d := &logDisk{Replicas: r, t: t, uuid: layout.NewUUID(), want: make([]byte, logSize)}
	d.store = login(t, r.Cloud).Container(harness.Name(t))
	if _, err := d.store.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var err error
	if d.root, err = logdisk.Setup(t.Context(), d.store, d.uuid, logSize); err != nil {
		t.Fatal(err)
	}
	return d
}

// open begins a session, which finds the newest root by itself.
func (d *logDisk) open(patience time.Duration) error {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 2*time.Minute)
	defer cancel()
	// The same number again if a session could not begin: it has written nothing.
	disk, err := logdisk.Open(ctx, logdisk.Options{
		Store: store.Retry(d.store, store.Policy{Timeout: patience}), UUID: d.uuid, Root: d.root, Epoch: d.epoch + 1,
		Durable: d.durable, Checkpoint: 5, Timeout: patience, Log: d.t.Logf,
	})
	if err != nil {
		return err
	}
	d.epoch++
	d.disk = disk
	return nil
}

func (d *logDisk) mustOpen(when string) {
	d.t.Helper()
	if err := d.open(30 * time.Second); err != nil {
		d.t.Fatalf("%s: %v", when, err)
	}
}

// write writes n objects, each flushed.
func (d *logDisk) write(seed uint64, n int) {
	d.t.Helper()
	for i := range n {
		p := harness.Random(seed+uint64(i), 3*layout.BlockSize)
		off := int64((seed*31+uint64(i)*17)%(logSize/layout.BlockSize-3)) * layout.BlockSize
		if err := d.disk.Write(d.t.Context(), p, off); err != nil {
			d.t.Fatal(err)
		}
		if err := d.disk.Flush(d.t.Context()); err != nil {
			d.t.Fatal(err)
		}
		copy(d.want[off:], p)
	}
	d.durable = d.disk.Durable()
}

// check reads everything.
func (d *logDisk) check(when string) {
	d.t.Helper()
	p := make([]byte, logSize)
	if err := d.disk.Read(d.t.Context(), p, 0); err != nil {
		d.t.Fatalf("%s: %v", when, err)
	}
	if !bytes.Equal(p, d.want) {
		d.t.Fatalf("%s: the disk is not what was flushed", when)
	}
}

// crash ends the session with nothing saved.
func (d *logDisk) crash() {
	d.disk.Close()
	d.disk = nil
}

// TestLogReplicas has one object server away while a disk of version 2 is
// written: its objects, runs and roots have no replica there. Whichever server is
// away later, who opens the disk finds the newest root and all of the log. Where
// both servers are away that have something, opening is an error, and the disk is
// whole as soon as they are back.
func TestLogReplicas(t *testing.T) {
	d := newLogDisk(t)
	for round := range repeat(1) {
		behind, first, second := harness.ObjectServer(round), harness.ObjectServer(round+1), harness.ObjectServer(round+2)
		d.Stop(t, behind)
		d.mustOpen("one server away")
		d.write(uint64(round)<<16, 12)
		d.check("written with " + behind + " away")
		d.crash()
		d.Start(t, behind)

		d.Stop(t, first)
		d.mustOpen(behind + " lacks it, " + first + " is away")
		d.check(behind + " lacks it, " + first + " is away")
		d.write(uint64(round)<<16+100, 8)
		d.crash()

		d.Stop(t, second)
		if err := d.open(3 * time.Second); err == nil {
			t.Fatalf("opened with %s and %s away", first, second)
		} else {
			t.Logf("with %s and %s away: %v", first, second, err)
		}
		d.Start(t, first, second)
		d.mustOpen("all are back")
		d.check("all are back")
		d.crash()
	}
}

// TestLogForgotten has two of three object servers lose their replicas of the
// newest objects. The third alone has them, and the disk is read. Then the third
// is away, too, and Swift says by a majority that there are none. They are known
// to have been durable, so opening names the object that is away, and cuts
// nothing off. When the third is back, all is there.
func TestLogForgotten(t *testing.T) {
	d := newLogDisk(t)
	d.mustOpen("first")
	d.write(2, 1)
	root := d.disk.RootName()
	// From here on the two keep nothing.
	remember := []func(){d.Forget(t, 0), d.Forget(t, 1)}
	d.write(3, 2)
	if d.disk.RootName() != root {
		t.Fatal("a checkpoint came between")
	}
	d.check("two have forgotten what there was, and are there")
	d.crash()
	for _, r := range remember {
		r()
	}
	d.Stop(t, harness.ObjectServer(2))
	var away *logdisk.AwayError
	if err := d.open(3 * time.Second); !errors.As(err, &away) {
		t.Fatalf("two objects of the log are away, and opening says: %v", err)
	}
	t.Logf("%v", away)
	d.Start(t, harness.ObjectServer(2))
	d.mustOpen("the third is back")
	d.check("the third is back")
	d.crash()
}
