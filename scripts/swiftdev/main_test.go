// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"swiftnbd/internal/devswift/conformance"
)

// asCommand makes the test binary the command itself, so that tests can kill it.
const asCommand = "SWIFTDEV_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(m.Run())
}

// command is a running swiftdev.
type command struct {
	*exec.Cmd
	authURL string
	stderr  bytes.Buffer
}

func startCommand(t *testing.T, args ...string) *command {
	t.Helper()
	c := &command{Cmd: exec.Command(os.Args[0], args...)}
	c.Env = append(os.Environ(), asCommand+"=1")
	c.Stderr = &c.stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("no line on standard output: %v; %s", err, c.stderr.String())
	}
	c.authURL = strings.TrimSuffix(line, "\n")
	return c
}

func TestCommandConforms(t *testing.T) {
	c := startCommand(t, "--listen", "127.0.0.1:0")
	conformance.Run(t, conformance.Target{AuthURL: c.authURL, User: "test:tester", Key: "testing"})
}

func TestSignalsEndCleanly(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		c := startCommand(t, "--dir", t.TempDir(), "--latency", "1ms", "--bandwidth", "100M")
		if err := c.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); err != nil || c.stderr.Len() > 0 {
			t.Errorf("%v: %v, %s", sig, err, c.stderr.String())
		}
	}
}

// TestKilledKeepsWhatItAnswered kills the command under load: every object
// that was answered with 201 is there afterwards, whole.
func TestKilledKeepsWhatItAnswered(t *testing.T) {
	dir := t.TempDir()
	c := startCommand(t, "--dir", dir)
	url, token := login(t, c.authURL)
	if status, _ := request(t, "PUT", url+"/c", token, ""); status != 201 {
		t.Fatalf("PUT of the container gave %d", status)
	}
	const workers, kill = 4, 100
	acknowledged := make([]int, workers)
	var wg sync.WaitGroup
	enough := make(chan struct{}, workers)
	for w := range workers {
		wg.Go(func() {
			for i := 1; ; i++ {
				if status, err := request(t, "PUT", fmt.Sprintf("%s/c/%d", url, w), token, body(w, i)); err != nil || status != 201 {
					return
				}
				acknowledged[w] = i
				if i == kill {
					enough <- struct{}{}
				}
			}
		})
	}
	<-enough
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	c.Wait()

	c = startCommand(t, "--dir", dir)
	url, token = login(t, c.authURL)
	for w, last := range acknowledged {
		resp, err := http.DefaultClient.Do(newRequest(t, "GET", fmt.Sprintf("%s/c/%d", url, w), token, ""))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		// The one that was under way may have come in, too.
		if err != nil || string(got) != body(w, last) && string(got) != body(w, last+1) {
			t.Errorf("object %d after the kill: %s, %d bytes, want version %d or the next", w, resp.Status, len(got), last)
		}
	}
}

// body is one version of an object; versions differ in length too.
func body(worker, version int) string {
	return strings.Repeat(fmt.Sprintf("%d.%d;", worker, version), 1000+version)
}

func newRequest(t *testing.T, method, url, token, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", token)
	return req
}

func request(t *testing.T, method, url, token, body string) (int, error) {
	resp, err := http.DefaultClient.Do(newRequest(t, method, url, token, body))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

func login(t *testing.T, authURL string) (url, token string) {
	t.Helper()
	req := newRequest(t, "GET", authURL, "", "")
	req.Header.Set("X-Auth-User", "test:tester")
	req.Header.Set("X-Auth-Key", "testing")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.Header.Get("X-Storage-Url"), resp.Header.Get("X-Auth-Token")
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		stderr string
	}{
		{[]string{"--listen", "0.0.0.0:0"}, 2, "is not a loopback address"},
		{[]string{"--listen", ":0"}, 2, "is not a loopback address"},
		{[]string{"--listen", "example.org:80"}, 2, "is not a loopback address"},
		{[]string{"--listen", "127.0.0.1"}, 2, "missing port"},
		{[]string{"--bandwidth", "fast"}, 2, `"fast" is not a number of bytes`},
		{[]string{"--latency", "-1s"}, 2, "negative"},
		{[]string{"--latency", "20"}, 2, "latency"},
		{[]string{"surplus"}, 2, `unexpected argument "surplus"`},
		{[]string{"--unknown"}, 2, "unknown"},
		{[]string{"--help"}, 0, "Usage: swiftdev"},
		{[]string{"--dir", os.DevNull + "/x"}, 1, "not a directory"},
	} {
		var stdout, stderr bytes.Buffer
		if status := run(t.Context(), c.args, &stdout, &stderr); status != c.status || !strings.Contains(stderr.String(), c.stderr) || stdout.Len() > 0 {
			t.Errorf("%q: status %d, want %d; stdout %q, stderr %q", c.args, status, c.status, &stdout, &stderr)
		}
	}
}

func TestParseBandwidth(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "100": 100, "2k": 2048, "100M": 100 << 20, "1G": 1 << 30} {
		if got, err := parseBandwidth(text); err != nil || got != want {
			t.Errorf("%q is %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "M", "-1", "1.5M", "1T", "9999999999G"} {
		if got, err := parseBandwidth(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
}
