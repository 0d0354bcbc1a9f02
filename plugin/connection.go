// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"math/bits"
	"time"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/device"
	"swiftnbd/internal/metrics"
	"swiftnbd/internal/volume"
)

// connection is the connection of one NBD client.
type connection struct {
	nbdkit.Connection
	disk        *disk
	device      *device.Device
	counts      *metrics.Volume
	processors  *processors
	readOnly    bool
	alone       bool // no other client may connect
	description string
}

func (c *connection) Close() { c.disk.leave(c.device) }

func (c *connection) GetSize() (uint64, error)           { return uint64(c.device.Size()), nil }
func (c *connection) ExportDescription() (string, error) { return c.description, nil }

// BlockSize: any byte may be written by itself, and whole objects are written
// best. No request may be larger than 32 MiB, which is the protocol's limit for
// clients that do not ask.
func (c *connection) BlockSize() (minimum, preferred, maximum uint32, err error) {
	return 1, preferredBlock(c.device.Preferred()), 32 << 20, nil
}

// preferredBlock returns the largest power of two that is not above the size of
// requests that cost least, within nbdkit's bounds of 512 bytes and 32 MiB.
func preferredBlock(preferred int64) uint32 {
	p := int64(1) << (bits.Len64(uint64(preferred)) - 1)
	return uint32(min(max(p, 512), 32<<20))
}

func (c *connection) CanWrite() (bool, error)    { return !c.readOnly, nil }
func (c *connection) CanFlush() (bool, error)    { return true, nil }
func (c *connection) CanTrim() (bool, error)     { return !c.readOnly, nil }
func (c *connection) CanZero() (bool, error)     { return !c.readOnly, nil }
func (c *connection) CanFastZero() (bool, error) { return !c.readOnly, nil }
func (c *connection) CanFUA() (uint32, error)    { return nbdkit.FUANative, nil }
func (c *connection) CanCache() (uint32, error)  { return nbdkit.CacheNative, nil }

// CanMultiConn: all connections share one device. A connection therefore reads
// what the others have written, and a flush covers every write that was
// completed before it on any of them. NBD asks for this. If no second client
// may connect, it is not offered: clients that open several connections at once
// would fail.
func (c *connection) CanMultiConn() (bool, error) { return !c.alone, nil }

func (c *connection) PRead(buf []byte, offset uint64, flags uint32) error {
	begun := time.Now()
	c.counts.Read.Add(int64(len(buf)))
	c.processors.count(len(buf))
	_, err := c.device.ReadAt(buf, int64(offset))
	return c.ended(metrics.Read, begun, err)
}

func (c *connection) PWrite(buf []byte, offset uint64, flags uint32) error {
	begun := time.Now()
	c.counts.Written.Add(int64(len(buf)))
	c.processors.count(len(buf))
	return c.ended(metrics.Write, begun, c.device.WriteFUA(buf, int64(offset), flags&nbdkit.FlagFUA != 0))
}

func (c *connection) Flush(flags uint32) error {
	begun := time.Now()
	return c.ended(metrics.Flush, begun, c.device.Sync())
}

func (c *connection) Trim(count uint32, offset uint64, flags uint32) error {
	begun := time.Now()
	return c.ended(metrics.Trim, begun, c.device.Trim(int64(offset), int64(count), flags&nbdkit.FlagFUA != 0))
}

func (c *connection) Zero(count uint32, offset uint64, flags uint32) error {
	begun := time.Now()
	return c.ended(metrics.Zero, begun, c.device.Zero(int64(offset), int64(count),
		flags&nbdkit.FlagFUA != 0, flags&nbdkit.FlagFastZero != 0))
}

// ended counts a request, and turns its error into an errno.
func (c *connection) ended(r metrics.Request, begun time.Time, err error) error {
	c.counts.Took(r, begun, err)
	return toErrno(err)
}

// Cache begins to fetch and does not wait. Later reads wait for the data. To
// wait here would help nobody. And the readahead filter of nbdkit 1.32 makes
// this call in a thread of its own, and crashes if nbdkit ends during the call.
func (c *connection) Cache(count uint32, offset uint64, flags uint32) error {
	return toErrno(c.device.Advise(int64(offset), int64(count)))
}

func (c *connection) Extents(count uint32, offset uint64, flags uint32, extents *nbdkit.Extents) error {
	return toErrno(tellExtents(c.device, int64(offset), int64(count), flags&nbdkit.FlagReqOne != 0, func(off, n int64, hole bool) error {
		var kind uint32
		if hole {
			kind = nbdkit.ExtentHole | nbdkit.ExtentZero
		}
		return extents.Add(uint64(off), uint64(n), kind)
	}))
}

// oneExtent is how much tellExtents looks at first where one extent is asked for, in
// multiples of device.Disk.Preferred: chunks, or blocks. What is not known of chunks is
// asked of Swift for that many at once.
const oneExtent = 256

// tellExtents calls add for the extents of the range. With one, the first is enough: qemu
// asks for one at a time, always with all that is left of its range. To look at all of it
// each time would take a time that grows with the square of the number of extents.
func tellExtents(d interface {
	Extents(off, n int64, emit func(off, n int64, hole bool) bool) error
	Preferred() int64
}, off, n int64, one bool, add func(off, n int64, hole bool) error) error {
	at, end := off, off+n
	window := n
	if one {
		window = oneExtent * d.Preferred()
	}
	var first, other bool // the first extent is a hole; another one has begun
	for at < end && !other {
		to := min(end, at+window)
		var failed error
		err := d.Extents(at, to-at, func(o, length int64, hole bool) bool {
			if o == off {
				first = hole
			}
			if other = one && hole != first; other {
				return false
			}
			failed = add(o, length, hole)
			at = o + length
			return failed == nil
		})
		switch {
		case failed != nil:
			return failed
		case err != nil && at > off:
			return nil // what is known is told; the next call has the error
		case err != nil:
			return err
		case at < to:
			return nil // more than fits into an answer
		}
		window *= 4
	}
	return nil
}

func describeVolume(d *device.Device, readOnly bool) string {
	meta := d.Meta()
	meta.Size = d.Size() // it may have grown
	return description(meta, readOnly) + describeSession(d.Session())
}

// describeSession says in a description which session of the disk this is, and which
// one wrote before it. "swiftnbd-ctl attach --persist" reads it: a client that
// connects again can tell whether somebody else has had the disk meanwhile.
func describeSession(mark, after string) string {
	switch {
	case mark == "":
		return ""
	case after == "":
		return ", session " + mark
	}
	return ", session " + mark + " after " + after
}

// description is the description of a disk for clients.
func description(meta volume.Meta, readOnly bool) string {
	s := humanSize(meta.Size)
	if meta.Version == volume.Version1 {
		s += " in objects of " + humanSize(meta.Geometry.ObjectSize())
	} else {
		s += fmt.Sprintf(" in version %d of the format", meta.Version)
	}
	if readOnly {
		s += ", read-only"
	}
	return s
}

// humanSize writes a size with the largest unit that divides it.
func humanSize(n int64) string {
	for _, u := range []struct {
		bytes int64
		name  string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.bytes && n%u.bytes == 0 {
			return fmt.Sprintf("%d %s", n/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
