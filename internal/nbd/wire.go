// SPDX-License-Identifier: MIT

package nbd

import (
	"encoding/binary"
	"errors"
	"io"
)

// Command is what a request asks for.
type Command uint16

// The commands.
const (
	Read       Command = 0
	Write      Command = 1
	Disconnect Command = 2
	Flush      Command = 3
	Trim       Command = 4
	Cache      Command = 5
	Zero       Command = 6
)

// Changes says whether the command changes the disk.
func (c Command) Changes() bool { return c == Write || c == Trim || c == Zero }

// Errors of replies, as numbers of the protocol.
const (
	ErrIO       = 5
	ErrShutdown = 108
)

const (
	magicRequest     = 0x25609513
	magicSimpleReply = 0x67446698

	// RequestSize and ReplySize are the lengths of the headers, bytes.
	RequestSize = 28
	ReplySize   = 16
)

// Request is the header of a request. The bytes of a write follow it.
type Request struct {
	Flags   uint16
	Command Command
	Cookie  uint64
	Offset  uint64
	Length  uint32
}

// Append appends the header to b.
func (r Request) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, magicRequest)
	b = binary.BigEndian.AppendUint16(b, r.Flags)
	b = binary.BigEndian.AppendUint16(b, uint16(r.Command))
	b = binary.BigEndian.AppendUint64(b, r.Cookie)
	b = binary.BigEndian.AppendUint64(b, r.Offset)
	return binary.BigEndian.AppendUint32(b, r.Length)
}

// ReadRequest reads the header of a request.
func ReadRequest(from io.Reader) (r Request, err error) {
	var b [RequestSize]byte
	if _, err := io.ReadFull(from, b[:]); err != nil {
		return r, err
	}
	if binary.BigEndian.Uint32(b[:]) != magicRequest {
		return r, errors.New("what came is no request of NBD")
	}
	r.Flags = binary.BigEndian.Uint16(b[4:])
	r.Command = Command(binary.BigEndian.Uint16(b[6:]))
	r.Cookie = binary.BigEndian.Uint64(b[8:])
	r.Offset = binary.BigEndian.Uint64(b[16:])
	r.Length = binary.BigEndian.Uint32(b[24:])
	return r, nil
}

// Reply is the header of a simple reply. The bytes of a successful read follow
// it.
type Reply struct {
	Error  uint32 // 0: success
	Cookie uint64 // of the request
}

// Append appends the header to b.
func (r Reply) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSimpleReply)
	b = binary.BigEndian.AppendUint32(b, r.Error)
	return binary.BigEndian.AppendUint64(b, r.Cookie)
}

// ReadReply reads the header of a simple reply.
func ReadReply(from io.Reader) (r Reply, err error) {
	var b [ReplySize]byte
	if _, err := io.ReadFull(from, b[:]); err != nil {
		return r, err
	}
	if binary.BigEndian.Uint32(b[:]) != magicSimpleReply {
		return r, errors.New("what came is no simple reply of NBD")
	}
	r.Error = binary.BigEndian.Uint32(b[4:])
	r.Cookie = binary.BigEndian.Uint64(b[8:])
	return r, nil
}
