// SPDX-License-Identifier: MIT

package nbdkit_test

import (
	"errors"
	"fmt"
	"syscall"

	"libguestfs.org/nbdkit"
)

// ones is a plugin: a disk of as many bytes as its parameter says, all 0x01.
type ones struct {
	nbdkit.Plugin
	size int64
}

func (o *ones) Config(key, value string) (err error) {
	if key != "size" {
		return nbdkit.UnknownParameter(key)
	}
	o.size, err = nbdkit.ParseSize(value)
	return err
}

func (o *ones) Open(readonly bool) (nbdkit.ConnectionInterface, error) {
	return &client{disk: o}, nil
}

// client is one client's connection.
type client struct {
	nbdkit.Connection
	disk *ones
}

func (c *client) GetSize() (uint64, error) { return uint64(c.disk.size), nil }

func (c *client) PRead(buf []byte, offset uint64, flags uint32) error {
	for i := range buf {
		buf[i] = 1
	}
	return nil
}

// A plugin is tested without nbdkit by calling what nbdkit would call, in its
// order. In a real one, an init function registers it: see the folder examples.
func Example() {
	var plugin nbdkit.PluginInterface = &ones{}

	err := plugin.Config("colour", "blue")
	fmt.Println(err, errors.Is(err, syscall.EINVAL))
	if err := plugin.Config("size", "64K"); err != nil {
		fmt.Println(err)
	}

	conn, err := plugin.Open(true)
	if err != nil {
		fmt.Println(err)
		return
	}
	size, err := conn.GetSize()
	fmt.Println(size, err)
	buf := make([]byte, 4)
	err = conn.PRead(buf, 512, 0)
	fmt.Println(buf, err)
	canWrite, err := conn.CanWrite()
	fmt.Println(canWrite, err)
	// Output:
	// unknown parameter 'colour' (errno 22) true
	// 65536 <nil>
	// [1 1 1 1] <nil>
	// false <nil>
}
