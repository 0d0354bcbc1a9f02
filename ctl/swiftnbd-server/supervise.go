// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// closedVariable names the descriptor on which the plugin says that all disks
// are closed after a signal (tellClosed in the plugin).
const closedVariable = "SWIFTNBD_CLOSED_FD"

// supervise runs nbdkit until it ends, and returns its exit status. It calls
// ready when nbdkit serves. nbdkit's messages go to plain, if that is not nil
// and the options ask for no log. Otherwise they go to the log, and until
// nbdkit serves to standard error too. supervise returns an error only if
// nbdkit has not reported it itself.
func supervise(o *options, plain *os.File, ready func()) (int, error) {
	signals := notify()
	pid, err := lockPidFile(o.pidFile)
	if err != nil {
		return exitFailed, err
	}
	defer pid.remove()
	var log *logger
	if plain == nil || o.logFile != "" || o.syslog {
		if log, err = openLog(o); err != nil {
			return exitFailed, err
		}
		defer log.close()
		plain = nil
	}
	n, err := startNbdkit(o.nbdkitArgs(), plain)
	if err != nil {
		return exitFailed, err
	}
	relayed := make(chan struct{})
	go func() {
		defer close(relayed)
		log.relay(n.says)
	}()
	go func() {
		for s := range signals {
			log.say("INFO", fmt.Sprintf("Stopping (%v)", s))
			_ = n.cmd.Process.Signal(s)
		}
	}()
	began := make(chan error, 1)
	go func() {
		if !n.serves() {
			began <- nil
			return
		}
		err := pid.write()
		if err != nil {
			_ = n.cmd.Process.Signal(syscall.SIGTERM)
		} else {
			log.begun(fmt.Sprintf("Starting to serve on %s:%d", o.bindAddress, o.bindPort))
			ready()
		}
		began <- err
	}()
	code, err := n.wait()
	if pidErr := <-began; pidErr != nil {
		code, err = exitFailed, pidErr
	}
	<-relayed
	log.say("INFO", "Exiting...")
	return code, err
}

// nbdkit is an nbdkit that has been started.
type nbdkit struct {
	cmd    *exec.Cmd
	ready  *os.File  // it writes its process id to this when it serves
	closed *os.File  // the plugin writes the exit status to this when a signal has closed all disks
	says   io.Reader // its messages, if they do not go to a file
}

// startNbdkit starts nbdkit. Its messages go to plain. If plain is nil, they
// are to be read from says.
func startNbdkit(args []string, plain *os.File) (*nbdkit, error) {
	path, err := exec.LookPath("nbdkit")
	if err != nil {
		return nil, errors.New("nbdkit is not installed (Debian: apt-get install nbdkit)")
	}
	n := &nbdkit{says: strings.NewReader("")}
	var ours []*os.File // nbdkit's ends of the pipes, which this process closes
	defer func() {
		for _, f := range ours {
			f.Close()
		}
	}()
	pipe := func() *os.File {
		r, w, pipeErr := os.Pipe()
		if pipeErr != nil {
			err = pipeErr
			return nil
		}
		ours = append(ours, w)
		return r
	}
	n.ready, n.closed = pipe(), pipe()
	if plain == nil {
		n.says = pipe()
	}
	if err != nil {
		return nil, err
	}
	n.cmd = exec.Command(path, append([]string{"-P", fmt.Sprintf("/dev/fd/%d", readyFD)}, args...)...)
	n.cmd.ExtraFiles = ours[:2] // readyFD and the next
	n.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", closedVariable, readyFD+1))
	if plain == nil {
		plain = ours[2]
	}
	n.cmd.Stderr = plain
	// nbdkit has a process group of its own. A signal of the terminal then
	// reaches it through us, and only once.
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := n.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start nbdkit: %w", err)
	}
	return n, nil
}

// serves waits until nbdkit serves or has ended, and says whether it serves.
func (n *nbdkit) serves() bool {
	line, _ := bufio.NewReader(n.ready).ReadString('\n')
	return line != ""
}

// wait waits for nbdkit's end, and returns its exit status. After a signal, the
// plugin writes everything to Swift and unlocks the containers. nbdkit then
// still waits for its clients to leave, which 0.11 did not. So wait kills
// nbdkit at this point.
func (n *nbdkit) wait() (int, error) {
	told := make(chan int, 1)
	go func() {
		defer close(told)
		b := make([]byte, 1)
		if got, _ := n.closed.Read(b); got == 1 {
			told <- int(b[0])
			_ = n.cmd.Process.Kill()
		}
	}()
	code, err := status(n.cmd.Wait())
	if s, ok := <-told; ok && code == 128+int(syscall.SIGKILL) {
		code = s
	}
	return code, err
}
