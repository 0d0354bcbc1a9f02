// SPDX-License-Identifier: MIT

package devswift_test

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/devswift/conformance"
)

// open serves a directory until close is called, which ends as kill -9 does:
// nothing is written that was not.
func open(t *testing.T, dir string) (*session, func()) {
	t.Helper()
	srv, err := devswift.New(devswift.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(srv)
	s := login(t, conformance.Target{AuthURL: h.URL + "/auth/v1.0", User: "test:tester", Key: "testing"})
	return s, func() {
		h.Close()
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	}
}

// head is a request whose headers are of interest.
func (s *session) head(method, path string, headers ...string) http.Header {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader("body of "+path))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", s.token)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode > 299 {
		s.t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
	resp.Header.Del("Date")
	resp.Header.Del("X-Trans-Id")
	resp.Header.Del("X-Openstack-Request-Id")
	return resp.Header
}

// portrait is everything that can be seen of two containers.
func (s *session) portrait(objects ...string) string {
	s.t.Helper()
	var b strings.Builder
	fmt.Fprintln(&b, s.head("HEAD", ""), s.must(200, "GET", "?format=json", ""))
	for _, c := range []string{"/c", "/d%20%C3%A9"} {
		fmt.Fprintln(&b, c, s.head("HEAD", c), s.must(200, "GET", c+"?format=json", ""))
	}
	for _, o := range objects {
		fmt.Fprintln(&b, o, s.head("HEAD", o), s.must(200, "GET", o, ""))
	}
	return b.String()
}

func TestDirReopens(t *testing.T) {
	dir := t.TempDir()
	s, done := open(t, dir)
	s.head("POST", "", "X-Account-Meta-A", "account")
	s.head("PUT", "/c", "X-Container-Meta-A", "one")
	s.head("PUT", "/d%20%C3%A9")
	s.head("POST", "/c", "X-Container-Meta-B", "two", "X-Remove-Container-Meta-A", "x")
	s.head("PUT", "/c/o", "Content-Disposition", "\xe9", "Content-Type", "a/b", "X-Delete-At", "4000000000")
	s.head("PUT", "/c/twice")
	s.head("PUT", "/c/twice", "X-Object-Meta-Second", "yes")
	s.head("PUT", "/c/posted", "X-Object-Meta-Before", "x")
	s.head("POST", "/c/posted", "X-Object-Meta-After", "x", "Content-Type", "c/d")
	s.head("PUT", "/c/posted-then-put")
	s.head("POST", "/c/posted-then-put", "X-Object-Meta-Gone", "x")
	s.head("PUT", "/c/posted-then-put")
	s.head("PUT", "/c/gone")
	s.head("POST", "/c/gone", "X-Object-Meta-A", "x")
	s.must(204, "DELETE", "/c/gone", "")
	s.head("PUT", "/d%20%C3%A9/x%2F%20y")
	s.head("PUT", "/e")
	s.must(204, "DELETE", "/e", "")
	objects := []string{"/c/o", "/c/twice", "/c/posted", "/c/posted-then-put", "/d%20%C3%A9/x%2F%20y"}
	before := s.portrait(objects...)
	done()

	// What a process leaves behind that dies between two renames.
	if err := os.WriteFile(filepath.Join(dir, "tmp", "new-1"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, done = open(t, dir)
	if after := s.portrait(objects...); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	s.must(404, "HEAD", "/e", "")
	s.must(404, "GET", "/c/gone", "")
	s.must(201, "PUT", "/c/gone", "back")
	s.must(204, "DELETE", "/c/gone", "")
	if again, err := devswift.New(devswift.Options{Dir: dir}); err == nil {
		again.Close()
		t.Error("a directory in use was opened a second time")
	}
	done()

	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files++
		}
		return err
	})
	// lock, one account, two containers, five objects, one metadata file.
	if err != nil || files != 10 {
		t.Errorf("%d files in the directory, want 10; %v", files, err)
	}
}

