// SPDX-License-Identifier: MIT

// Command probe is the plugin that the tests drive. Parameters make it fail,
// panic or answer in whatever way a test wants, and trace=FILE writes down
// which callback was called in which process.
package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"libguestfs.org/nbdkit"
)

func init() { nbdkit.Register("probe", &probe{size: 1 << 20, yes: map[string]bool{}}) }

func main() {}

type probe struct {
	size     int64
	trace    string
	fail     map[string]string // callback to how it fails
	yes      map[string]bool   // can=...
	plain    bool              // connections without optional methods
	password string
	secret   string // a file that Preflight reads
	path     string
	state    string

	mu   sync.RWMutex
	data []byte
	kept *nbdkit.Extents // longer than allowed
}

func (p *probe) Version() string        { return "1.2.3" }
func (p *probe) LongName() string       { return "probe of the binding" }
func (p *probe) Description() string    { return "First line.\nSecond line." }
func (p *probe) ConfigHelp() string     { return "[size=]<SIZE>\ntrace=<FILE>" }
func (p *probe) MagicConfigKey() string { return "size" }
func (p *probe) ThreadModel() uint32 {
	switch s := os.Getenv("PROBE_THREADS"); s {
	case "":
		return nbdkit.ThreadModelParallel
	case "panic":
		panic("as the test asked")
	default:
		n, _ := strconv.Atoi(s)
		return uint32(n)
	}
}

// at writes the trace, and fails as asked.
func (p *probe) at(callback string) error {
	if p.trace != "" {
		f, err := os.OpenFile(p.trace, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
		if err != nil {
			return err
		}
		fmt.Fprintf(f, "%d %s\n", os.Getpid(), callback)
		f.Close()
	}
	how, ok := p.fail[strings.Fields(callback)[0]]
	if !ok {
		return nil
	}
	kind, arg, _ := strings.Cut(how, ":")
	n, _ := strconv.Atoi(arg)
	errno := syscall.Errno(n)
	switch kind {
	case "panic":
		var m map[string]int
		m["nil"] = 1
	case "nil":
		var c *probe
		c.size = 1
	case "plain":
		return errors.New("a plain error\nof two lines")
	case "value":
		return nbdkit.PluginError{Errmsg: "a PluginError", Errno: errno}
	case "pointer":
		return &nbdkit.PluginError{Errmsg: "a *PluginError", Errno: errno}
	case "wrapped":
		return fmt.Errorf("request 1: %w", nbdkit.PluginError{Errmsg: "a PluginError", Errno: errno})
	case "os":
		return fmt.Errorf("chunk 7: %w", &os.PathError{Op: "write", Path: "/x", Err: errno})
	case "set":
		nbdkit.SetError(errno)
		return errors.New("SetError was called")
	case "signal":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Minute)
	case "sleep":
		time.Sleep(2 * time.Minute)
	case "exit":
		os.Exit(n)
	case "fatal":
		go func() { panic("in a goroutine") }()
		time.Sleep(time.Minute)
	}
	return fmt.Errorf("probe: fail=%s is not known", how)
}

func (p *probe) Load() {
	p.fail = map[string]string{}
	if os.Getenv("PROBE_LOAD") != "" {
		panic("as the test asked")
	}
}

func (p *probe) Unload()     { p.at("Unload") }
func (p *probe) DumpPlugin() { p.at("DumpPlugin"); fmt.Printf("probe_size=%d\n", p.size) }

func (p *probe) Config(key, value string) (err error) {
	switch key {
	case "size":
		p.size, err = nbdkit.ParseSize(value)
	case "trace":
		p.trace, err = nbdkit.AbsolutePath(value)
	case "fail":
		callback, how, _ := strings.Cut(value, "=")
		p.fail[callback] = how
	case "can":
		for _, c := range strings.Split(value, ",") {
			p.yes[c] = true
		}
	case "plain":
		p.plain, err = nbdkit.ParseBool(value)
	case "password":
		p.password, err = nbdkit.ReadPassword(value)
	case "secret":
		p.secret, err = nbdkit.AbsolutePath(value)
	case "path":
		p.path = value
	case "warn":
		nbdkit.Error("a warning from Config: " + value)
	default:
		return nbdkit.UnknownParameter(key)
	}
	if err != nil {
		return err
	}
	return p.at("Config " + key)
}

