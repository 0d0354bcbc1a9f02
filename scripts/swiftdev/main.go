// SPDX-License-Identifier: MIT

// Command swiftdev serves an embedded Swift on loopback, for trying swiftnbd
// out and for its tests: v1 authentication at /auth/v1.0, user test:tester with the
// key testing, and in an account of its own test2:tester2 with the key testing2.
//
// Once it listens it prints the authentication URL in one line on standard
// output. SIGTERM and SIGINT end it. Exit status: 0 after a signal, 1 when it
// failed, 2 for wrong usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"swiftnbd/internal/devswift"
)

// drain is how long requests under way may take once a signal came.
const drain = 5 * time.Second

// users are those of scripts/saio.sh, as far as tests of both need them.
var users = []devswift.User{
	{Account: "test", Name: "tester", Key: "testing"},
	{Account: "test2", Name: "tester2", Key: "testing2"},
}

func main() {
	// The heap is nearly all bodies, which cost nothing to scan: collect early
	// rather than hold twice their size.
	debug.SetGCPercent(30)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("swiftdev", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "Usage: swiftdev [--listen 127.0.0.1:PORT] [--dir DIR] [--latency 20ms] [--bandwidth 100M]")
		flags.PrintDefaults()
	}
	listen := flags.String("listen", "127.0.0.1:0", "loopback `address` and port to listen on; port 0 takes a free one")
	dir := flags.String("dir", "", "keep objects in this `directory` (default: in memory)")
	latency := flags.Duration("latency", 0, "wait this `time` before each answer")
	bandwidth := flags.String("bandwidth", "0", "limit bodies to this many `bytes` a second, both directions together; K, M and G are powers of 1024")
	life := flags.Duration("token-life", 0, "tokens are good for this `time` (default: a day)")
	dead := flags.Int("dead-token", 0, "answer a token that has ended with this `status` (default: 401; older gateways: 403)")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	usage := func(format string, a ...any) int {
		fmt.Fprintf(stderr, "swiftdev: "+format+"\n", a...)
		return 2
	}
	if flags.NArg() > 0 {
		return usage("unexpected argument %q", flags.Arg(0))
	}
	rate, err := parseBandwidth(*bandwidth)
	if err != nil {
		return usage("--bandwidth: %v", err)
	}
	if *latency < 0 {
		return usage("--latency: %v is negative", *latency)
	}
	if *life < 0 {
		return usage("--token-life: %v is negative", *life)
	}
	if *dead != 0 && *dead != http.StatusUnauthorized && *dead != http.StatusForbidden {
		return usage("--dead-token: %d is neither 401 nor 403", *dead)
	}
	if err := loopback(*listen); err != nil {
		return usage("--listen: %v", err)
	}
	if err := serve(ctx, *listen, devswift.Options{
		Dir: *dir, Latency: *latency, Bandwidth: rate, Journal: -1, TokenLife: *life, DeadToken: *dead, Users: users,
	}, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "swiftdev: %v\n", err)
		return 1
	}
	return 0
}

// serve answers until the context ends.
func serve(ctx context.Context, listen string, o devswift.Options, stdout, stderr io.Writer) error {
	o.Logger = slog.New(slog.NewTextHandler(stderr, nil))
	swift, err := devswift.New(o)
	if err != nil {
		return err
	}
	defer swift.Close()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: swift, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn)}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	if _, err := fmt.Fprintf(stdout, "http://%s/auth/v1.0\n", l.Addr()); err != nil {
		server.Close()
		return err
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		server.Close()
	}
	return swift.Close()
}

// loopback refuses an address that others could reach: the key is public.
func loopback(listen string) error {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return err
	}
	if host == "localhost" {
		return nil
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || !addr.IsLoopback() {
		return fmt.Errorf("%q is not a loopback address: this server is for tests, and its key is known to all", listen)
	}
	return nil
}

// parseBandwidth reads a number of bytes such as 65536, 500K or 100M.
func parseBandwidth(text string) (int64, error) {
	number, unit := text, int64(1)
	for i, suffix := range []string{"K", "M", "G"} {
		if rest, ok := strings.CutSuffix(strings.ToUpper(text), suffix); ok {
			number, unit = rest, 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, fmt.Errorf("%q is not a number of bytes such as 500K or 100M", text)
	}
	return n * unit, nil
}
