// SPDX-License-Identifier: MIT

package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Disk says how one disk is served: memory, patience, lease. Each value comes
// from the section, or from [DEFAULT], or from the command line. The zero value
// stands for the default.
type Disk struct {
	Clients      int           // connected at once; 0: any number
	Connections  int           // requests to the account at once; 0: the default
	Timeout      time.Duration // how long Swift may fail; 0: the default
	Cache        int64         // bytes; 0: chosen from the object size
	WriteThrough bool
	Readahead    int64         // bytes; 0: chosen, negative: none
	Age          time.Duration // of chunks that are dirty in part; 0: the default
	FlushTime    time.Duration // of the data that may be dirty; 0: the default, negative: no bound
	Compress     bool          // what is written, where that saves bytes
	GC           int           // percent of a log that is live at least; 0: the default, negative: never
	Lease        time.Duration // 0: the default, negative: none
	EndRemoved   bool          // the disk ends when its section is removed
	Follow       time.Duration // of a disk that is read: how old its moment may be; 0: it stays
	Snapshot     string        // the snapshot that is served, read-only; empty: the disk
}

// The defaults of Disk, and the bounds of its values.
const (
	DefaultConnections = 16
	maxConnections     = 4096
	maxClients         = 65536
	DefaultTimeout     = 60 * time.Second
	// DefaultLease is long enough to survive a few lost requests in a row, or a
	// restart of Swift's proxies. It is short enough to wait for after a crash.
	DefaultLease = 30 * time.Second
	// minLease leaves a holder more time than the second by which it may
	// misread Swift's clock.
	minLease = 5 * time.Second
	// minFlushTime is longer than a request to a distant Swift.
	minFlushTime = 100 * time.Millisecond
	// DefaultGC is what device.DefaultGC is.
	DefaultGC = 70
	// Less garbage than 100 - maxGC percent is never worth its copying; less
	// live data than minGC percent is no log that anybody wants to pay for.
	minGC, maxGC = 20, 95
)

// DiskParameter is a setting of a disk that both nbdkit's command line and the
// sections of the secrets file take, under one key and in one form.
type DiskParameter struct {
	Key   string
	Usage string // what follows "KEY=" in the help
	Help  string
	// Set takes a value. Its error says what is wrong, without the key.
	Set func(d *Disk, value string) error
}

// DiskParameters are all of them, in alphabetical order.
var DiskParameters = []DiskParameter{
	{"cache", "SIZE", "Memory for the cache of a disk, clean and dirty (default: 64M, or more for large objects).",
		func(d *Disk, v string) (err error) {
			if d.Cache, err = ParseSize(v); err == nil && d.Cache < 1 {
				err = errors.New("must be more than 0")
			}
			return err
		}},
	{"cache-mode", "writeback|writethrough", "When writes go to Swift: in the background and on flush, or at once (default: writeback).",
		func(d *Disk, v string) error {
			if v != "writeback" && v != "writethrough" {
				return errors.New("must be writeback or writethrough")
			}
			d.WriteThrough = v == "writethrough"
			return nil
		}},
	{"clients", "N", "How many clients may be connected to a disk at once (default: no limit).",
		func(d *Disk, v string) error {
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 || n > maxClients {
				return fmt.Errorf("must be a whole number from 1 to %d", maxClients)
			}
			d.Clients = n
			return nil
		}},
	{"compression", "none|zstd", "Of a disk of version 2: compress what is written, where that saves bytes (default: none).",
		func(d *Disk, v string) error {
			if v != "none" && v != "zstd" {
				return errors.New("must be none or zstd")
			}
			d.Compress = v == "zstd"
			return nil
		}},
	{"connections", "N", fmt.Sprintf("How many requests may be under way to an account at once (default: %d).", DefaultConnections),
		func(d *Disk, v string) error {
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 || n > maxConnections {
				return fmt.Errorf("must be a whole number from 1 to %d", maxConnections)
			}
			d.Connections = n
			return nil
		}},
	{"flush-time", "SECONDS", "How long a flush may take. Writers wait when it would take longer. 0 is no bound (default: 2).",
		func(d *Disk, v string) (err error) {
			if v == "0" {
				d.FlushTime = -1
				return nil
			}
			d.FlushTime, err = ParseSeconds(v)
			if err == nil && d.FlushTime < minFlushTime {
				err = fmt.Errorf("must be 0 or at least %g", minFlushTime.Seconds())
			}
			return err
		}},
	{"follow", "SECONDS", "Of a disk of version 2: serve it read-only, as it was this long ago at most. 0 is as it was at the start (default: 0).",
		func(d *Disk, v string) (err error) {
			if v == "0" {
				d.Follow = 0
				return nil
			}
			d.Follow, err = ParseSeconds(v)
			return err
		}},
	{"gc", "PERCENT", fmt.Sprintf("Of a disk of version 2: collect garbage when less than this of its log is in use. 0 is never (default: %d).", DefaultGC),
		func(d *Disk, v string) error {
			n, err := strconv.Atoi(strings.TrimSuffix(v, "%"))
			if err != nil || n != 0 && (n < minGC || n > maxGC) {
				return fmt.Errorf("must be 0 or a percentage from %d to %d", minGC, maxGC)
			}
			if d.GC = n; n == 0 {
				d.GC = -1
			}
			return nil
		}},
	{"lease", "SECONDS", fmt.Sprintf("The length of the lease. 0 is no lease, only swiftnbd 0.11's mark (default: %.0f).", DefaultLease.Seconds()),
		func(d *Disk, v string) (err error) {
			if v == "0" {
				d.Lease = -1
				return nil
			}
			d.Lease, err = ParseSeconds(v)
			if err == nil && d.Lease < minLease {
				err = fmt.Errorf("must be 0 or at least %.0f", minLease.Seconds())
			}
			return err
		}},
	{"readahead", "SIZE", "How much to fetch ahead of sequential readers. 0 is nothing (default: connections x object size).",
		func(d *Disk, v string) (err error) {
			if d.Readahead, err = ParseSize(v); err == nil && d.Readahead == 0 {
				d.Readahead = -1
			}
			return err
		}},
	{"removed", "keep|end", "What happens to connected clients when the section is removed from the secrets file (default: keep).",
		func(d *Disk, v string) error {
			if v != "keep" && v != "end" {
				return errors.New("must be keep or end")
			}
			d.EndRemoved = v == "end"
			return nil
		}},
	{"snapshot", "NAME", "Of a disk of version 2: serve this snapshot of it, read-only.",
		func(d *Disk, v string) error {
			if d.Snapshot = v; v == "" {
				return errors.New("empty")
			}
			return nil
		}},
	{"timeout", "SECONDS", fmt.Sprintf("How long Swift may fail before a client gets an error (default: %.0f).", DefaultTimeout.Seconds()),
		func(d *Disk, v string) (err error) {
			d.Timeout, err = ParseSeconds(v)
			return err
		}},
	{"writeback-age", "SECONDS", "When a chunk that was written in part goes to Swift without a flush (default: 5).",
		func(d *Disk, v string) (err error) {
			d.Age, err = ParseSeconds(v)
			return err
		}},
}

