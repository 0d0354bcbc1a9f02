// SPDX-License-Identifier: MIT

package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestParseURI(t *testing.T) {
	for uri, want := range map[string]Target{
		"nbd://host/":                           {"tcp", "host:10809", ""},
		"nbd://10.0.2.2:5/disk":                 {"tcp", "10.0.2.2:5", "disk"},
		"nbd://[::1]:7/a%20b":                   {"tcp", "[::1]:7", "a b"},
		"nbd+unix:///disk?socket=/run/a%3Fb":    {"unix", "/run/a?b", "disk"},
		"nbd+unix:///?socket=/run/swiftnbd/x.s": {"unix", "/run/swiftnbd/x.s", ""},
	} {
		got, err := ParseURI(uri)
		if err != nil || got != want {
			t.Errorf("%s is %+v, %v; want %+v", uri, got, err, want)
		}
		if again, err := ParseURI(got.URI()); err != nil || again != want {
			t.Errorf("%s is written as %s, which is %+v, %v", uri, got.URI(), again, err)
		}
	}
	for uri, want := range map[string]string{
		"nbd:///disk":               "no host",
		"nbd+unix:///disk":          "no socket=",
		"nbd+unix://disk?socket=/s": "three slashes",
		"nbds://host/disk":          "no TLS",
		"http://host/":              "no scheme of NBD",
		"nbd://host:x/":             "invalid port",
	} {
		if _, err := ParseURI(uri); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", uri, err, want)
		}
	}
}

// wire is a server whose words are known before.
type wire struct {
	io.Reader
	io.Writer
}

func reply(kind uint32, data ...byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicReply)
	b = binary.BigEndian.AppendUint32(b, optionGo)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func TestHandshake(t *testing.T) {
	hello := append([]byte("NBDMAGICIHAVEOPT"), 0, 3)
	export := reply(replyInfo, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 1, 0x0d)
	text := reply(replyInfo, append([]byte{0, infoDescription}, "a disk"...)...)
	other := reply(replyInfo, 0, 9, 1, 2, 3)
	ack := reply(replyAck)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, tc := range []struct {
		name string
		says []byte
		err  string
	}{
		{"all", join(hello, export, text, other, ack, []byte("left")), ""},
		{"refused", join(hello, reply(replyUnknown)), "none of this name"},
		{"refused with a reason", join(hello, reply(replyPolicy, []byte("not you")...)), "not you"},
		{"no size", join(hello, text, ack), "not of the protocol"},
		{"oldstyle", join([]byte("NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53"), []byte{0, 0}), "no NBD server"},
		{"negative size", join(hello, reply(replyInfo, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 1)), "too large"},
		{"ends", join(hello, export), "no answer"},
		{"long", join(hello, export[:16], []byte{0xff, 0xff, 0xff, 0xff}), "not of the protocol"},
	} {
		in := bytes.NewReader(tc.says)
		var out bytes.Buffer
		e, err := handshake(wire{in, &out}, "name")
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v; want %q", tc.name, err, tc.err)
			}
			var refused *RefusedError
			if strings.HasPrefix(tc.name, "refused") && !errors.As(err, &refused) {
				t.Errorf("%s: %T", tc.name, err)
			}
			continue
		}
		if want := (Export{4096, 0x10d, "a disk"}); err != nil || e != want {
			t.Errorf("%s: %+v, %v; want %+v", tc.name, e, err, want)
		}
		if in.Len() != len("left") {
			t.Errorf("%s: %d bytes are left; want 4", tc.name, in.Len())
		}
		if !bytes.Contains(out.Bytes(), []byte("\x00\x00\x00\x04name")) {
			t.Errorf("%s: it asks %q", tc.name, out.Bytes())
		}
	}
}

func TestHeaders(t *testing.T) {
	r := Request{Flags: 1, Command: Write, Cookie: 1 << 60, Offset: 1 << 40, Length: 1 << 20}
	if got, err := ReadRequest(bytes.NewReader(r.Append(nil))); err != nil || got != r {
		t.Errorf("%+v, %v", got, err)
	}
	a := Reply{Error: ErrShutdown, Cookie: 1 << 60}
	if got, err := ReadReply(bytes.NewReader(a.Append(nil))); err != nil || got != a {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := ReadReply(bytes.NewReader(r.Append(nil))); err == nil {
		t.Error("a request is taken for a reply")
	}
}