// TestDirKeepsNewer leaves two versions of an object, as a process does that
// dies between making the new one visible and removing the old one.
func TestDirKeepsNewer(t *testing.T) {
	dir := t.TempDir()
	s, done := open(t, dir)
	s.head("PUT", "/c")
	s.must(201, "PUT", "/c/o", "old")
	old, err := filepath.Glob(filepath.Join(dir, "*", "*", "*", "*.data"))
	if err != nil || len(old) != 1 {
		t.Fatal(old, err)
	}
	data, err := os.ReadFile(old[0])
	if err != nil {
		t.Fatal(err)
	}
	s.must(201, "PUT", "/c/o", "new")
	done()
	if err := os.WriteFile(old[0], data, 0o644); err != nil {
		t.Fatal(err)
	}
	s, done = open(t, dir)
	defer done()
	if got := s.must(200, "GET", "/c/o", ""); got != "new" {
		t.Errorf("reopened object is %q", got)
	}
	if _, err := os.Stat(old[0]); err == nil {
		t.Error("the old version is still there")
	}
}

func TestDirRefusesDamage(t *testing.T) {
	dir := t.TempDir()
	s, done := open(t, dir)
	s.head("PUT", "/c")
	s.must(201, "PUT", "/c/o", "data")
	done()
	files, err := filepath.Glob(filepath.Join(dir, "*", "*", "*", "*.data"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.Truncate(files[0], 20); err != nil {
		t.Fatal(err)
	}
	if srv, err := devswift.New(devswift.Options{Dir: dir}); err == nil {
		srv.Close()
		t.Error("a damaged object went unnoticed")
	}
}

// TestConcurrent runs all kinds of changes against few objects at once, in
// memory and with a directory: each GET is a whole version that somebody put,
// and in the end the directory agrees with what was served.
func TestConcurrent(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		srv, target := start(t, devswift.Options{Dir: dir})
		s := login(t, target)
		s.must(201, "PUT", "/c", "")
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(1, uint64(worker)))
				for range 150 {
					path := fmt.Sprintf("/c/%d", random.IntN(3))
					switch random.IntN(6) {
					case 0, 1:
						body := strings.Repeat(fmt.Sprintf("%d-", worker), 1+random.IntN(40000))
						if resp, _, err := s.try(t.Context(), "PUT", path, body); err != nil || resp.StatusCode != 201 && resp.StatusCode != 202 {
							t.Errorf("PUT: %v, %v", resp, err)
						}
					case 2:
						if resp, _, err := s.try(t.Context(), "DELETE", path, ""); err != nil || resp.StatusCode > 409 {
							t.Errorf("DELETE: %v, %v", resp, err)
						}
					case 3:
						if resp, _, err := s.try(t.Context(), "POST", path, ""); err != nil || resp.StatusCode > 409 {
							t.Errorf("POST: %v, %v", resp, err)
						}
					case 4:
						if _, _, err := s.try(t.Context(), "GET", "/c", ""); err != nil {
							t.Error(err)
						}
					default:
						resp, body, err := s.try(t.Context(), "GET", path, "")
						if err != nil || resp.StatusCode == 200 && (body == "" || strings.Trim(body, body[:2]) != "") {
							t.Errorf("GET: %v, %d bytes", err, len(body))
						}
					}
				}
			})
		}
		wg.Wait()
		if srv.Count("", 500, 503) != 0 {
			t.Error("the server failed")
		}
		if dir == "" {
			continue
		}
		before := s.must(200, "GET", "/c?format=json", "")
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		reopened, done := open(t, dir)
		if after := reopened.must(200, "GET", "/c?format=json", ""); after != before {
			t.Errorf("served\n%s\nreopened\n%s", before, after)
		}
		done()
	}
}

func TestBandwidthAndLatency(t *testing.T) {
	_, target := start(t, devswift.Options{Bandwidth: 64 << 20, Latency: time.Millisecond})
	s := login(t, target)
	s.must(201, "PUT", "/c", "")
	body := strings.Repeat("0123456789abcdef", 1<<14)
	s.must(201, "PUT", "/c/o", body)
	if got := s.must(200, "GET", "/c/o", ""); got != body {
		t.Errorf("a paced body came back with %d bytes of %d", len(got), len(body))
	}
}
