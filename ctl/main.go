// SPDX-License-Identifier: MIT

// Command swiftnbd-ctl looks after the containers that hold disks: it sets
// them up, lists, locks, unlocks, downloads and deletes them. It takes the
// verbs and flags of swiftnbd 0.11's tool of that name, so that scripts go on
// working.
//
// What was asked for goes to standard output; errors, warnings and the
// progress bar go to standard error. The exit status is 0, 1 where the
// operation failed, 2 where the command line was wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"swiftnbd/internal/config"
)

// program is the name that messages begin with.
const program = "swiftnbd-ctl"

// The exit statuses.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	// A reader that goes away must not kill us with a lock in our hands: the
	// write fails instead.
	signal.Ignore(syscall.SIGPIPE)
	ends := []os.Signal{syscall.SIGTERM}
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGHUP} {
		if !signal.Ignored(s) { // as under nohup
			ends = append(ends, s)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	// The first signal ends the operation in good order; a second one, while
	// that takes its time, ends the program at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}

// run is the whole program: it returns the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env config.Environ) int {
	t := &tool{stdin: stdin, stdout: stdout, stderr: &console{out: stderr}, env: env}
	defer t.close()
	root := t.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var usage *usageError
	switch {
	case errors.Is(err, errReported):
		return exitFailed
	case errors.Is(err, syscall.EPIPE):
		return exitFailed // whoever read our output has gone, and knows
	case errors.As(err, &usage) || !t.begun:
		// Cobra's own errors come before a verb has begun.
		fmt.Fprintf(stderr, "%s: %v\nTry '%s --help'.\n", program, err, cmd.CommandPath())
		return exitUsage
	}
	t.fault(err)
	return exitFailed
}

// usageError is a mistake in the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usagef returns a usageError.
func usagef(format string, a ...any) error { return &usageError{fmt.Errorf(format, a...)} }

// errReported is the error of an operation that has said itself what failed.
var errReported = errors.New("failed")
