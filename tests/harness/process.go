// SPDX-License-Identifier: MIT

package harness

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a program that runs beside the test. It is killed when the test
// ends. If the test failed, its output is logged.
type Process struct {
	Pid  int
	name string
	out  log
	done chan struct{}

	status syscall.WaitStatus // valid once done is closed
}

// log collects the output of a program.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Start starts a program, and takes it down when the test ends.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p, err := start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(t) })
	return p
}

// start starts a program. The caller must end it. Standard output and error go
// to the log, unless the caller has set them.
func start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{name: filepath.Base(cmd.Path), done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.out
	}
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.Pid = cmd.Process.Pid
	go func() {
		defer close(p.done)
		cmd.Wait() // its error has nothing that the state lacks
		if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
			p.status = s
		}
	}()
	return p, nil
}

// Adopt makes a Process of an orphan that became our child because we are its
// subreaper, such as an nbdkit that went into the background.
func Adopt(t testing.TB, name string, pid int) *Process {
	p := &Process{name: name, Pid: pid, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		for {
			var s syscall.WaitStatus
			got, err := syscall.Wait4(pid, &s, 0, nil)
			switch {
			case got == pid:
				p.status = s
				return
			case err == syscall.ECHILD && Alive(pid):
				// Its parent has not ended yet. It becomes our child at any
				// moment.
				time.Sleep(10 * time.Millisecond)
			case err == syscall.EINTR:
			default:
				return
			}
		}
	}()
	t.Cleanup(func() { p.end(t) })
	return p
}

func (p *Process) end(t testing.TB) {
	p.kill()
	if t.Failed() {
		t.Logf("%s (pid %d), %s, said:\n%s", p.name, p.Pid, p.how(), p.Output())
	}
}

func (p *Process) kill() {
	if p.Running() {
		syscall.Kill(p.Pid, syscall.SIGKILL)
	}
	<-p.done
}

func (p *Process) how() string {
	if p.status.Signaled() {
		return "ended by " + p.status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", p.status.ExitStatus())
}

// Running says whether the program still runs.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Until waits for a file by which the program reports its progress. If the
// program ends without the file, the test fails.
func (p *Process) Until(t testing.TB, file string) {
	t.Helper()
	Eventually(t, p.name+" makes "+filepath.Base(file), func() bool {
		_, err := os.Stat(file)
		if err != nil && !p.Running() {
			t.Fatalf("%s came to an end: %s\n%s", p.name, p.how(), p.Output())
		}
		return err == nil
	})
}

// Output returns the program's output so far.
func (p *Process) Output() string { return p.out.String() }

// Signal sends a signal to the program.
func (p *Process) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(p.Pid, sig); err != nil {
		t.Fatalf("kill -%d %d (%s): %v", sig, p.Pid, p.name, err)
	}
}

// Wait waits for the program's end and returns its exit status, or 128 and the
// signal's number as a shell does.
func (p *Process) Wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(2 * Patience):
		t.Fatalf("%s (pid %d) did not end in %v", p.name, p.Pid, 2*Patience)
	}
	if p.status.Signaled() {
		return 128 + int(p.status.Signal())
	}
	return p.status.ExitStatus()
}

// Alive says whether a process runs. A zombie does not run.
func Alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The form is "pid (comm) state ...". comm may hold anything, also
	// parentheses.
	_, rest, ok := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " ")
	return ok && !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// Mentioning returns the processes, zombies and the test itself left out,
// whose command line has an argument that contains s.
func Mentioning(t testing.TB, s string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range files {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		// If the process has ended meanwhile, the line is empty.
		if line, _ := os.ReadFile(f); bytes.Contains(line, []byte(s)) && Alive(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}
