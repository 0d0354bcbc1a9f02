// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// defaultInterval is the default of --interval, seconds.
const defaultInterval = 2

// topOptions are the options of top.
type topOptions struct {
	interval float64 // seconds
	once     bool
}

func (t *tool) topCommand() *cobra.Command {
	var o topOptions
	cmd := &cobra.Command{
		Use:   "top ADDRESS",
		Short: "Show what a running nbdkit does, live",
		Long: `Show the counters of a running nbdkit, live: reads, writes and flushes of each disk
and how long they take, how full the cache is, what Swift lacks and for how long, and
the requests to Swift. ADDRESS is what nbdkit was given as metrics=: unix:PATH or
HOST:PORT.

On a terminal it is a screen; q or Ctrl-C ends it. In a pipe it is a line for each
interval, of all disks together.`,
		Example: `  swiftnbd-ctl top unix:/run/swiftnbd/counters
  swiftnbd-ctl top 127.0.0.1:9810 --interval 10 --json`,
		Args: needs("ADDRESS"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			if !(o.interval >= 0.1 && o.interval <= 86400) {
				return usagef("--interval: must be from 0.1 to 86400 seconds")
			}
			c, err := newCounters(args[0])
			if err != nil {
				return err
			}
			return t.top(ctx, c, o)
		}),
		ValidArgsFunction: func(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 && strings.HasPrefix("unix:", prefix) {
				return []cobra.Completion{"unix:"}, cobra.ShellCompDirectiveNoSpace
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	f := cmd.Flags()
	f.Float64Var(&o.interval, "interval", defaultInterval, "measure for `SECONDS` at a time")
	f.BoolVar(&o.once, "once", false, "measure once, print it, and end")
	f.BoolVar(&t.json, "json", false, "print a JSON object for each interval, on a line of its own")
	return cmd
}

// top shows the counters until it is ended, which is no error.
func (t *tool) top(ctx context.Context, c *counters, o topOptions) error {
	out, onTerminal := terminal(t.stdout)
	if onTerminal && !o.once && !t.json && t.env("TERM") != "dumb" {
		return t.topScreen(ctx, c, o, out)
	}
	was, err := c.read(ctx)
	for err == nil {
		var now sample
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(o.pause()):
		}
		if now, err = c.read(ctx); err != nil {
			break
		}
		if restarted(was, now) {
			t.warn("%s: nbdkit was started anew", c.address)
			was = now
			continue
		}
		if err := t.printTop(interval(was, now), o.once); err != nil || o.once {
			return err
		}
		was = now
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (o topOptions) pause() time.Duration { return time.Duration(o.interval * float64(time.Second)) }

// printTop prints an interval in a pipe; once: everything.
func (t *tool) printTop(i *topped, once bool) error {
	text := i.line()
	switch {
	case t.json:
		line, err := json.Marshal(i)
		if err != nil {
			return err
		}
		text = string(line)
	case once:
		text = strings.Join(i.lines("", nil)[2:], "\n")
	}
	_, err := fmt.Fprintln(t.stdout, text)
	return err
}

// Sequences that terminals of all kinds know: the other screen and back, without
// the cursor and with it; the first place; the rest of a line, and of the screen,
// is blank.
const (
	screenOn  = "\x1b[?1049h\x1b[?25l"
	screenOff = "\x1b[?25h\x1b[?1049l"
	screenTop = "\x1b[H"
	lineEnd   = "\x1b[K"
	screenEnd = "\x1b[J"
)

// topScreen shows the counters on a terminal.
func (t *tool) topScreen(ctx context.Context, c *counters, o topOptions, out *os.File) (err error) {
	keys := make(chan byte)
	if in, ok := terminal(t.stdin); ok {
		// Keys come at once, and Ctrl-C as a key.
		before, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return err
		}
		defer func() { _ = term.Restore(int(in.Fd()), before) }()
		go func() {
			one := make([]byte, 1)
			for {
				if n, err := in.Read(one); n == 0 || err != nil {
					return
				}
				keys <- one[0]
			}
		}()
	}
	if _, err := out.WriteString(screenOn); err != nil {
		return err
	}
	defer func() { _, _ = out.WriteString(screenOff) }()

	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	type reading struct {
		sample
		err error
	}
	readings := make(chan reading, 1)
	read := func() {
		s, err := c.read(ctx)
		readings <- reading{s, err}
	}
	go read()

	var was sample
	var shown *topped
	var trouble error
	next := time.NewTimer(time.Hour)
	defer next.Stop()
	for first := true; ; {
		if err := drawTop(out, shown.lines(c.address, trouble)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case key := <-keys:
			if key == 'q' || key == 'Q' || key == 3 { // Ctrl-C
				return nil
			}
		case <-resized:
		case <-next.C:
			go read()
		case r := <-readings:
			next.Reset(o.pause())
			switch {
			case r.err != nil && first:
				return r.err // most likely the address is wrong
			case r.err != nil:
				trouble = r.err
				was = sample{}
			case was.families == nil || restarted(was, r.sample):
				if trouble != nil || was.families != nil {
					trouble = errors.New("nbdkit was started anew")
				}
				was = r.sample
			default:
				shown, trouble = interval(was, r.sample), nil
				was = r.sample
			}
			first = false
		}
	}
}

// drawTop draws the lines, as far as they fit.
func drawTop(out *os.File, lines []string) error {
	columns, rows, err := term.GetSize(int(out.Fd()))
	if err != nil || columns < 1 || rows < 1 {
		columns, rows = 80, 24 // a terminal may have no size
	}
	var b strings.Builder
	b.WriteString(screenTop)
	for i, line := range lines[:min(len(lines), rows)] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		if r := []rune(line); len(r) > columns {
			line = string(r[:columns])
		}
		b.WriteString(line + lineEnd)
	}
	b.WriteString(screenEnd)
	_, err = out.WriteString(b.String())
	return err
}
