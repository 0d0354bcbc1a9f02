// SPDX-License-Identifier: MIT

package nbdkit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// logged collects what would go to standard error.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

var log logged

func TestMain(m *testing.M) {
	stderr = &log
	os.Exit(m.Run())
}

// fake is a plugin with nothing optional.
type fake struct {
	Plugin
	open func() (ConnectionInterface, error)
}

func (f *fake) Open(bool) (ConnectionInterface, error) { return f.open() }

type fakeConn struct {
	Connection
	*sync.RWMutex
	data []byte
}

func (c *fakeConn) GetSize() (uint64, error) { return uint64(len(c.data)), nil }
func (c *fakeConn) PRead(buf []byte, offset uint64, flags uint32) error {
	c.RLock()
	defer c.RUnlock()
	copy(buf, c.data[offset:])
	return nil
}
func (c *fakeConn) PWrite(buf []byte, offset uint64, flags uint32) error {
	c.Lock()
	defer c.Unlock()
	copy(c.data[offset:], buf)
	return nil
}

// registerFake puts a plugin in place for one test.
func registerFake(t *testing.T, name string, impl PluginInterface) {
	t.Helper()
	pluginImpl = nil
	Register(name, impl)
	t.Cleanup(func() { pluginName, pluginImpl = "", nil })
}

func TestPluginError(t *testing.T) {
	for _, test := range []struct {
		e    PluginError
		want string
	}{
		{PluginError{Errmsg: "full", Errno: syscall.ENOSPC}, "full (errno 28)"},
		{PluginError{Errmsg: "full"}, "full"},
		{PluginError{Errno: syscall.ENOSPC}, "no space left on device"},
	} {
		if got := test.e.String(); got != test.want {
			t.Errorf("String of %#v: %q", test.e, got)
		}
		if got := test.e.Error(); got != test.want {
			t.Errorf("Error of %#v: %q", test.e, got)
		}
	}
	if err := fmt.Errorf("x: %w", PluginError{Errmsg: "m", Errno: syscall.EIO}); !errors.Is(err, syscall.EIO) {
		t.Error("errors.Is does not find the errno")
	}
	if (PluginError{Errmsg: "m"}).Unwrap() != nil {
		t.Error("errno 0 is wrapped")
	}
}

func TestErrnoAndMessage(t *testing.T) {
	for _, test := range []struct {
		err   error
		errno int32
		msg   string
	}{
		{PluginError{"m", syscall.ENOSPC}, 28, "m"},
		{&PluginError{"m", syscall.ENOSPC}, 28, "m"},
		{fmt.Errorf("w: %w", PluginError{"m", syscall.ENOSPC}), 28, "w: m (errno 28)"},
		{fmt.Errorf("w: %w", &PluginError{"m", syscall.ENOSPC}), 28, "w: m (errno 28)"},
		{errors.Join(errors.New("a"), PluginError{"m", syscall.EROFS}), 30, "a\nm (errno 30)"},
		{&fs.PathError{Op: "read", Path: "f", Err: syscall.EACCES}, 13, "read f: permission denied"},
		{syscall.ENOTSUP, 95, "operation not supported"},
		{PluginError{Errmsg: "m"}, failedWithoutErrno, "m"},
		{errors.New("m"), failedWithoutErrno, "m"},
		{syscall.Errno(0), failedWithoutErrno, "errno 0"},
		{errors.New(""), failedWithoutErrno, "*errors.errorString"},
		{fmt.Errorf("w: %w", &reported{"parsing", syscall.EINVAL}), 22, ""},
	} {
		if got := errnoOf(test.err); got != test.errno {
			t.Errorf("errnoOf(%#v) = %d, want %d", test.err, got, test.errno)
		}
		if got := messageOf(test.err); got != test.msg {
			t.Errorf("messageOf(%#v) = %q, want %q", test.err, got, test.msg)
		}
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "",
		"plain  text":              "plain  text",
		"a\nb":                     "a; b",
		"a\r\n\r\n  b\tc \n":       "a; b\tc",
		"\n\n":                     "",
		"with\x00NUL":              "with\\0NUL",
		"100 % of\n%s and %n stay": "100 % of; %s and %n stay",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("oneLine(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestRegister(t *testing.T) {
	panics := func(what string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", what)
			}
		}()
		f()
	}
	registerFake(t, "first", &fake{})
	panics("a second plugin", func() { Register("second", &fake{}) })
	pluginImpl = nil
	panics("no implementation", func() { Register("third", nil) })
}

type described struct{ fake }

