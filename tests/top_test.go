// SPDX-License-Identifier: MIT

package tests

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"swiftnbd/tests/harness"
)

// topDisk is what `swiftnbd-ctl top --json` says of a disk, as far as it is compared.
type topDisk struct {
	Container  string   `json:"container"`
	Reads      float64  `json:"reads"`
	ReadBytes  float64  `json:"read_bytes"`
	Writes     float64  `json:"writes"`
	WriteBytes float64  `json:"write_bytes"`
	Flushes    float64  `json:"flushes"`
	Errors     float64  `json:"errors"`
	ReadMean   *float64 `json:"read_seconds"`
	Cache      float64  `json:"cache_bytes"`
	Dirty      float64  `json:"dirty_bytes"`
}

type topLine struct {
	Seconds float64 `json:"seconds"`
	Swift   struct {
		Puts float64 `json:"puts"`
	} `json:"swift"`
	Disks []topDisk `json:"disks"`
}

// TestTopCounts has top watch a real nbdkit while a client makes a known number of
// requests: the rates of all intervals together are just these.
func TestTopCounts(t *testing.T) {
	t.Parallel()
	name, _, params := volume(t, harness.Dev(t))
	path := filepath.Join(harness.TempDir(t), "counters")
	n := serve(t, append(params, "metrics=unix:"+path, "writeback-age=3600")...)
	harness.Nbdsh(t, n.URI, `h.pread(512, 0)`) // from now on the disk is known
	cmd := harness.Command(t, harness.Built(t, "swiftnbd-ctl"), "top", "unix:"+path, "--interval", "0.2", "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(out)
	lines.Scan() // it has begun to count

	stop := filepath.Join(harness.TempDir(t), "stop")
	client := harness.StartNbdsh(t, n.URI, fmt.Sprintf(`
import os, time
for i in range(20):
    h.pwrite(b"x" * 4096, 4096 * i)
h.flush()
for i in range(10):
    h.pread(2048, 4096 * i)
h.pwrite(b"x" * 1024, 0)
while not os.path.exists(%q):
    time.sleep(0.01)
`, stop))
	var sum topDisk
	var puts float64
	for deadline := time.Now().Add(harness.Patience); sum.Reads < 9.5 || sum.Writes < 20.5 || sum.Dirty == 0; {
		if time.Now().After(deadline) || !lines.Scan() {
			t.Fatalf("%+v, %s", sum, said.String())
		}
		var l topLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil || len(l.Disks) != 1 || l.Disks[0].Container != name {
			t.Fatalf("%s: %v", lines.Bytes(), err)
		}
		d := l.Disks[0]
		sum.Reads += d.Reads * l.Seconds
		sum.ReadBytes += d.ReadBytes * l.Seconds
		sum.Writes += d.Writes * l.Seconds
		sum.WriteBytes += d.WriteBytes * l.Seconds
		sum.Flushes += d.Flushes * l.Seconds
		sum.Errors += d.Errors * l.Seconds
		puts += l.Swift.Puts * l.Seconds
		sum.Dirty, sum.Cache = d.Dirty, d.Cache
		if (d.Reads > 0) != (d.ReadMean != nil) {
			t.Errorf("reads without a time, or the other way round: %s", lines.Bytes())
		}
	}
	got := fmt.Sprintf("%.0f reads of %.0f, %.0f writes of %.0f, %.0f flushes, %.0f errors", sum.Reads, sum.ReadBytes, sum.Writes, sum.WriteBytes, sum.Flushes, sum.Errors)
	if want := "10 reads of 20480, 21 writes of 82944, 1 flushes, 0 errors"; got != want {
		t.Errorf("top has seen %s, want %s", got, want)
	}
	if puts < 0.5 || sum.Cache < sum.Dirty || sum.Dirty < 1024 {
		t.Errorf("%.0f PUTs, %.0f bytes of cache, %.0f dirty", puts, sum.Cache, sum.Dirty)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(out)
	if err := cmd.Wait(); err != nil || said.String() != "" {
		t.Errorf("after an interrupt: %v, %s%s", err, rest, said.String())
	}
	harness.WriteFile(t, stop, "")
	client.Wait(t)
}

// topTerminal is top on a terminal of its own.
type topTerminal struct {
	cmd          *exec.Cmd
	screen, line *os.File
	before       unix.Termios
	ended        chan error

	mu   sync.Mutex
	seen strings.Builder
}

func startTop(t testing.TB, size pty.Winsize, args ...string) *topTerminal {
	t.Helper()
	p := &topTerminal{ended: make(chan error, 1)}
	var err error
	if p.screen, p.line, err = pty.Open(); err != nil {
		t.Fatal(err)
	}
	if err := pty.Setsize(p.screen, &size); err != nil {
		t.Fatal(err)
	}
	p.before = p.settings(t)
	p.cmd = harness.Command(t, harness.Built(t, "swiftnbd-ctl"), append([]string{"top", "--interval", "0.2"}, args...)...)
	p.cmd.Env = append(os.Environ(), "TERM=xterm")
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = p.line, p.line, p.line
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := p.screen.Read(buf)
			p.mu.Lock()
			p.seen.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		p.line.Close()
		p.screen.Close()
	})
	return p
}