func (p *probe) ConfigComplete() error { return p.at("ConfigComplete") }
func (p *probe) GetReady() error       { return p.at("GetReady") }

func (p *probe) Preflight() ([]byte, error) {
	if err := p.at(fmt.Sprintf("Preflight in=%v", nbdkit.InPreflight())); err != nil {
		return nil, err
	}
	fmt.Println("standard output belongs to somebody else")
	if p.password == "" { // or it was asked for on the terminal
		if n, _ := os.Stdin.Read(make([]byte, 1)); n > 0 {
			return nil, errors.New("standard input belongs to somebody else")
		}
	}
	if p.secret == "" {
		return []byte("a state"), nil
	}
	return os.ReadFile(p.secret)
}

func (p *probe) AfterFork() error {
	p.state = string(nbdkit.PreflightState())
	p.data = make([]byte, p.size)
	return p.at(fmt.Sprintf("AfterFork in=%v", nbdkit.InPreflight()))
}

func (p *probe) Cleanup() { p.at("Cleanup") }

func (p *probe) PreConnect(readonly bool) error {
	if _, err := nbdkit.PeerName(); err != nil {
		return err
	}
	return p.at("PreConnect")
}

func (p *probe) ListExports(readonly, isTLS bool, exports *nbdkit.Exports) error {
	if err := p.at("ListExports"); err != nil {
		return err
	}
	if p.yes["twice"] {
		if err := exports.Add("twice", ""); err != nil {
			return err
		}
		return exports.Add("twi\x00ce", "")
	}
	if p.yes["UseDefault"] {
		return exports.UseDefault()
	}
	if err := exports.Add("one", "the first"); err != nil {
		return err
	}
	return exports.Add("two", "")
}

func (p *probe) DefaultExport(readonly, isTLS bool) (string, error) {
	return "one", p.at("DefaultExport")
}

func (p *probe) Open(readonly bool) (nbdkit.ConnectionInterface, error) {
	name, err := nbdkit.ExportName()
	if err != nil {
		return nil, err
	}
	if err := p.at("Open " + name); err != nil {
		return nil, err
	}
	if p.yes["nothing"] {
		return nil, nil
	}
	c := &connection{probe: p, name: name}
	if p.plain {
		return &plain{ConnectionInterface: c}, nil
	}
	return c, nil
}

// plain hides the optional methods.
type plain struct{ nbdkit.ConnectionInterface }

type connection struct {
	nbdkit.Connection
	*probe
	name string
}

func (c *connection) Close() {
	if err := c.at("Close"); err != nil {
		panic(err)
	}
}

func (c *connection) GetSize() (uint64, error) {
	if c.yes["huge"] {
		return 1 << 63, nil
	}
	return uint64(c.size), c.at("GetSize")
}

func (c *connection) ask(what string) (bool, error) { return c.yes[what], c.at("Can" + what) }

func (c *connection) CanMultiConn() (bool, error) { return c.ask("MultiConn") }
func (c *connection) IsRotational() (bool, error) { return c.ask("Rotational") }
func (c *connection) CanWrite() (bool, error)     { return c.ask("Write") }
func (c *connection) CanFlush() (bool, error)     { return c.ask("Flush") }
func (c *connection) CanTrim() (bool, error)      { return c.ask("Trim") }
func (c *connection) CanZero() (bool, error)      { return c.ask("Zero") }
func (c *connection) CanFastZero() (bool, error)  { return c.ask("FastZero") }
func (c *connection) CanExtents() (bool, error)   { return c.ask("Extents") }

func (c *connection) CanFUA() (uint32, error) {
	switch {
	case c.yes["FUANative"]:
		return nbdkit.FUANative, c.at("CanFUA")
	case c.yes["FUAEmulate"]:
		return nbdkit.FUAEmulate, c.at("CanFUA")
	case c.yes["FUANonsense"]:
		return 7, nil
	}
	return nbdkit.FUANone, c.at("CanFUA")
}