func (*described) Version() string        { return "1" }
func (*described) LongName() string       { return "long\x00name" }
func (*described) Description() string    { return "" }
func (*described) ConfigHelp() string     { return "a=\nb=" }
func (*described) MagicConfigKey() string { return "a" }
func (*described) ThreadModel() uint32    { return ThreadModelSerializeConnections }
func (*described) ListExports(readonly, isTLS bool, exports *Exports) error {
	return nil
}

func TestDescribe(t *testing.T) {
	registerFake(t, "name", &described{})
	b, err := describe()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for len(b) > 0 {
		n := binary.NativeEndian.Uint32(b[1:])
		got = append(got, string(b[0])+string(b[5:5+n]))
		b = b[5+n:]
	}
	want := []string{"nname", "llongname", "v1", "ha=\nb=", "ma", "t" + number(0), "c" + number(1)}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("got %q, want %q", got, want)
	}
	pluginImpl = nil
	if _, err := describe(); err == nil {
		t.Error("no error without a plugin")
	}
}

func TestCarried(t *testing.T) {
	defer func() { preflightState, passwords.answers = nil, nil }()
	passwords.put("+/file", "secret")
	passwords.put("-5", "")
	all := passwords.all()
	passwords.answers = nil
	b := record(nil, 's', "a\x00state")
	for _, p := range all {
		b = record(b, 'p', p)
	}
	for n := 1; n < len(b); n++ {
		if n == 5+len("a\x00state") || n == 5+len("a\x00state")+5+len(all[0]) {
			continue // the end of a record
		}
		if takeCarried(b[:n]) == nil {
			t.Errorf("cut off after %d bytes, and no error", n)
		}
	}
	passwords.answers, preflightState = nil, nil
	if err := takeCarried(b); err != nil {
		t.Fatal(err)
	}
	if string(PreflightState()) != "a\x00state" {
		t.Errorf("state %q", PreflightState())
	}
	for value, want := range map[string]string{"+/file": "secret", "-5": "", "as is": "as is", "": ""} {
		if got, err := ReadPassword(value); err != nil || got != want {
			t.Errorf("ReadPassword(%q) = %q, %v", value, got, err)
		}
	}
	if _, err := ReadPassword("+/other"); !errors.Is(err, syscall.ENOSYS) {
		t.Errorf("outside nbdkit: %v", err)
	}
}

func TestAbsolutePath(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{"/x/../y": "/x/../y", "x//y": wd + "/x//y", ".": wd + "/."} {
		if got, err := AbsolutePath(in); got != want || err != nil {
			t.Errorf("AbsolutePath(%q) = %q, %v", in, got, err)
		}
	}
	if _, err := AbsolutePath(""); err == nil {
		t.Error("no error for an empty path")
	}
}

func TestPeerAddr(t *testing.T) {
	family := func(n uint16) []byte { return binary.NativeEndian.AppendUint16(nil, n) }
	for want, b := range map[string][]byte{
		"127.0.0.1:10809": append(family(syscall.AF_INET), 0x2a, 0x39, 127, 0, 0, 1, 0, 0),
		"[::2]:80":        append(append(family(syscall.AF_INET6), 0, 80, 0, 0, 0, 0), append(make([]byte, 15), 2)...),
		"/run/s":          append(family(syscall.AF_UNIX), "/run/s\x00junk"...),
		"@abstract":       append(family(syscall.AF_UNIX), "\x00abstract"...),
		"":                family(syscall.AF_UNIX),
		"10.1.2.3:1":      append(append(family(syscall.AF_INET6), 0, 1, 0, 0, 0, 0), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3),
	} {
		got, err := peerAddr(b)
		if err != nil || got.String() != want {
			t.Errorf("peerAddr(%v) = %v, %v, want %q", b, got, err, want)
		}
	}
	for _, b := range [][]byte{nil, {1}, family(40), family(syscall.AF_INET), family(syscall.AF_INET6)} {
		if got, err := peerAddr(b); err == nil {
			t.Errorf("peerAddr(%v) = %v", b, got)
		}
	}
}

func TestUnknownParameter(t *testing.T) {
	var p Plugin
	err := p.Config("colour", "blue")
	if err == nil || !strings.Contains(err.Error(), "'colour'") || !errors.Is(err, syscall.EINVAL) {
		t.Errorf("got %v", err)
	}
}

// FuzzParseSize throws rubbish at the parser.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"", "1", "10G", "-1", "9223372036854775807", "8E", "K", "1KK", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err == nil && n < 0 {
			t.Errorf("ParseSize(%q) = %d", s, n)
		}
		if err != nil && n != 0 {
			t.Errorf("ParseSize(%q) = %d, %v", s, n, err)
		}
	})
}

