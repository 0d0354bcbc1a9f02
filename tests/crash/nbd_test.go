// SPDX-License-Identifier: MIT

package crash

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"testing"
)

// client is a plain NBD client: one request at a time, simple replies. It is
// written from the NBD protocol's doc/proto.md.
type client struct {
	conn net.Conn
	r    *bufio.Reader
	size int64
	tag  uint64
}

const (
	cmdRead, cmdWrite, cmdDisc, cmdFlush, cmdTrim, cmdZero = 0, 1, 2, 3, 4, 6
	flagFUA                                                = 1
)

// dial connects to the default export of a Unix socket.
func dial(uri string) (*client, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("unix", u.Query().Get("socket"))
	if err != nil {
		return nil, err
	}
	c := &client{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}
	if err := c.handshake(); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

func (c *client) handshake() error {
	var hello struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := binary.Read(c.r, binary.BigEndian, &hello); err != nil {
		return err
	}
	if hello.Magic != 0x4e42444d41474943 || hello.Option != 0x49484156454f5054 || hello.Flags&3 != 3 {
		return fmt.Errorf("not a fixed newstyle server: %+v", hello)
	}
	b := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	b = binary.BigEndian.AppendUint64(b, 0x49484156454f5054)
	b = binary.BigEndian.AppendUint32(b, 1) // NBD_OPT_EXPORT_NAME
	b = binary.BigEndian.AppendUint32(b, 0)
	if _, err := c.conn.Write(b); err != nil {
		return err
	}
	var export struct {
		Size  uint64
		Flags uint16
	}
	if err := binary.Read(c.r, binary.BigEndian, &export); err != nil {
		return err
	}
	c.size = int64(export.Size)
	return nil
}

// do makes one request and waits for its answer.
func (c *client) do(cmd, flags uint16, off int64, n int, data []byte) ([]byte, error) {
	c.tag++
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 28+len(data)), 0x25609513)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, c.tag)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	if _, err := c.conn.Write(append(b, data...)); err != nil {
		return nil, err
	}
	var reply struct {
		Magic, Errno uint32
		Tag          uint64
	}
	if err := binary.Read(c.r, binary.BigEndian, &reply); err != nil {
		return nil, err
	}
	if reply.Magic != 0x67446698 || reply.Tag != c.tag {
		return nil, fmt.Errorf("a reply that is none: %+v", reply)
	}
	if reply.Errno != 0 {
		return nil, nbdError(reply.Errno)
	}
	if cmd != cmdRead {
		return nil, nil
	}
	out := make([]byte, n)
	_, err := io.ReadFull(c.r, out)
	return out, err
}

// nbdError is an error that the server answered, which a connection that is
// cut does not.
type nbdError uint32

func (e nbdError) Error() string { return fmt.Sprintf("NBD error %d", uint32(e)) }

func (c *client) close() {
	_ = c.conn.Close()
}

func mustDial(t *testing.T, uri string) *client {
	t.Helper()
	c, err := dial(uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}
