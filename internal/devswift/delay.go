// SPDX-License-Identifier: MIT

package devswift

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// delay holds each request for one length of time, and at most a fifth of a
// millisecond more if the machine is not busy. Go's own timers would be late by
// half a millisecond on average, since the runtime sleeps whole milliseconds. A
// measurement at a latency of 20 ms would include that. So the timer is a file
// of the kernel, and the runtime waits for it as for a socket.
type delay struct {
	length  time.Duration
	closed  <-chan struct{}
	timer   *os.File // a timerfd
	waiting chan waiting
}

// waiting is one waiting request. All wait equally long, so the order of their
// arrival is the order of their ends.
type waiting struct {
	until time.Time
	over  chan struct{} // closed then
}

// maxWaiting is how many requests may wait. Another one first waits for a
// place.
const maxWaiting = 4096

// newDelay returns a delay that works until closed is closed.
func newDelay(length time.Duration, closed <-chan struct{}) (*delay, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	d := &delay{
		length:  length,
		closed:  closed,
		timer:   os.NewFile(uintptr(fd), "timerfd"),
		waiting: make(chan waiting, maxWaiting),
	}
	go d.run()
	go func() {
		<-closed
		d.timer.Close()
	}()
	return d, nil
}

// wait returns when the length has passed, the context ends, or the delay is
// closed.
func (d *delay) wait(ctx context.Context) {
	w := waiting{until: time.Now().Add(d.length), over: make(chan struct{})}
	select {
	case d.waiting <- w:
	case <-ctx.Done():
		return
	case <-d.closed:
		return
	}
	select {
	case <-w.over:
	case <-ctx.Done():
	case <-d.closed:
	}
}

func (d *delay) run() {
	for {
		select {
		case w := <-d.waiting:
			d.sleep(time.Until(w.until))
			close(w.over)
		case <-d.closed:
			return
		}
	}
}

// sleep returns after n, or at once when the timer has been closed.
func (d *delay) sleep(n time.Duration) {
	if n <= 0 {
		return
	}
	once := unix.ItimerSpec{Value: unix.NsecToTimespec(n.Nanoseconds())}
	conn, err := d.timer.SyscallConn()
	if err != nil {
		return
	}
	if e := conn.Control(func(fd uintptr) { err = unix.TimerfdSettime(int(fd), 0, &once, nil) }); e != nil || err != nil {
		return
	}
	var expirations [8]byte
	_, _ = d.timer.Read(expirations[:])
}