// TestConnectionsComeAndGo has twelve clients at once, each with several
// requests in flight: for the race detector.
func TestConnectionsComeAndGo(t *testing.T) {
	disk := &fakeConn{RWMutex: new(sync.RWMutex), data: make([]byte, 1<<16)}
	registerFake(t, "fake", &fake{open: func() (ConnectionInterface, error) {
		return &fakeConn{RWMutex: disk.RWMutex, data: disk.data}, nil
	}})
	var clients sync.WaitGroup
	for client := 0; client < 12; client++ {
		clients.Add(1)
		go func(client int) {
			defer clients.Done()
			rnd := rand.New(rand.NewSource(int64(client)))
			for i := 0; i < 200; i++ {
				h, rc := open(false)
				if h == 0 || rc != 0 {
					t.Errorf("open: %d, %d", h, rc)
					return
				}
				want := make([]byte, 512)
				rnd.Read(want)
				var requests sync.WaitGroup
				if rc := pwrite(h, want, uint64(client)*4096, 0); rc != 0 {
					t.Errorf("pwrite: %d", rc)
				}
				for r := 0; r < 4; r++ {
					requests.Add(1)
					go func() {
						defer requests.Done()
						got := make([]byte, 512)
						if rc := pread(h, got, uint64(client)*4096, 0); rc != 0 || !bytes.Equal(got, want) {
							t.Errorf("pread: %d, or other data", rc)
						}
					}()
				}
				requests.Wait()
				if size := getSize(h); size != 1<<16 {
					t.Errorf("getSize: %d", size)
				}
				if rc := closeHandle(h); rc != 0 {
					t.Errorf("close: %d", rc)
				}
				if rc := pread(h, make([]byte, 1), 0, 0); rc != int32(syscall.EIO) {
					t.Errorf("pread after close: %d", rc)
				}
			}
		}(client)
	}
	clients.Wait()
}

// TestWithoutMethods is what nbdkit assumes of a plugin in C without the
// callbacks (tests/TestSameAsC asks nbdkit).
func TestWithoutMethods(t *testing.T) {
	registerFake(t, "fake", &fake{open: func() (ConnectionInterface, error) { return &fakeConn{}, nil }})
	h, _ := open(true)
	defer closeHandle(h)
	for what, got := range map[string]int32{
		"extents": can("", h, canExtents), "FUA": level("", h, 2, canFUA), "cache": level("", h, 2, canCache),
	} {
		if got != 0 {
			t.Errorf("%s: %d", what, got)
		}
	}
	if got := can("", h, canFastZero); got != 1 {
		t.Errorf("fast zero: %d", got)
	}
	if rc := cacheRange(h, 1, 0, 0); rc != 0 {
		t.Errorf("cache: %d", rc)
	}
	if rc := extents(h, 1, 0, 0, nil); rc != int32(syscall.EINVAL) {
		t.Errorf("extents: %d", rc)
	}
	if lo, at, hi, rc := blockSize(h); lo != 0 || at != 0 || hi != 0 || rc != 0 {
		t.Errorf("block size: %d %d %d, %d", lo, at, hi, rc)
	}
	if s, rc := exportDescription(h); s != "" || rc != 0 {
		t.Errorf("description: %q, %d", s, rc)
	}
	// The defaults of these panic, which must not get out.
	log.b.Reset()
	for what, rc := range map[string]int32{
		"flush": flush(h, 0), "trim": trim(h, 1, 0, 0), "zero": zero(h, 1, 0, 0),
	} {
		if rc != int32(syscall.EIO) {
			t.Errorf("%s: %d", what, rc)
		}
	}
	for _, want := range []string{
		"nbdkit: error: panic in Flush: CanFlush is true, but the connection has no Flush method\n",
		"nbdkit: error: panic in Trim: ", "nbdkit: error: panic in Zero: ", "nbdkit_test.go:",
	} {
		if !strings.Contains(log.b.String(), want) {
			t.Errorf("%q was not logged in\n%s", want, log.b.String())
		}
	}
}

// TestRequestsDoNotAllocate: a read costs no garbage.
func TestRequestsDoNotAllocate(t *testing.T) {
	registerFake(t, "fake", &fake{open: func() (ConnectionInterface, error) {
		return &fakeConn{RWMutex: new(sync.RWMutex), data: make([]byte, 4096)}, nil
	}})
	h, _ := open(false)
	defer closeHandle(h)
	buf := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() { pread(h, buf, 0, 0); pwrite(h, buf, 0, 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