func (c *connection) CanCache() (uint32, error) {
	switch {
	case c.yes["CacheNative"]:
		return nbdkit.CacheNative, c.at("CanCache")
	case c.yes["CacheEmulate"]:
		return nbdkit.CacheEmulate, c.at("CanCache")
	}
	return nbdkit.CacheNone, c.at("CanCache")
}

func (c *connection) BlockSize() (minimum, preferred, maximum uint32, err error) {
	return 512, 65536, 0xffffffff, c.at("BlockSize")
}

func (c *connection) ExportDescription() (string, error) {
	return "export " + c.name, c.at("ExportDescription")
}

// PRead answers a read of one byte at certain offsets with what the test asks
// about, in place of data.
func (c *connection) PRead(buf []byte, offset uint64, flags uint32) error {
	if err := c.at(fmt.Sprintf("PRead %d %d %d", len(buf), offset, flags)); err != nil {
		return err
	}
	if text := c.answer(offset); text != "" {
		copy(buf, text)
		return nil
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	copy(buf, c.data[offset:])
	return nil
}

// answer: see PRead. It is off unless can=answer is given.
func (c *connection) answer(offset uint64) string {
	if !c.yes["answer"] {
		return ""
	}
	switch offset {
	case 0:
		return c.state
	case 512:
		return c.password
	case 1024:
		path, err := nbdkit.AbsolutePath(c.path)
		return fmt.Sprint(path, err)
	case 1536:
		tls, err := nbdkit.IsTLS()
		peer, peerErr := nbdkit.PeerName()
		uid, uidErr := nbdkit.PeerUID()
		return fmt.Sprint(tls, err, peer.Network(), peerErr, uid, uidErr)
	case 2048:
		line := strings.Repeat("x", 1000)
		for i := 0; i < 200000; i++ {
			nbdkit.Debug(line)
		}
		for i := 0; i < 200000; i++ {
			nbdkit.Error(line)
		}
		return "logged"
	case 2560:
		nbdkit.Shutdown()
		return "shutting down"
	case 3584:
		return fmt.Sprint(c.kept.Add(0, 512, 0))
	case 3072:
		return fmt.Sprint(debugFlag())
	}
	return "?"
}

func (c *connection) PWrite(buf []byte, offset uint64, flags uint32) error {
	if err := c.at(fmt.Sprintf("PWrite %d %d %d", len(buf), offset, flags)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	copy(c.data[offset:], buf)
	return nil
}

func (c *connection) Flush(flags uint32) error { return c.at(fmt.Sprintf("Flush %d", flags)) }

func (c *connection) Trim(count uint32, offset uint64, flags uint32) error {
	return c.at(fmt.Sprintf("Trim %d %d %d", count, offset, flags))
}

func (c *connection) Zero(count uint32, offset uint64, flags uint32) error {
	if err := c.at(fmt.Sprintf("Zero %d %d %d", count, offset, flags)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.data[offset : offset+uint64(count)])
	return nil
}

func (c *connection) Cache(count uint32, offset uint64, flags uint32) error {
	return c.at(fmt.Sprintf("Cache %d %d %d", count, offset, flags))
}

// Extents tells blocks of 4096 zeroes from data.
func (c *connection) Extents(count uint32, offset uint64, flags uint32, extents *nbdkit.Extents) error {
	if err := c.at(fmt.Sprintf("Extents %d %d %d", count, offset, flags)); err != nil {
		return err
	}
	c.kept = extents
	if c.yes["gap"] {
		if err := extents.Add(offset, 512, 0); err != nil {
			return err
		}
		return extents.Add(offset+1024, 512, 0)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	const block = 4096
	for at := offset - offset%block; at < offset+uint64(count); at += block {
		n := min(block, uint64(c.size)-at)
		kind := nbdkit.ExtentHole | nbdkit.ExtentZero
		for _, b := range c.data[at : at+n] {
			if b != 0 {
				kind = 0
				break
			}
		}
		if err := extents.Add(at, n, kind); err != nil {
			return err
		}
	}
	return nil
}
