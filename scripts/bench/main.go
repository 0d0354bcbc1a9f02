// SPDX-License-Identifier: MIT

// Command bench measures swiftnbd against what the same Swift can do. It
// starts everything on loopback: the embedded Swift with 20 ms of latency, the
// real Swift of scripts/saio.sh, nbdkit with the plugin, nbdkit's memory
// plugin, and fio.
//
// A line of its table is a ratio of ours to a limit or a peer, both measured
// in this run in turn (limit, ours, limit, ours, …), at least three times: the
// median of the pairs' ratios with the smallest and the largest. The limit is
// the same number of connections doing the same object GETs and PUTs with
// nothing but net/http.
//
// What has slow a machine makes it fail nothing: the exit status is 1 when a
// job could not be done, and 0 otherwise, whatever the ratios are.
//
//	go run ./scripts/bench                       every line
//	go run ./scripts/bench --list                the lines' names
//	go run ./scripts/bench --only seq-read/dev   the lines whose names begin so
//	go run ./scripts/bench --table object-size   the manual's table
//	go run ./scripts/bench --sweep connections   figures for a default
//	go run ./scripts/bench --profile seq-read/dev/4M   where the time goes
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// options are the command line's.
type options struct {
	only    []string // prefixes of the names of lines; empty: all
	pairs   int      // measurements of each side
	scale   float64  // of amounts of data and of durations
	json    string
	build   string // the directory of the plugin
	port    int    // the real Swift's first port
	state   string // the real Swift's directory; empty: one that is removed
	latency time.Duration
	conns   int
	extra   []string // more parameters for the plugin
	object  int64    // the size of objects where a line does not say
	full    bool
	verbose bool
}

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) > 0 && args[0] == serveCommand {
		return serveDev(args[1:])
	}
	if len(args) > 0 && args[0] == hopCommand {
		return serveHop(args[1:])
	}
	var (
		o                             options
		only, param, table, swp, prof string
		list                          bool
	)
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&only, "only", "", "measure the lines whose names begin with one of these `names` (comma-separated)")
	flags.BoolVar(&list, "list", false, "name the lines and end")
	flags.IntVar(&o.pairs, "pairs", 3, "measure each side this many `times`")
	flags.Float64Var(&o.scale, "scale", 1, "multiply amounts of data and durations by this `factor`")
	flags.StringVar(&o.json, "json", "build/bench.json", "write the results to this `file` too; empty: not")
	flags.StringVar(&o.build, "build", "build", "the `directory` of the plugin")
	flags.IntVar(&o.port, "port", 0, "the first of ten `ports` for the real Swift; 0: those that are free")
	flags.StringVar(&o.state, "state", "", "keep the real Swift, running, in this `directory` for the next time")
	flags.DurationVar(&o.latency, "latency", 20*time.Millisecond, "the embedded Swift's `time` for an answer")
	flags.IntVar(&o.conns, "connections", 16, "the plugin's and the limit's connections")
	flags.StringVar(&param, "param", "", "more `parameters` for the plugin (KEY=VALUE, comma-separated)")
	flags.Int64Var(&o.object, "object-size", 1<<20, "`bytes` of an object where the line does not say")
	flags.StringVar(&table, "table", "", "print a `table` for the manual: object-size")
	flags.StringVar(&swp, "sweep", "", "print a sweep of `what`: connections, readahead or writeback-age")
	flags.StringVar(&prof, "profile", "", "profile a `job`, such as seq-read/dev/4M, on a device without nbdkit")
	flags.BoolVar(&o.verbose, "v", false, "say what is being done")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: bench [FLAGS]; BENCH_FULL=1 measures for longer")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	o.full = os.Getenv("BENCH_FULL") == "1"
	if only != "" {
		o.only = strings.Split(only, ",")
	}
	if param != "" {
		o.extra = strings.Split(param, ",")
	}
	if flags.NArg() > 0 || o.pairs < 1 || o.scale <= 0 {
		flags.Usage()
		return 2
	}
	if list {
		for _, l := range lines(&suite{options: o}) {
			fmt.Printf("%-28s %s\n", l.name, l.what)
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := measure(ctx, o, table, swp, prof)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// measure does what the command line asks for.
func measure(ctx context.Context, o options, table, swp, prof string) (err error) {
	s, err := newSuite(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	switch {
	case table == "object-size":
		return s.objectSizeTable()
	case table != "":
		return fmt.Errorf("there is no table %q", table)
	case swp != "":
		return s.sweep(swp)
	case prof != "":
		return s.profile(prof)
	}
	return s.runLines()
}
