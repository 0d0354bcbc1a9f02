// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/volume"
)

// binaryDir is where binary is, once it is; TestMain removes it.
var binaryDir string

// binary is the tool, built once for the tests that need a process.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "swiftnbd-ctl")
	if err != nil {
		return "", err
	}
	binaryDir = dir
	path := filepath.Join(dir, "swiftnbd-ctl")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", errors.New(string(out))
	}
	return path, nil
})

// process is the tool running on a terminal of its own.
type process struct {
	*testing.T
	cmd      *exec.Cmd
	terminal *os.File

	mu   sync.Mutex
	seen bytes.Buffer
	eof  chan struct{}
}

// start runs the tool on a new terminal.
func (b *bench) start(args ...string) *process {
	b.Helper()
	return b.startOn(&pty.Winsize{Rows: 24, Cols: 120}, args...)
}

// startOn runs the tool on a new terminal of this size.
func (b *bench) startOn(size *pty.Winsize, args ...string) *process {
	b.Helper()
	path, err := binary()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(path, append([]string{"--secrets", b.secrets}, args...)...)
	cmd.Env = []string{"TERM=xterm", "PATH=" + os.Getenv("PATH")}
	terminal, err := pty.StartWithSize(cmd, size)
	if err != nil {
		b.Fatal(err)
	}
	p := &process{T: b.T, cmd: cmd, terminal: terminal, eof: make(chan struct{})}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		terminal.Close()
	})
	go func() {
		defer close(p.eof)
		buf := make([]byte, 4096)
		for {
			n, err := terminal.Read(buf)
			p.mu.Lock()
			p.seen.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return p
}

// output returns what has been printed so far.
func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.String()
}

// expect waits until text has been printed.
func (p *process) expect(text string) {
	p.Helper()
	for range 3000 {
		if strings.Contains(p.output(), text) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.Fatalf("no %q in %q", text, p.output())
}

// typed sends what a user types.
func (p *process) typed(keys string) {
	p.Helper()
	if _, err := io.WriteString(p.terminal, keys); err != nil {
		p.Fatal(err)
	}
}

// end waits for the tool's end and wants this exit status; it returns all that
// was printed.
func (p *process) end(code int) string {
	p.Helper()
	err := p.cmd.Wait()
	<-p.eof
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.Errorf("exit status %d (%v), want %d: %q", got, err, code, p.output())
	}
	return p.output()
}

// TestProgressBar: on a terminal, not with -q, and not in a pipe.
func TestProgressBar(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{Latency: 20 * time.Millisecond}, "disk")
	disk := b.fill("disk", 100, 4096, map[int][]byte{3: noise(4096)})
	path := filepath.Join(t.TempDir(), "image")

	out := b.start("download", "disk", path).end(0)
	if !strings.Contains(out, "Downloading disk") || !strings.Contains(out, "%") || !strings.Contains(out, "400.0 KiB") || !strings.HasSuffix(out, "Done, 409600 bytes written\r\n") {
		t.Errorf("on a terminal: %q", out)
	}
	checkImage(t, path, disk)
	if out := b.start("download", "-q", "disk", path).end(0); out != "Done, 409600 bytes written\r\n" {
		t.Errorf("with -q: %q", out)
	}
	if out := b.ok("download", "disk", path); strings.Contains(out, "%") {
		t.Errorf("in a pipe: %q", out)
	}
	// Nothing but the bar may go to a terminal when the disk goes elsewhere.
	b.fails(1, []string{"standard output is no file"}, "download", "disk", "-")
	if out := b.start("download", "disk", "-").end(1); out != "swiftnbd-ctl: not writing a disk to a terminal\r\n" {
		t.Errorf("a disk onto a terminal: %q", out)
	}
}

// TestVerifyBar: verify shows a bar on a terminal, and none in a pipe or with -q.
func TestVerifyBar(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{Latency: 5 * time.Millisecond}, "disk")
	b.fillLog("disk", 4<<20, 1)
	for _, args := range [][]string{{}, {"--quick"}} {
		args = append([]string{"verify", "disk"}, args...)
		out := b.start(args...).end(0)
		if !strings.Contains(out, "Verifying disk") || !strings.Contains(out, "100 %") || !strings.HasSuffix(out, "it is clean\r\n") {
			t.Errorf("%q on a terminal: %q", args, out)
		}
		for _, quiet := range []string{b.start(append(args, "-q")...).end(0), b.ok(args...)} {
			if strings.Contains(quiet, "Verifying") || strings.Contains(quiet, "%") {
				t.Errorf("%q: %q", args, quiet)
			}
		}
	}
}

// TestOddTerminals: a terminal without a size, a small one, and one that loses
// its size on the way, keep nobody from finishing.
func TestOddTerminals(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{Latency: 20 * time.Millisecond}, "disk")
	disk := b.fill("disk", 400, 4096, map[int][]byte{3: noise(4096)})
	path := filepath.Join(t.TempDir(), "image")
	for _, size := range []pty.Winsize{{}, {Rows: 24}, {Cols: 80}, {Rows: 1, Cols: 80}, {Rows: 24, Cols: 7}, {Rows: 24, Cols: 25}} {
		if out := b.startOn(&size, "download", "disk", path).end(0); !strings.HasSuffix(out, "Done, 1638400 bytes written\r\n") {
			t.Errorf("%+v: %q", size, out)
		}
		checkImage(t, path, disk)
	}
	p := b.start("download", "disk", path)
	p.expect("Downloading disk")
	if err := pty.Setsize(p.terminal, &pty.Winsize{}); err != nil {
		t.Fatal(err)
	}
	p.end(0)
	checkImage(t, path, disk)
	checkUnlocked(b, "disk")
}

