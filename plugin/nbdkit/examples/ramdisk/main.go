// SPDX-License-Identifier: MIT

// Command ramdisk is a plugin for nbdkit: a disk in memory, shared by all
// clients. It works in all the ways that nbdkit can be started:
//
//	../../build-plugin.sh ./nbdkit-goramdisk-plugin.so .
//	nbdkit ./nbdkit-goramdisk-plugin.so 64M
package main

import (
	"errors"
	"sync"

	"libguestfs.org/nbdkit"
)

func init() { nbdkit.Register("goramdisk", &ramdisk{}) }

// main is never called, but a main package has to have one.
func main() {}

// ramdisk is the plugin.
type ramdisk struct {
	nbdkit.Plugin
	size int64

	mu   sync.RWMutex
	data []byte
}

func (r *ramdisk) Version() string     { return "1.0" }
func (r *ramdisk) LongName() string    { return "RAM disk in Go" }
func (r *ramdisk) Description() string { return "A disk in memory, empty at the start." }
func (r *ramdisk) ConfigHelp() string {
	return "[size=]<SIZE>  (required) Size of the disk, for example 64M."
}
func (r *ramdisk) MagicConfigKey() string { return "size" }

func (r *ramdisk) Config(key, value string) (err error) {
	if key != "size" {
		return nbdkit.UnknownParameter(key)
	}
	r.size, err = nbdkit.ParseSize(value)
	return err
}

func (r *ramdisk) ConfigComplete() error {
	if r.size == 0 {
		return errors.New("size=<SIZE> is required")
	}
	return nil
}

// AfterFork runs in the process that serves: here is the place for memory,
// goroutines and connections.
func (r *ramdisk) AfterFork() error {
	r.data = make([]byte, r.size)
	return nil
}

func (r *ramdisk) Open(readonly bool) (nbdkit.ConnectionInterface, error) {
	return &connection{ramdisk: r}, nil
}

// connection is one client's.
type connection struct {
	nbdkit.Connection
	*ramdisk
}

func (c *connection) GetSize() (uint64, error)    { return uint64(c.size), nil }
func (c *connection) CanMultiConn() (bool, error) { return true, nil }
func (c *connection) CanWrite() (bool, error)     { return true, nil }
func (c *connection) CanFlush() (bool, error)     { return true, nil }
func (c *connection) CanZero() (bool, error)      { return true, nil }

// CanFUA is native: a disk in memory is as durable as it gets.
func (c *connection) CanFUA() (uint32, error) { return nbdkit.FUANative, nil }

// Flush has nothing to do.
func (c *connection) Flush(flags uint32) error { return nil }

func (c *connection) PRead(buf []byte, offset uint64, flags uint32) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	copy(buf, c.data[offset:])
	return nil
}

func (c *connection) PWrite(buf []byte, offset uint64, flags uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	copy(c.data[offset:], buf)
	return nil
}

func (c *connection) Zero(count uint32, offset uint64, flags uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.data[offset : offset+uint64(count)])
	return nil
}
