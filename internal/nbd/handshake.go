// SPDX-License-Identifier: MIT

package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Flags of an export (transmission flags).
const (
	FlagHasFlags   = 1 << 0
	FlagReadOnly   = 1 << 1
	FlagSendFlush  = 1 << 2
	FlagSendFUA    = 1 << 3
	FlagRotational = 1 << 4
	FlagSendTrim   = 1 << 5
	FlagSendZeroes = 1 << 6
	FlagMultiConn  = 1 << 8
)

// Export is what the server says of an export.
type Export struct {
	Size        int64 // bytes
	Flags       uint16
	Description string // for people; empty: the server gives none
}

// The numbers of the handshake.
const (
	magicServer = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption = 0x49484156454f5054 // "IHAVEOPT"
	magicReply  = 0x0003e889045565a9

	fixedNewstyle = 1 << 0
	noZeroes      = 1 << 1

	optionGo = 7

	replyAck         = 1
	replyInfo        = 3
	replyErrorBit    = 1 << 31
	replyUnsupported = replyErrorBit | 1
	replyPolicy      = replyErrorBit | 2
	replyTLS         = replyErrorBit | 5
	replyUnknown     = replyErrorBit | 6
	replyShutdown    = replyErrorBit | 7

	infoExport      = 0
	infoDescription = 2

	// maxReply bounds what is read of a reply to an option, bytes. The longest
	// is a description, of 4096 bytes at most.
	maxReply = 64 << 10
)

// RefusedError says that the server does not give the export.
type RefusedError struct {
	Export string
	Reason string // what it says, or what its answer means
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("the server refuses the export %q: %s (its log may say why)", e.Export, e.Reason)
}

// handshakeTimeout bounds a handshake. The server may open the disk during it,
// which takes several requests to Swift.
const handshakeTimeout = 2 * time.Minute

// Dial connects to the target and does the handshake. What follows on the
// connection are requests and simple replies. If the server does not give the
// export, the error is a *RefusedError.
func Dial(ctx context.Context, t Target) (net.Conn, Export, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, t.Network, t.Address)
	if err != nil {
		return nil, Export{}, err
	}
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	e, err := handshake(conn, t.Export)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, Export{}, fmt.Errorf("%s: %w", t.URI(), err)
	}
	return conn, e, nil
}

// handshake asks for an export by the fixed newstyle handshake and
// NBD_OPT_GO. It reads nothing that comes after it.
func handshake(rw io.ReadWriter, export string) (e Export, err error) {
	var hello struct {
		Server, Option uint64
		Flags          uint16
	}
	if err := binary.Read(rw, binary.BigEndian, &hello); err != nil {
		return e, fmt.Errorf("no greeting: %w", err)
	}
	if hello.Server != magicServer || hello.Option != magicOption || hello.Flags&fixedNewstyle == 0 {
		return e, errors.New("no NBD server with the fixed newstyle handshake")
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(fixedNewstyle|hello.Flags&noZeroes))
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint32(b, optionGo)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(export)+2+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(b, export...)
	b = binary.BigEndian.AppendUint16(b, 1) // so many kinds of information beside the export's
	b = binary.BigEndian.AppendUint16(b, infoDescription)
	if _, err := rw.Write(b); err != nil {
		return e, err
	}
	for known := false; ; {
		var r struct {
			Magic        uint64
			Option, Kind uint32
			Length       uint32
		}
		if err := binary.Read(rw, binary.BigEndian, &r); err != nil {
			return e, fmt.Errorf("no answer to the request for an export: %w", err)
		}
		if r.Magic != magicReply || r.Option != optionGo || r.Length > maxReply {
			return e, errors.New("the server's answer is not of the protocol")
		}
		data := make([]byte, r.Length)
		if _, err := io.ReadFull(rw, data); err != nil {
			return e, err
		}
		switch {
		case r.Kind == replyAck && known:
			return e, nil
		case r.Kind == replyInfo && len(data) >= 2:
			switch kind, data := binary.BigEndian.Uint16(data), data[2:]; {
			case kind == infoExport && len(data) == 10:
				size := binary.BigEndian.Uint64(data)
				if int64(size) < 0 {
					return e, fmt.Errorf("a disk of %d bytes is too large", size)
				}
				e.Size, e.Flags, known = int64(size), binary.BigEndian.Uint16(data[8:]), true
			case kind == infoDescription:
				e.Description = string(data)
			}
		case r.Kind&replyErrorBit != 0:
			return e, &RefusedError{export, refusal(r.Kind, data)}
		default:
			return e, errors.New("the server's answer is not of the protocol")
		}
	}
}

// refusal says what an error reply means.
func refusal(kind uint32, message []byte) string {
	switch {
	case len(message) > 0:
		return string(message)
	case kind == replyUnknown:
		return "it has none of this name, or cannot open it"
	case kind == replyPolicy:
		return "its policy forbids it"
	case kind == replyTLS:
		return "it wants TLS, which the kernel's client does not have"
	case kind == replyShutdown:
		return "it is ending"
	case kind == replyUnsupported:
		return "it is too old"
	}
	return fmt.Sprintf("error %#x", kind)
}
