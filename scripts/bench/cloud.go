// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// swiftServer is a Swift that runs, and that we are logged in to.
type swiftServer struct {
	name    string // "dev" or "real"
	authURL string
	storage string // URL of the account
	token   string
	log     string // real: the proxy's log, a line a request
	root    string // dev: where the counts are asked for
	beside  string // dev: the second address, whose requests are counted apart
	pid     int    // dev: its process
	limit   *limit
}

// authPath is where one logs in to the embedded Swift.
const authPath = "/auth/v1.0"

// The account of both Swifts.
const (
	userName = "test:tester"
	userKey  = "testing"
)

// cloud returns the Swift of that name, which is started at its first use.
func (s *suite) cloud(name string) (*swiftServer, error) {
	if c := s.clouds[name]; c != nil {
		return c, nil
	}
	var (
		c   *swiftServer
		err error
	)
	switch name {
	case "dev":
		c, err = s.startDev(s.latency)
	case "fast":
		c, err = s.startDev(0)
	case "real":
		c, err = s.startReal()
	default:
		err = fmt.Errorf("no Swift is called %q", name)
	}
	if err != nil {
		return nil, err
	}
	c.name = name
	if err := c.logIn(); err != nil {
		return nil, err
	}
	c.limit = newLimit(c, s.conns)
	s.clouds[name] = c
	return c, nil
}

// startDev starts the embedded Swift in a process of its own, so that its work
// is not done by the one that measures.
func (s *suite) startDev(latency time.Duration) (*swiftServer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, serveCommand, latency.String())
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.atEnd(func() error {
		// It keeps nothing: there is nothing to end in order.
		err := cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	})
	said, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("the embedded Swift did not start: %w", err)
	}
	address, beside, _ := strings.Cut(strings.TrimSpace(said), " ")
	root := "http://" + address
	return &swiftServer{authURL: root + authPath, root: root, beside: "http://" + beside, pid: cmd.Process.Pid}, nil
}

// startReal starts the real Swift with scripts/saio.sh.
func (s *suite) startReal() (*swiftServer, error) {
	dir := s.state
	if dir == "" {
		dir = filepath.Join(s.dir, "saio")
	}
	saio := func(verb string) (string, error) {
		cmd := exec.Command("scripts/saio.sh", verb)
		cmd.Env = append(os.Environ(), "SAIO_DIR="+dir, "SAIO_FSYNC=0")
		if s.port != 0 {
			cmd.Env = append(cmd.Env, fmt.Sprintf("SAIO_PORT=%d", s.port))
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("scripts/saio.sh %s: %w\n%s%s", verb, err, out, stderr.String())
		}
		return string(out), nil
	}
	if s.state == "" {
		s.atEnd(func() error { _, err := saio("wipe"); return err })
	}
	if _, err := saio("up"); err != nil {
		return nil, err
	}
	env, err := saio("env")
	if err != nil {
		return nil, err
	}
	// export ST_AUTH=URL ST_USER=…
	for field := range strings.FieldsSeq(env) {
		if url, ok := strings.CutPrefix(field, "ST_AUTH="); ok {
			return &swiftServer{authURL: url, log: filepath.Join(dir, "log", "proxy-server.log")}, nil
		}
	}
	return nil, fmt.Errorf("scripts/saio.sh env names no ST_AUTH:\n%s", env)
}

func (c *swiftServer) logIn() error {
	req, err := http.NewRequest("GET", c.authURL, nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-Auth-User", userName)
	req.Header.Set("X-Auth-Key", userKey)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	c.storage, c.token = resp.Header.Get("X-Storage-Url"), resp.Header.Get("X-Auth-Token")
	if c.storage == "" || c.token == "" {
		return fmt.Errorf("log in at %s: %s", c.authURL, resp.Status)
	}
	return nil
}

// counts are requests to objects by method.
type counts map[string]int64

func (n counts) minus(before counts) counts {
	d := counts{}
	for k, v := range n {
		if v != before[k] {
			d[k] = v - before[k]
		}
	}
	return d
}

func (n counts) total() (sum int64) {
	for _, v := range n {
		sum += v
	}
	return sum
}

func (n counts) String() string {
	var b strings.Builder
	for _, m := range []string{"GET", "HEAD", "PUT", "DELETE", "POST"} {
		if n[m] > 0 {
			fmt.Fprintf(&b, " %d %s", n[m], m)
		}
	}
	return strings.TrimSpace(b.String())
}

// counts returns how many requests for the objects of a disk were made so far.
// Containers' own, logins and listings are not among them.
func (c *swiftServer) counts(container string) (counts, error) {
	if c.root != "" {
		t, err := devTraffic(c.root, container)
		if err != nil {
			return nil, err
		}
		return t.Requests, nil
	}
	// "… PUT /v1/AUTH_test/CONTAINER/disk.part/00000000 HTTP/1.0 201 …"
	n, err := c.logged("/" + container + "/disk.part/")
	if err != nil {
		return nil, err
	}
	log, err := c.logged("/" + container + "/swiftnbd/")
	for k, v := range log {
		n[k] += v
	}
	return n, err
}

// logged counts the requests in the real Swift's log whose path has mark in it.
func (c *swiftServer) logged(mark string) (counts, error) {
	// The proxy has answered before it has logged.
	time.Sleep(50 * time.Millisecond)
	data, err := os.ReadFile(c.log)
	if err != nil {
		return nil, err
	}
	n := counts{}
	for l := range bytes.Lines(data) {
		at := bytes.Index(l, []byte(mark))
		if at < 0 {
			continue
		}
		// What stands before mark is the path's beginning, which may be
		// empty, and the method before it.
		fields := bytes.Fields(l[:at])
		if at > 0 && l[at-1] != ' ' && len(fields) > 0 {
			fields = fields[:len(fields)-1]
		}
		if len(fields) > 0 {
			n[string(fields[len(fields)-1])]++
		}
	}
	return n, nil
}

// call makes one request of the account and wants an answer of 2xx, or one of
// those named.
func (c *swiftServer) call(method, path string, header map[string]string, also ...int) (*http.Response, error) {
	req, err := http.NewRequest(method, c.storage+"/"+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Auth-Token", c.token)
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	ok := resp.StatusCode >= 200 && resp.StatusCode <= 299
	for _, code := range also {
		ok = ok || resp.StatusCode == code
	}
	if !ok {
		err = errors.Join(err, fmt.Errorf("%s %s: %s", method, path, resp.Status))
	}
	return resp, err
}

// traffic is counts with the bytes that were sent, which only the embedded
// Swift knows.
func (c *swiftServer) traffic(container string) (*traffic, error) {
	if c.root != "" {
		return devTraffic(c.root, container)
	}
	n, err := c.counts(container)
	t := newTraffic()
	t.Requests = n
	return t, err
}
