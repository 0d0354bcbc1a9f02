// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"fmt"
	"io"
	"log/syslog"
	"os"
	"strings"
	"sync"
	"time"
)

// logger writes messages in the form of swiftnbd 0.11. Its methods may be
// called on nil, which writes nothing.
type logger struct {
	file   *os.File
	syslog *syslog.Writer

	mu     sync.Mutex // guards all below
	serves bool       // nbdkit serves
}

// syslogAddresses are where a system logger may listen, in the order in which
// 0.11 tried them.
var syslogAddresses = [][2]string{{"unixgram", "/dev/log"}, {"udp", "localhost:514"}}

// openLog opens the log that the options ask for. If they ask for none, it is
// the system's logger, if there is one.
func openLog(o *options) (*logger, error) {
	l := new(logger)
	switch {
	case o.syslog || o.logFile == "":
		for _, a := range syslogAddresses {
			w, err := syslog.Dial(a[0], a[1], syslog.LOG_LOCAL0|syslog.LOG_INFO, "swiftnbd")
			if err == nil {
				l.syslog = w
				break
			}
			if !o.syslog {
				break // nobody has asked for the system's log, so do not use the network
			}
		}
		if o.syslog && l.syslog == nil {
			return nil, fmt.Errorf("--syslog: there is no system logger")
		}
	default:
		f, err := os.OpenFile(o.logFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			return nil, fmt.Errorf("--log-file: %w", err)
		}
		l.file = f
	}
	return l, nil
}

// level returns the level of a message from nbdkit.
func level(line string) string {
	switch {
	case strings.Contains(line, " debug: "):
		return "DEBUG"
	case strings.Contains(line, " error: "):
		return "ERROR"
	case strings.Contains(line, " warning: "):
		return "WARNING"
	}
	return "INFO"
}

// begun logs a message, and that nbdkit serves.
func (l *logger) begun(message string) {
	if l == nil {
		return
	}
	l.say("INFO", message)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serves = true
}

// relay writes nbdkit's messages to the log, until there are no more. Messages
// from before nbdkit serves also go to standard error, for the person who has
// started it.
func (l *logger) relay(said io.Reader) {
	lines := bufio.NewReader(said)
	for {
		line, err := lines.ReadString('\n')
		if line = strings.TrimRight(line, "\n"); line != "" {
			l.mu.Lock()
			aloud := !l.serves && level(line) != "DEBUG"
			l.mu.Unlock()
			if aloud {
				fmt.Fprintln(os.Stderr, line)
			}
			l.say(level(line), line)
		}
		if err != nil {
			return
		}
	}
}

// say logs a message. If the log cannot be written, the server still goes on.
func (l *logger) say(level, message string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_, _ = fmt.Fprintf(l.file, "%s: swiftnbd: %s: %s\n", time.Now().Format("2006-01-02 15:04:05,000"), level, message)
	}
	if l.syslog != nil {
		line := level + ": " + message
		switch level {
		case "DEBUG":
			_ = l.syslog.Debug(line)
		case "ERROR":
			_ = l.syslog.Err(line)
		case "WARNING":
			_ = l.syslog.Warning(line)
		default:
			_ = l.syslog.Info(line)
		}
	}
}

// close closes the log.
func (l *logger) close() {
	if l.file != nil {
		l.file.Close()
	}
	if l.syslog != nil {
		l.syslog.Close()
	}
}
