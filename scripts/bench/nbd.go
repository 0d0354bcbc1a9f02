// SPDX-License-Identifier: MIT

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// nbdConn is an NBD client's connection, as the protocol's document
// (doc/proto.md of the nbd project) has it: fixed newstyle, NBD_OPT_EXPORT_NAME,
// simple replies. It is there for what fio can't do: holding the disk open,
// warming and filling it, and reading at chosen places.
type nbdConn struct {
	net.Conn
	size int64
}

// Numbers of the protocol.
const (
	nbdOptMagic     = 0x49484156454f5054
	nbdOptExport    = 1
	nbdRequestMagic = 0x25609513
	nbdReplyMagic   = 0x67446698
	nbdRead         = 0
	nbdWrite        = 1
	nbdFlush        = 3
)

// dialNBD connects to the default export.
func dialNBD(socket string) (*nbdConn, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	c := &nbdConn{Conn: conn}
	if err := c.handshake(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("NBD handshake: %w", err)
	}
	return c, nil
}

func (c *nbdConn) handshake() error {
	var hello [18]byte // magic, magic of newstyle, flags
	if _, err := io.ReadFull(c, hello[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(hello[8:]) != nbdOptMagic {
		return errors.New("no newstyle server")
	}
	var ask [20]byte
	binary.BigEndian.PutUint32(ask[0:], 3) // fixed newstyle, no zeroes
	binary.BigEndian.PutUint64(ask[4:], nbdOptMagic)
	binary.BigEndian.PutUint32(ask[12:], nbdOptExport)
	if _, err := c.Write(ask[:]); err != nil {
		return err
	}
	var answer [10]byte // size, transmission flags
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return err
	}
	c.size = int64(binary.BigEndian.Uint64(answer[:]))
	return nil
}

// request is one that is sent; reply waits for the one that is answered next.
func (c *nbdConn) request(kind uint16, cookie uint64, off int64, n int, data []byte) error {
	msg := make([]byte, 28, 28+len(data))
	binary.BigEndian.PutUint32(msg[0:], nbdRequestMagic)
	binary.BigEndian.PutUint16(msg[6:], kind)
	binary.BigEndian.PutUint64(msg[8:], cookie)
	binary.BigEndian.PutUint64(msg[16:], uint64(off))
	binary.BigEndian.PutUint32(msg[24:], uint32(n))
	_, err := c.Write(append(msg, data...))
	return err
}

func (c *nbdConn) reply() (cookie uint64, err error) {
	var r [16]byte
	if _, err := io.ReadFull(c, r[:]); err != nil {
		return 0, err
	}
	if binary.BigEndian.Uint32(r[:]) != nbdReplyMagic {
		return 0, errors.New("not a simple reply")
	}
	if e := binary.BigEndian.Uint32(r[4:]); e != 0 {
		return 0, fmt.Errorf("the server answers with error %d", e)
	}
	return binary.BigEndian.Uint64(r[8:]), nil
}

func (c *nbdConn) flush() error {
	if err := c.request(nbdFlush, 0, 0, 0, nil); err != nil {
		return err
	}
	_, err := c.reply()
	return err
}

// fill writes random bytes everywhere.
func (c *nbdConn) fill(size int64) error {
	r := rand.New(rand.NewPCG(2, 3))
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		for i := 0; i+8 <= len(buf); i += 8 {
			binary.LittleEndian.PutUint64(buf[i:], r.Uint64())
		}
		n := min(int64(len(buf)), size-off)
		if err := c.request(nbdWrite, 0, off, int(n), buf[:n]); err != nil {
			return err
		}
		if _, err := c.reply(); err != nil {
			return err
		}
	}
	return nil
}

// warm reads n bytes from off on, so that they are in the cache.
func (c *nbdConn) warm(off, n int64) error {
	var offs []int64
	for at := off; at < off+n; at += 1 << 20 {
		offs = append(offs, at)
	}
	_, err := c.readAt(offs, int(min(n, 1<<20)), 8)
	return err
}

// readAt reads n bytes at each of the places, depth of them at once, and
// returns how long that took.
func (c *nbdConn) readAt(offs []int64, n, depth int) (time.Duration, error) {
	return c.each(nbdRead, offs, n, depth)
}

// writeAt writes n random bytes at each of the places, depth of them at once.
func (c *nbdConn) writeAt(offs []int64, n, depth int) (time.Duration, error) {
	return c.each(nbdWrite, offs, n, depth)
}

// each reads or writes n bytes at each of the places.
func (c *nbdConn) each(kind uint16, offs []int64, n, depth int) (time.Duration, error) {
	var data []byte
	if kind == nbdWrite {
		data = make([]byte, n)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
	}
	start := time.Now()
	var (
		slots = make(chan struct{}, depth)
		wg    sync.WaitGroup
		sent  error
	)
	wg.Add(1)
	go func() {
		defer wg.Done()
		for i, off := range offs {
			slots <- struct{}{}
			if data != nil {
				binary.BigEndian.PutUint64(data, uint64(off))
			}
			if sent = c.request(kind, uint64(i), off, n, data); sent != nil {
				c.Close() // ends the replies
				return
			}
		}
	}()
	buf := make([]byte, n)
	for range offs {
		_, err := c.reply()
		if err == nil && kind == nbdRead {
			_, err = io.ReadFull(c, buf)
		}
		if err != nil {
			c.Close()
			for { // lets the sender come to its end
				select {
				case <-slots:
					continue
				default:
				}
				break
			}
			wg.Wait()
			return 0, errors.Join(err, sent)
		}
		<-slots
	}
	wg.Wait()
	return time.Since(start), sent
}
