// SPDX-License-Identifier: MIT

// Command swiftnbd-ctl manages the containers that hold disks: it sets them up,
// lists, locks, unlocks, downloads and deletes them. It has the verbs and flags
// of swiftnbd 0.11's tool of the same name, so that old scripts still work.
//
// Results go to standard output. Errors, warnings and the progress bar go to
// standard error. The exit status is 0, or 1 if the operation failed, or 2 if
// the command line was wrong; verify has two more.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"swiftnbd/internal/cmdline"
	"swiftnbd/internal/config"
)

// program is the name that messages begin with.
const program = "swiftnbd-ctl"

// The exit statuses.
const (
	exitFailed = 1
	exitUsage  = 2
	exitStrays = 3 // verify: nothing is wrong but objects that nobody needs
	exitDamage = 4 // verify: something of the disk is damaged or lost
)

// oneWish is how long signals after the first one count as the same wish to end.
// timeout(1) sends its signal to the program and then to the program's group. A
// terminal that goes away ends the program by the kernel, and by the shell.
const oneWish = time.Second

func main() {
	// If the reader of our output goes away, the signal must not kill us while
	// we hold a lock. The write fails instead.
	signal.Ignore(syscall.SIGPIPE)
	ends := []os.Signal{syscall.SIGTERM}
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGHUP} {
		if !signal.Ignored(s) { // as under nohup
			ends = append(ends, s)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	// The first signal lets the operation clean up and end. A second signal
	// meanwhile ends the program at once, unless it comes with the first.
	context.AfterFunc(ctx, func() {
		time.Sleep(oneWish)
		stop()
	})
	os.Exit(usual.run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}

// run is the whole program, at its pace: it returns the exit status.
func (p pace) run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env config.Environ) int {
	t := &tool{stdin: stdin, stdout: stdout, stderr: &console{out: stderr}, env: env, pace: p}
	defer t.close()
	root := t.root()
	cmd := root
	args, err := cmdline.Expand(root, args)
	if err == nil {
		root.SetArgs(args)
		cmd, err = root.ExecuteContextC(ctx)
	}
	if err == nil && t.unsaid != nil {
		// What was asked for is done, and a script must not take what was
		// printed for all.
		err = t.unsaid
	}
	if err == nil {
		return 0
	}
	var usage *usageError
	var verdict verdictError
	switch {
	case errors.As(err, &verdict):
		return int(verdict)
	case errors.Is(err, errReported):
		return exitFailed
	case errors.Is(err, syscall.EPIPE):
		return exitFailed // the reader of our output has gone
	case errors.As(err, &usage) || !t.begun:
		// Cobra's own errors come before a verb has begun.
		fmt.Fprintf(stderr, "%s: %v\nTry '%s --help'.\n", program, err, cmd.CommandPath())
		return exitUsage
	}
	t.fault(t.goOnAfter(err))
	return exitFailed
}

// usageError is a mistake in the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usagef returns a usageError.
func usagef(format string, a ...any) error { return &usageError{fmt.Errorf(format, a...)} }

// verdictError is the exit status of a verb that has done what was asked, and
// has found something wrong.
type verdictError int

func (v verdictError) Error() string { return fmt.Sprintf("exit status %d", int(v)) }

// errReported is the error of an operation that has already reported what
// failed.
var errReported = errors.New("failed")
