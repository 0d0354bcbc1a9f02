// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// spent is CPU time, by whose it is.
type spent struct {
	server time.Duration // nbdkit
	client time.Duration // fio, or net/http in this process
	swift  time.Duration
	bytes  int64
}

// perGB writes the CPU seconds a GB.
func (c spent) perGB() string {
	gb := float64(c.bytes) / 1e9
	if gb == 0 {
		return "-"
	}
	each := func(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()/gb) }
	if c.server == 0 {
		return "net/http " + each(c.client) + " Swift " + each(c.swift)
	}
	return "nbdkit " + each(c.server) + " fio " + each(c.client) + " Swift " + each(c.swift)
}

// plus adds another measurement.
func (c *spent) plus(d spent) {
	c.server += d.server
	c.client += d.client
	c.swift += d.swift
	c.bytes += d.bytes
}

// clockTick is the unit of times in /proc: USER_HZ, which is 100 on every
// architecture that Go runs on with Linux.
const clockTick = 10 * time.Millisecond

// processCPU returns the CPU time that a process has used so far; 0 for one
// that is gone.
func processCPU(pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// proc(5): utime and stime are the 14th and 15th field; the name, the
	// 2nd, is in parentheses and may hold spaces.
	at := bytes.LastIndexByte(data, ')')
	fields := strings.Fields(string(data[at+1:]))
	if len(fields) < 13 {
		return 0
	}
	var sum int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0
		}
		sum += n
	}
	return time.Duration(sum) * clockTick
}

// selfCPU returns the CPU time that this process has used.
func selfCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cpu returns the CPU time that the cloud's processes have used.
func (c *swiftServer) cpu() time.Duration {
	if c.pid != 0 {
		return processCPU(c.pid)
	}
	var sum time.Duration
	files, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(c.log)), "run", "*.pid"))
	if err != nil {
		return 0
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && !strings.HasSuffix(f, ".own.pid") {
			sum += processCPU(pid)
		}
	}
	return sum
}

// perIO is CPU time a request.
type perIO struct {
	cpu time.Duration
	ios int64
}

func (p *perIO) add(cpu time.Duration, ios int64) {
	p.cpu += cpu
	p.ios += ios
}

func (p perIO) String() string {
	if p.ios == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f us", float64(p.cpu.Microseconds())/float64(p.ios))
}