// screen returns the lines that a terminal shows in the end which was sent
// this: carriage returns, line feeds, "cursor up" and "erase to the end".
func screen(t *testing.T, sent string) []string {
	t.Helper()
	lines, row := []string{""}, 0
	for rest := sent; rest != ""; {
		var n int
		switch {
		case strings.HasPrefix(rest, "\r\n"):
			if row++; row == len(lines) {
				lines = append(lines, "")
			}
			rest = rest[2:]
		case strings.HasPrefix(rest, "\x1b[J"):
			lines = lines[:row+1]
			lines[row] = ""
			rest = rest[3:]
		case rest[0] == '\x1b':
			if _, err := fmt.Sscanf(rest, "\x1b[%dA", &n); err != nil || n > row {
				t.Fatalf("row %d: %q", row, rest)
			}
			row -= n
			rest = rest[strings.IndexByte(rest, 'A')+1:]
		default:
			lines[row] += rest[:1]
			rest = rest[1:]
		}
	}
	return lines
}

// TestWarningAboveTheBar: a line in the middle of a download stays, whole, and
// of the bar there is one.
func TestWarningAboveTheBar(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{Latency: 20 * time.Millisecond}, "disk")
	b.fill("disk", 500, 4096, nil)
	b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodGet, Prefix: "/v1/AUTH_test/disk/disk.part/00000300", Times: 1, Action: devswift.Action{Status: 503}}))
	lines := screen(t, b.start("download", "disk", filepath.Join(t.TempDir(), "image")).end(0))
	if len(lines) != 4 || !strings.HasPrefix(lines[0], "swiftnbd-ctl: warning: disk: GET ") || !strings.HasSuffix(lines[0], "; trying again") ||
		!strings.HasPrefix(lines[1], "Downloading disk 100 % [") || lines[2] != "Done, 2048000 bytes written" || lines[3] != "" {
		t.Errorf("%q", lines)
	}
}

// TestDeleteAsks: the container's name has to be typed.
func TestDeleteAsks(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.scatter("disk", 3)
	before := b.writes()
	for _, typed := range []string{"\n", "y\n", "disk2\n", " disk\n", "\x04"} {
		p := b.start("delete", "disk")
		p.expect("Type the container's name to go on: ")
		p.typed(typed)
		if out := p.end(1); !strings.Contains(out, "disk: not confirmed, nothing has been deleted") || !strings.Contains(out, "This deletes disk, a disk of 97.7 KiB, with about 5 objects of 5 B in all.") {
			t.Errorf("%q: %q", typed, out)
		}
	}
	p := b.start("delete", "disk")
	p.expect("to go on: ")
	p.typed("\x03")
	if out := p.end(1); !strings.Contains(out, "disk: interrupted, nothing has been deleted") {
		t.Errorf("Ctrl-C: %q", out)
	}
	b.unchanged(before)
	p = b.start("delete", "disk")
	p.expect("to go on: ")
	p.typed("disk\n")
	if out := p.end(0); !strings.Contains(out, "Done, disk has been deleted") || !strings.Contains(out, "Deleting disk") {
		t.Errorf("%q", out)
	}
	b.gone("disk")
}

// TestSignals: each of them ends a download in good order.
func TestSignals(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{Latency: 20 * time.Millisecond}, "disk")
	b.fill("disk", 2000, 4096, nil)
	for name, send := range map[string]func(p *process){
		"Ctrl-C":  func(p *process) { p.typed("\x03") },
		"SIGTERM": func(p *process) { _ = p.cmd.Process.Signal(syscall.SIGTERM) },
		"SIGHUP":  func(p *process) { _ = p.cmd.Process.Signal(syscall.SIGHUP) },
		// As timeout(1) sends it: one wish to end, and not two.
		"SIGTERM twice": func(p *process) {
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			time.Sleep(20 * time.Millisecond)
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
		},
	} {
		b.setItem("disk", volume.KeyLast, "")
		dir := t.TempDir()
		p := b.start("download", "disk", filepath.Join(dir, "image"))
		p.expect("Downloading disk")
		if mark := b.items("disk")[volume.KeyClient]; !strings.HasPrefix(mark, "ctl-download@") {
			t.Errorf("%s: the mark is %q", name, mark)
		}
		send(p)
		if out := p.end(1); !strings.HasSuffix(out, "swiftnbd-ctl: disk: interrupted\r\n") {
			t.Errorf("%s: %q", name, out)
		}
		checkUnlocked(b, "disk")
		checkAlone(t, dir)
	}
}

// TestPipes: a real process, with real pipes and no terminal anywhere.
func TestPipes(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	disk := b.fill("disk", 30, 65536, map[int][]byte{2: noise(65536), 29: noise(65536)})
	tool := func(args ...string) *exec.Cmd {
		return exec.Command(path, append([]string{"--secrets", b.secrets}, args...)...)
	}
	if out, err := tool("download", "disk", "-").Output(); err != nil || !bytes.Equal(out, disk) {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	// The reader takes a little and goes.
	cmd := tool("download", "disk", "-")
	r, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.CopyN(io.Discard, r, 100)
	r.Close()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit status %d", code)
	}
	checkUnlocked(b, "disk")
	// Nobody can be asked.
	out, err := tool("delete", "disk").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--yes") {
		t.Errorf("%s, %v", out, err)
	}
}
