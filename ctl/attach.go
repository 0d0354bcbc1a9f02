// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/nbd"
	"swiftnbd/internal/nbd/kernel"
)

// backendPrefix is what the name in sysfs of our devices begins with. The rule of
// udev makes a link of this name below /dev.
const backendPrefix = "swiftnbd/"

// attachOptions are the options of attach.
type attachOptions struct {
	uri         string
	connections int
	timeout     int  // seconds
	timed       bool // timeout was given
	blockSize   int
	readOnly    bool
	persist     bool
	wait        int // seconds
}

const (
	// defaultTimeout is the kernel's timeout, seconds: three times the plugin's
	// own, so that the plugin's error comes first.
	defaultTimeout = 180
	// defaultWait is how long a server may be away, seconds: as long as a lease
	// that somebody has to wait for, several times.
	defaultWait = 300
	// defaultLinks is how many connections are made.
	defaultLinks = 4
	// defaultBlockSize is the logical block size that disks have everywhere.
	defaultBlockSize = 512
)

func (t *tool) attachCommand() *cobra.Command {
	var o attachOptions
	cmd := &cobra.Command{
		Use:   "attach CONTAINER [DEVICE] [-- PARAMETER=VALUE...]",
		Short: "Attach a disk to the kernel as /dev/nbdN",
		Long: `Attach a disk to the kernel's NBD client as /dev/nbdN. The command starts nbdkit for
the disk, or uses a server that runs already (--uri). It prints the name of the
device.

With --persist the command stays until the disk is detached. The server may then be
restarted while the disk is in use: programs that use the disk wait, and nothing is
lost.`,
		Args: func(cmd *cobra.Command, args []string) error {
			own := args
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				own = args[:dash]
			}
			switch {
			case len(own) == 0:
				return usagef("CONTAINER is missing")
			case len(own) > 2:
				return usagef("%q is one argument too many (expected CONTAINER [DEVICE])", own[2])
			}
			return nil
		},
		ValidArgsFunction: t.completeContainers(true),
	}
	cmd.RunE = t.verb(func(ctx context.Context, args []string) error {
		var params []string
		if dash := cmd.ArgsLenAtDash(); dash >= 0 {
			args, params = args[:dash], args[dash:]
		}
		o.timed = cmd.Flags().Changed("timeout")
		return t.attach(ctx, o, args, params)
	})
	f := cmd.Flags()
	f.StringVar(&o.uri, "uri", "", "use the server with this NBD `URI`, and start none")
	f.IntVar(&o.connections, "nbd-connections", defaultLinks, "make up to `N` connections to the server")
	f.IntVar(&o.timeout, "timeout", defaultTimeout, "the kernel gives a connection up after `SECONDS` without an answer; 0: never")
	f.IntVar(&o.blockSize, "block-size", defaultBlockSize, "logical block size of the device, in `BYTES`")
	f.BoolVarP(&o.readOnly, "read-only", "r", false, "attach it read-only")
	f.BoolVar(&o.persist, "persist", false, "stay, and hold requests while the server is restarted")
	t.jsonFlag(cmd)
	f.IntVar(&o.wait, "wait", defaultWait, "with --persist, give the disk up when the server is away for `SECONDS`")
	return cmd
}

func (o *attachOptions) check() error {
	switch {
	case o.connections < 1 || o.connections > 64:
		return usagef("--nbd-connections must be from 1 to 64")
	case o.timeout < 0 || o.timeout > 86400:
		return usagef("--timeout must be from 0 to 86400")
	case o.wait < 1 || o.wait > 86400:
		return usagef("--wait must be from 1 to 86400")
	case o.blockSize < 512 || o.blockSize > 4096 || o.blockSize&(o.blockSize-1) != 0:
		return usagef("--block-size must be 512, 1024, 2048 or 4096")
	case o.timeout == 0 && o.connections > 1 && !o.persist:
		// drivers/block/nbd.c: nbd_xmit_timeout gives up one of several
		// connections after 30 seconds where no time is set.
		return usagef("--timeout 0 needs --nbd-connections 1: of several connections, the kernel gives up one without an answer after 30 seconds")
	}
	if o.uri != "" {
		if _, err := nbd.ParseURI(o.uri); err != nil {
			return usagef("--uri: %w", err)
		}
	}
	return nil
}

// attach attaches the disk args[0] as the device args[1], or as one that the
// kernel chooses.
func (t *tool) attach(ctx context.Context, o attachOptions, args, params []string) error {
	if err := o.check(); err != nil {
		return err
	}
	index := kernel.Any
	if len(args) > 1 {
		var err error
		if index, err = kernel.ParsePath(path.Clean(args[1])); err != nil {
			return usagef("%w", err)
		}
	}
	if o.uri != "" && len(params) > 0 {
		return usagef("parameters of the plugin have no effect with --uri")
	}
	name := args[0]
	if s, err := attachedAs(name); err == nil {
		return fmt.Errorf("%s is attached already, as %s", name, kernel.Path(s.Index))
	}
	if err := kernel.Permitted(); err != nil {
		return err
	}
	server, err := t.server(ctx, o, name, params)
	if err != nil {
		return err
	}
	defer server.close()
	if o.persist {
		return t.attachPersistent(ctx, o, name, index, server)
	}
	conns, export, err := dialAll(ctx, server.target, o.connections)
	if err != nil {
		server.stop()
		return unreached(ctx, name, err)
	}
	defer closeAll(conns)
	index, err = t.connect(o, name, index, export, time.Duration(o.timeout)*time.Second, conns)
	if err != nil {
		return err
	}
	return t.doneAttach(name, index)
}