// settings returns the terminal's settings.
func (p *topTerminal) settings(t testing.TB) unix.Termios {
	t.Helper()
	s, err := unix.IoctlGetTermios(int(p.line.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *s
}

func (p *topTerminal) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.String()
}

// last returns the lines that the screen shows now.
func (p *topTerminal) last() []string {
	draws := strings.Split(p.output(), "\x1b[H")
	if len(draws) < 3 {
		return nil
	}
	return strings.Split(strings.NewReplacer("\x1b[K", "", "\x1b[J", "").Replace(draws[len(draws)-2]), "\r\n")
}

// shows waits until the screen shows a text.
func (p *topTerminal) shows(t testing.TB, text string) {
	t.Helper()
	for end := time.Now().Add(harness.Patience); !strings.Contains(strings.Join(p.last(), "\n"), text); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not show %q: %q", text, p.output())
		}
	}
}

// end waits for the end, which has to leave the terminal as it was.
func (p *topTerminal) end(t testing.TB, how string) {
	t.Helper()
	select {
	case err := <-p.ended:
		if err != nil {
			t.Errorf("%s: %v", how, err)
		}
	case <-time.After(harness.Patience):
		t.Fatalf("%s: it does not end", how)
	}
	if now := p.settings(t); now != p.before {
		t.Errorf("%s: the terminal was %+v, and is %+v", how, p.before, now)
	}
	harness.Eventually(t, how+": the screen from before comes back", func() bool { return strings.HasSuffix(p.output(), "\x1b[?25h\x1b[?1049l") })
}

// TestTopScreen shows a real nbdkit's counters on a terminal, and ends by each way,
// with the terminal as it was.
func TestTopScreen(t *testing.T) {
	t.Parallel()
	name, _, params := volume(t, harness.Dev(t))
	path := filepath.Join(harness.TempDir(t), "counters")
	n := serve(t, append(params, "metrics=unix:"+path)...)
	stop := filepath.Join(harness.TempDir(t), "stop")
	client := harness.StartNbdsh(t, n.URI, fmt.Sprintf(`
import os, time
while not os.path.exists(%q):
    h.pwrite(b"x" * 4096, 0)
    h.pread(4096, 0)
    h.flush()
    time.sleep(0.01)
`, stop))
	for how, end := range map[string]func(p *topTerminal){
		"q":       func(p *topTerminal) { _, _ = p.screen.WriteString("xq") },
		"Ctrl-C":  func(p *topTerminal) { _, _ = p.screen.WriteString("\x03") },
		"SIGTERM": func(p *topTerminal) { _ = p.cmd.Process.Signal(syscall.SIGTERM) },
		"SIGHUP":  func(p *topTerminal) { _ = p.cmd.Process.Signal(syscall.SIGHUP) },
	} {
		p := startTop(t, pty.Winsize{Rows: 24, Cols: 160}, "unix:"+path)
		p.shows(t, name)
		if p.settings(t) == p.before {
			t.Errorf("%s: keys would not come at once", how)
		}
		p.shows(t, "Swift: ")
		// The client may only just begin, and the machine may be busy.
		harness.Eventually(t, how+": the client's requests are shown", func() bool {
			lines := p.last()
			if len(lines) != 8 || !strings.HasPrefix(lines[6], "DISK ") || !strings.HasPrefix(lines[7], name+" ") {
				t.Fatalf("%q", lines)
			}
			values := strings.Fields(lines[7])
			for i, column := range strings.Fields(lines[6]) {
				switch column {
				case "READ/s", "WRITE/s", "FLUSH/s":
					if values[i] == "0" {
						return false
					}
				case "ERR/s":
					if values[i] != "0" {
						t.Errorf("%s is %s", column, values[i])
					}
				}
			}
			return true
		})
		end(p)
		p.end(t, how)
	}

	// It goes on without nbdkit, and says so. A small screen shows what fits.
	p := startTop(t, pty.Winsize{Rows: 24, Cols: 160}, "unix:"+path)
	p.shows(t, name)
	if err := pty.Setsize(p.screen, &pty.Winsize{Rows: 7, Cols: 10}); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "seven lines of ten", func() bool {
		lines := p.last()
		return len(lines) == 7 && len(lines[0]) == 10
	})
	if err := pty.Setsize(p.screen, &pty.Winsize{Rows: 24, Cols: 160}); err != nil {
		t.Fatal(err)
	}
	harness.WriteFile(t, stop, "")
	client.Wait(t)
	n.Stop(t)
	p.shows(t, "unix:"+path+": no counters: ")
	n = serve(t, append(params, "metrics=unix:"+path)...)
	p.shows(t, "nbdkit was started anew")
	p.shows(t, "0 disks")
	_, _ = p.screen.WriteString("q")
	p.end(t, "without nbdkit")

	// Nobody is there: a line, and no screen.
	n.Stop(t)
	p = startTop(t, pty.Winsize{Rows: 24, Cols: 160}, "unix:"+path)
	if err := <-p.ended; err == nil {
		t.Error("it ends well where nobody is")
	}
	harness.Eventually(t, "it says why", func() bool {
		return strings.HasSuffix(p.output(), "\x1b[?1049lswiftnbd-ctl: unix:"+path+": no counters: connect: no such file or directory\r\n")
	})
}
