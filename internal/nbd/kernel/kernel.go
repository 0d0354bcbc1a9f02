// SPDX-License-Identifier: MIT

// Package kernel owns /dev/nbdN, the devices of the kernel's NBD client: it
// connects and disconnects them by generic netlink (drivers/block/nbd.c and
// include/uapi/linux/nbd-netlink.h in Linux), and finds them in sysfs. With
// netlink no process has to stay, other than with the older ioctl(2)s.
package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The names and numbers of nbd-netlink.h.
const (
	familyName    = "nbd"
	familyVersion = 1

	commandConnect    = 1
	commandDisconnect = 2

	attrIndex       = 1
	attrSize        = 2
	attrBlockSize   = 3
	attrTimeout     = 4
	attrServerFlags = 5
	attrSockets     = 7
	attrBackend     = 10

	socketItem = 1
	socketFD   = 1
)

// Any is the index with which the kernel chooses a device.
const Any = -1

// Path returns the device's name.
func Path(index int) string { return fmt.Sprintf("/dev/nbd%d", index) }

// ParsePath is Path's inverse.
func ParsePath(path string) (index int, err error) {
	n, ok := strings.CutPrefix(path, "/dev/nbd")
	index, err = strconv.Atoi(n)
	if !ok || err != nil || index < 0 || Path(index) != path {
		return 0, fmt.Errorf("%q is no device of the kernel's NBD client, such as /dev/nbd0", path)
	}
	return index, nil
}

// Config is how a device is to be connected.
type Config struct {
	Index     int // or Any
	Size      int64
	BlockSize int // the logical block size, bytes
	// Timeout is how long the kernel waits for an answer before it gives up the
	// connection; 0 is for ever, with one connection.
	Timeout time.Duration
	Flags   uint16 // the export's, as the server has sent them
	// Backend says what the device is connected to, for people and for udev: it
	// is in /sys/block/nbdN/backend (since Linux 5.14).
	Backend string
	// Sockets are connections behind their handshake. The kernel keeps its own
	// copy of each.
	Sockets []*os.File
}

// ErrNoDriver says that the kernel has no NBD client.
var ErrNoDriver = errors.New("the kernel has no NBD client (module nbd), or it is older than Linux 4.12")

// ErrNotRoot says that the process may not connect and disconnect devices.
var ErrNotRoot = errors.New("only root may attach a disk to the kernel or detach it: run the command as root")

// ErrInUse says that a device is connected already.
var ErrInUse = errors.New("it is connected already")

// Permitted returns an error for a process that the kernel will refuse to connect and
// disconnect devices for: it is not root's, and lacks CAP_SYS_ADMIN, which
// drivers/block/nbd.c asks for.
func Permitted() error {
	if os.Geteuid() == 0 {
		return nil
	}
	var data [2]unix.CapUserData // _LINUX_CAPABILITY_U32S_3
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])
	if err == nil && data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0 {
		return nil
	}
	return ErrNotRoot
}

// call makes one request of the kernel's NBD client. It loads the module if it
// is not there.
func call(command uint8, flags netlink.HeaderFlags, encode func(*netlink.AttributeEncoder)) ([]genetlink.Message, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("generic netlink: %w", err)
	}
	defer c.Close()
	family, err := c.GetFamily(familyName)
	if errors.Is(err, os.ErrNotExist) {
		_ = exec.Command("modprobe", "nbd").Run() // what it lacks, the next line finds out
		family, err = c.GetFamily(familyName)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoDriver
	}
	if err != nil {
		return nil, fmt.Errorf("generic netlink: %w", err)
	}
	e := netlink.NewAttributeEncoder()
	encode(e)
	data, err := e.Encode()
	if err != nil {
		return nil, err
	}
	m := genetlink.Message{Header: genetlink.Header{Command: command, Version: familyVersion}, Data: data}
	return c.Execute(m, family.ID, netlink.Request|flags)
}