// attached is what attach and detach print as JSON.
type attached struct {
	Container *string `json:"container"` // null: the device is no disk of ours
	Device    string  `json:"device"`
}

// doneAttach reports that the disk has its device.
func (t *tool) doneAttach(name string, index int) error {
	return t.done(attached{&name, kernel.Path(index)}, "%s", kernel.Path(index))
}

// connect gives the connections to the kernel.
func (t *tool) connect(o attachOptions, name string, index int, export nbd.Export, timeout time.Duration, conns []net.Conn) (int, error) {
	if export.Size%int64(o.blockSize) != 0 {
		t.warn("%s has %d bytes, which are no whole blocks of %d: the device lacks the last ones", name, export.Size, o.blockSize)
		export.Size -= export.Size % int64(o.blockSize)
	}
	flags := export.Flags
	if o.readOnly {
		flags |= nbd.FlagReadOnly
	}
	sockets := make([]*os.File, 0, len(conns))
	defer func() {
		for _, s := range sockets {
			s.Close()
		}
	}()
	for _, c := range conns {
		f, err := c.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			return 0, err
		}
		sockets = append(sockets, f)
	}
	got, err := kernel.Connect(kernel.Config{
		Index: index, Size: export.Size, BlockSize: o.blockSize, Timeout: timeout, Flags: flags,
		Backend: backendPrefix + name, Sockets: sockets,
	})
	if errors.Is(err, kernel.ErrInUse) && index != kernel.Any {
		return 0, fmt.Errorf("%s: %w", kernel.Path(index), err)
	}
	return got, err
}

// dialAll makes as many connections as the server allows, up to n.
func dialAll(ctx context.Context, target nbd.Target, n int) (conns []net.Conn, export nbd.Export, err error) {
	for i := 0; i < n && (i == 0 || export.Flags&nbd.FlagMultiConn != 0); i++ {
		c, e, err := nbd.Dial(ctx, target)
		if err != nil {
			closeAll(conns)
			return nil, export, err
		}
		conns, export = append(conns, c), e
	}
	return conns, export, nil
}

// unreached is the error of a disk whose server could not be reached.
func unreached(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		return &interruptedError{name}
	}
	return fmt.Errorf("%s: %w", name, err)
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}

// attachedAs returns the device as which the disk is attached.
func attachedAs(name string) (kernel.State, error) {
	states, err := kernel.List()
	if err != nil {
		return kernel.State{}, err
	}
	for _, s := range states {
		if s.Backend == backendPrefix+name {
			return s, nil
		}
	}
	return kernel.State{}, fmt.Errorf("%s is not attached", name)
}

// diskOf returns the name of the disk that a device is; nil: of none of ours.
func diskOf(index int) *string {
	states, _ := kernel.List() // what cannot be read says nothing
	for _, s := range states {
		if name, ours := strings.CutPrefix(s.Backend, backendPrefix); ours && s.Index == index {
			return &name
		}
	}
	return nil
}

func (t *tool) detachCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "detach {CONTAINER | DEVICE}",
		Short: "Detach a disk from the kernel",
		Long: `Detach a disk from the kernel's NBD client. Before that the command flushes the
device, so that Swift has everything that was written. It refuses a device that is in
use, such as a mounted file system.`,
		Args: needs("CONTAINER or DEVICE"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			index, err := deviceOf(args[0])
			if err != nil {
				return err
			}
			out := attached{Container: diskOf(index), Device: kernel.Path(index)}
			if err := kernel.Permitted(); err != nil {
				return err
			}
			if err := detach(index, force); err != nil || !t.json {
				return err
			}
			return t.encode(out)
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	t.jsonFlag(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "detach it although it is in use or cannot be flushed: what is not in Swift is lost")
	return cmd
}

// deviceOf returns the device that the argument names.
func deviceOf(arg string) (int, error) {
	if !strings.HasPrefix(arg, "/") {
		s, err := attachedAs(arg)
		return s.Index, err
	}
	index, err := kernel.ParsePath(path.Clean(arg))
	if err != nil {
		return 0, usagef("%w", err)
	}
	if !kernel.Connected(index) {
		return 0, fmt.Errorf("%s is not connected", kernel.Path(index))
	}
	return index, nil
}

// detach flushes and disconnects the device.
func detach(index int, force bool) error {
	if !force {
		busy, err := kernel.Busy(index)
		if err != nil {
			return err
		}
		if busy {
			return fmt.Errorf("%s is in use: unmount its file system, or end what else has it", kernel.Path(index))
		}
		if err := kernel.Flush(index); err != nil {
			return fmt.Errorf("%w: it stays attached", err)
		}
	}
	return kernel.Disconnect(index)
}
