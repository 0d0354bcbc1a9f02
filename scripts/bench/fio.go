// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// fioJob is a job for fio, the client of nearly all lines. For sequential
// reads and writes it is fairer than nbdcopy: it does them in one sequence
// over one connection, where nbdcopy cuts the disk into runs of 128 MiB, a
// thread and a connection each; it asks for no extents, which would be
// requests of their own; and its time begins with the first request rather
// than with the process. The same job with the same data goes to both sides of
// a pair, where both speak NBD.
type fioJob struct {
	uri     string // the NBD server; empty: file is used
	file    string
	rw      string
	bs      int64
	depth   int // requests in flight
	jobs    int // clients, a connection each; 0: 1
	size    int64
	offset  int64
	runtime time.Duration // 0: until size is done
	extra   []string
}

// fioResult is what fio found, over all its clients.
type fioResult struct {
	seconds float64
	bytes   int64
	ios     int64   // reads and writes
	latency float64 // of one of them, mean, seconds
	syncs   int64
	syncLat float64 // of a flush, mean, seconds
	cpu     time.Duration
}

func (r fioResult) mbps() float64 { return float64(r.bytes) / 1e6 / r.seconds }
func (r fioResult) iops() float64 { return float64(r.ios) / r.seconds }

// fioSide is "read" or "write" of fio's JSON.
type fioSide struct {
	Bytes   int64   `json:"io_bytes"`
	IOs     int64   `json:"total_ios"`
	Runtime float64 `json:"runtime"` // ms
	IOPS    float64 `json:"iops"`
	Lat     struct {
		Mean float64 `json:"mean"`
	} `json:"lat_ns"`
}

func (s *suite) fio(j fioJob) (fioResult, error) {
	args := []string{
		"--name=bench", "--output-format=json", "--group_reporting", "--thread",
		"--rw=" + j.rw, fmt.Sprintf("--bs=%d", j.bs), fmt.Sprintf("--iodepth=%d", max(1, j.depth)),
		fmt.Sprintf("--size=%d", j.size), fmt.Sprintf("--offset=%d", j.offset), fmt.Sprintf("--numjobs=%d", max(1, j.jobs)),
		"--randrepeat=0", "--norandommap",
	}
	if j.uri != "" {
		args = append(args, "--ioengine=nbd", "--uri="+j.uri)
	} else {
		args = append(args, "--filename="+j.file)
	}
	if j.runtime > 0 {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%dms", j.runtime.Milliseconds()))
	}
	args = append(args, j.extra...)
	cmd := exec.CommandContext(s.ctx, "fio", args...)
	cmd.Dir = s.dir // where it may leave files
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fioResult{}, fmt.Errorf("fio %s: %w\n%s%s", strings.Join(args, " "), err, stderr.String(), stdout.String())
	}
	out := stdout.Bytes()
	if at := bytes.IndexByte(out, '{'); at > 0 {
		out = out[at:] // warnings come first
	}
	var report struct {
		Jobs []struct {
			Error int     `json:"error"`
			Read  fioSide `json:"read"`
			Write fioSide `json:"write"`
			Sync  struct {
				IOs int64 `json:"total_ios"`
				Lat struct {
					Mean float64 `json:"mean"`
				} `json:"lat_ns"`
			} `json:"sync"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return fioResult{}, fmt.Errorf("fio's report: %w\n%s", err, stdout.String())
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 {
		return fioResult{}, fmt.Errorf("fio failed\n%s%s", stderr.String(), stdout.String())
	}
	job := report.Jobs[0]
	side := job.Read
	if job.Write.IOs > 0 {
		side = job.Write
	}
	if side.IOs == 0 || side.Runtime == 0 {
		return fioResult{}, fmt.Errorf("fio did nothing\n%s%s", stderr.String(), stdout.String())
	}
	return fioResult{
		seconds: side.Runtime / 1e3, bytes: side.Bytes, ios: side.IOs, latency: side.Lat.Mean / 1e9,
		syncs: job.Sync.IOs, syncLat: job.Sync.Lat.Mean / 1e9,
		cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(),
	}, nil
}