// Connect connects a device and returns its index.
func Connect(c Config) (index int, err error) {
	messages, err := call(commandConnect, 0, func(e *netlink.AttributeEncoder) {
		if c.Index != Any {
			e.Uint32(attrIndex, uint32(c.Index))
		}
		e.Uint64(attrSize, uint64(c.Size))
		e.Uint64(attrBlockSize, uint64(c.BlockSize))
		e.Uint64(attrServerFlags, uint64(c.Flags))
		if c.Timeout > 0 {
			e.Uint64(attrTimeout, uint64((c.Timeout+time.Second-1)/time.Second))
		}
		if c.Backend != "" {
			e.String(attrBackend, c.Backend)
		}
		e.Nested(attrSockets, func(e *netlink.AttributeEncoder) error {
			for _, s := range c.Sockets {
				e.Nested(socketItem, func(e *netlink.AttributeEncoder) error {
					e.Uint32(socketFD, uint32(s.Fd()))
					return nil
				})
			}
			return nil
		})
	})
	switch {
	case errors.Is(err, unix.EBUSY):
		return 0, ErrInUse
	case errors.Is(err, unix.EPERM):
		return 0, fmt.Errorf("only root may connect a device: %w", unix.EPERM)
	case err != nil:
		return 0, fmt.Errorf("the kernel does not connect the device: %w", err)
	}
	for _, m := range messages {
		d, err := netlink.NewAttributeDecoder(m.Data)
		if err != nil {
			return 0, err
		}
		for d.Next() {
			if d.Type() == attrIndex {
				index = int(d.Uint32())
				announce(index)
				return index, nil
			}
		}
	}
	return 0, errors.New("the kernel does not say which device it has connected")
}

// announce has udev look at the device again: the kernel tells udev of it before
// its backend can be read. Without udev nothing happens.
func announce(index int) {
	_ = os.WriteFile(filepath.Join(sysfs(index), "uevent"), []byte("change\n"), 0)
}

// Disconnect disconnects the device. The kernel tells the server, and ends what
// is under way with errors: Busy says before that whether somebody uses it.
func Disconnect(index int) error {
	_, err := call(commandDisconnect, netlink.Acknowledge, func(e *netlink.AttributeEncoder) {
		e.Uint32(attrIndex, uint32(index))
	})
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("only root may disconnect a device: %w", unix.EPERM)
	}
	return err
}

// Busy says whether a file system, another block device or a program that opened
// it for itself has the device.
func Busy(index int) (bool, error) {
	fd, err := unix.Open(Path(index), unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return false, unix.Close(fd)
	case errors.Is(err, unix.EBUSY):
		return true, nil
	}
	return false, &os.PathError{Op: "open", Path: Path(index), Err: err}
}

// Flush has everything written that was written to the device, and returns when
// the server says that it is durable.
func Flush(index int) error {
	f, err := os.OpenFile(Path(index), os.O_RDWR, 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		return nil // read-only: there is nothing to flush
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// State is a device as sysfs shows it.
type State struct {
	Index   int
	Backend string // empty: not ours, or the kernel is too old to say
}

func sysfs(index int) string { return fmt.Sprintf("/sys/block/nbd%d", index) }

// Connected says whether the device is connected.
func Connected(index int) bool {
	// The kernel has this file while there is a connection.
	_, err := os.Stat(filepath.Join(sysfs(index), "pid"))
	return err == nil
}

// List returns the devices that are connected.
func List() ([]State, error) {
	paths, err := filepath.Glob("/sys/block/nbd*")
	if err != nil {
		return nil, err
	}
	var states []State
	for _, p := range paths {
		index, err := ParsePath("/dev/" + filepath.Base(p))
		if err != nil || !Connected(index) {
			continue
		}
		backend, _ := os.ReadFile(filepath.Join(p, "backend"))
		states = append(states, State{index, strings.TrimSuffix(string(backend), "\n")})
	}
	return states, nil
}
