// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"swiftnbd/internal/nbd"
	"swiftnbd/internal/nbd/bridge"
	"swiftnbd/internal/nbd/kernel"
)

// attachPersistent attaches the disk and stays between the kernel and the server
// until the disk is detached.
func (t *tool) attachPersistent(ctx context.Context, o attachOptions, name string, index int, s *server) error {
	log := func(format string, args ...any) {
		fmt.Fprintf(t.stderr, "%s: %s: %s\n", program, name, fmt.Sprintf(format, args...))
	}
	// The server outlives the bridge, whose last requests it answers.
	serverCtx, endServer := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	ours := s.argv != nil
	if ours {
		restart := make(chan os.Signal, 1)
		signal.Notify(restart, syscall.SIGUSR1)
		defer signal.Stop(restart)
		go func() { ended <- s.keepRunning(serverCtx, restart, log) }()
	}
	err := t.bridge(ctx, o, name, index, s, log, ended)
	endServer()
	if ours {
		if serverErr := <-ended; err == nil && serverErr != nil {
			err = fmt.Errorf("nbdkit: %w", serverErr)
		}
	}
	return err
}

// bridge connects the server and the kernel, and serves until the disk is
// detached.
func (t *tool) bridge(ctx context.Context, o attachOptions, name string, index int, s *server, log func(string, ...any), ended chan error) error {
	wait := time.Duration(o.wait) * time.Second
	dial := func(ctx context.Context) (net.Conn, nbd.Export, error) { return nbd.Dial(ctx, s.target) }
	b, err := firstBridge(ctx, s, ended, bridge.Options{Dial: dial, Connections: o.connections, Wait: wait, Log: log})
	if err != nil {
		return unreached(ctx, name, err)
	}
	if err := b.CanResume(); err != nil {
		return fmt.Errorf("--persist is not possible: %w", errors.Join(err, b.Close()))
	}
	ours, kernels, err := socketPair()
	if err != nil {
		return errors.Join(err, b.Close())
	}
	// A request waits for the server no longer than wait, and then for its
	// answer.
	timeout := wait + defaultTimeout*time.Second
	if o.timed {
		timeout = time.Duration(o.timeout) * time.Second
	}
	served := make(chan error, 1)
	go func() { served <- b.Serve(context.WithoutCancel(ctx), ours) }()
	index, err = t.connect(o, name, index, b.Export(), timeout, []net.Conn{kernels})
	kernels.Close() // the kernel has its own
	if err != nil {
		<-served
		return err
	}
	if err := t.doneAttach(name, index); err != nil {
		t.unsaid = err // the disk is attached all the same
	}
	if err := notify(t.env("NOTIFY_SOCKET"), "READY=1"); err != nil {
		log("systemd is not told: %v", err)
	}
	select {
	case err = <-served:
	case <-ctx.Done():
		_ = notify(t.env("NOTIFY_SOCKET"), "STOPPING=1")
		err = t.detachWhenFree(index, served, log)
	}
	var lost *bridge.LostError
	if errors.As(err, &lost) {
		// The kernel ends what is under way with errors.
		err = errors.Join(fmt.Errorf("%w. %s gives errors from now on. What was flushed is in Swift. "+
			"Unmount the file system, attach the disk again, and mount it: it is as after a power cut", lost, kernel.Path(index)),
			kernel.Disconnect(index))
	}
	return err
}

// firstBridge connects to the server. One of ours may still be starting.
func firstBridge(ctx context.Context, s *server, ended chan error, o bridge.Options) (*bridge.Bridge, error) {
	for {
		b, err := bridge.New(ctx, o)
		s.served.Store(err == nil)
		starting := errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
		if err == nil || s.argv == nil || !starting {
			return b, err
		}
		select {
		case err := <-ended:
			ended <- err
			return nil, err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// detachWhenFree detaches the device as soon as nobody uses it.
func (t *tool) detachWhenFree(index int, served <-chan error, log func(string, ...any)) error {
	for last := ""; ; {
		err := detach(index, false)
		if err == nil {
			return <-served
		}
		if err.Error() != last {
			last = err.Error()
			log("not detached yet: %v", err)
		}
		select {
		case err := <-served:
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// socketPair returns two connected sockets.
func socketPair() (a, b net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	conns := make([]net.Conn, 0, 2)
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			closeAll(conns)
			return nil, nil, err
		}
		conns = append(conns, c)
	}
	return conns[0], conns[1], nil
}

// notify tells the service manager how we are (sd_notify(3)). Without a manager
// it does nothing.
func notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	if socket[0] == '@' {
		socket = "\x00" + socket[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}