func init() {
	for _, p := range DiskParameters {
		settings[p.Key] = func(v string) error {
			if v == "" {
				return errors.New("empty")
			}
			return p.check(v)
		}
	}
}

// check says what is wrong with a value of a section. Its error quotes the
// value.
func (p DiskParameter) check(v string) error {
	if err := p.Set(new(Disk), v); err != nil && strings.Contains(err.Error(), v) {
		return err
	} else if err != nil {
		return fmt.Errorf("%q: %w", v, err)
	}
	return nil
}

// disk returns the settings of a container's disk. Those of its section and of
// [DEFAULT] replace the command line's.
func (s *Secrets) disk(container string, d Disk) Disk {
	for _, p := range DiskParameters {
		if v, from := s.get(container, p.Key); from != "" {
			_ = p.Set(&d, v) // checked when the file was parsed
		}
	}
	return d.complete()
}

// complete fills in the defaults that do not depend on the volume.
func (d Disk) complete() Disk {
	if d.Connections == 0 {
		d.Connections = DefaultConnections
	}
	if d.Timeout == 0 {
		d.Timeout = DefaultTimeout
	}
	if d.Lease == 0 {
		d.Lease = DefaultLease
	}
	return d
}

// Reads says whether the disk is served read-only because of what is served of it.
func (d Disk) Reads() bool { return d.Snapshot != "" || d.Follow > 0 }

// LeaseTerm returns the lease's length, 0 for none.
func (d Disk) LeaseTerm() time.Duration { return max(0, d.Lease) }

// Overridden returns the keys of the command line that have no effect on the
// container's disk, because its section or [DEFAULT] has them.
func (s *Secrets) Overridden(container string, keys []string) []string {
	var set []string
	for _, key := range keys {
		isDisk := slices.ContainsFunc(DiskParameters, func(p DiskParameter) bool { return p.Key == key })
		if _, from := s.get(container, key); isDisk && from != "" {
			set = append(set, key)
		}
	}
	return set
}

// Blame returns err with the place in the file that sets the key for the
// container. If the file does not set the key, Blame returns err unchanged.
func (s *Secrets) Blame(container, key string, err error) error {
	if _, from := s.get(container, key); from != "" {
		return s.fault(from, key, err)
	}
	return err
}

// ParseSeconds reads a positive number of seconds, which may have a fraction.
func ParseSeconds(v string) (time.Duration, error) {
	f, err := strconv.ParseFloat(strings.TrimSuffix(v, "s"), 64)
	if err != nil || !(f > 0 && f <= 24*3600) {
		return 0, errors.New("must be a number of seconds, more than 0 and at most 86400")
	}
	d := time.Duration(f * float64(time.Second))
	if d == 0 { // which would mean the default, or none
		return 0, errors.New("must be at least a nanosecond, 1e-9")
	}
	return d, nil
}
