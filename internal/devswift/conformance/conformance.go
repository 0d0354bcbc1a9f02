// SPDX-License-Identifier: MIT

// Package conformance owns one description of how Swift answers, as far as
// swiftnbd relies on it. It consists of tables of raw HTTP requests, each with the
// status, the headers and the body that must come back. Run checks a server
// against them. It runs on the embedded Swift of the package devswift and on a
// real one, so that the two stay alike. It runs on Ceph's gateway too, with a list
// of what that does otherwise (Differences).
//
// Every case works in containers of its own with random names, and removes them
// afterwards. It sets an account key for TempURLs (Temp-URL-Key-2) for a moment.
package conformance

import (
	"bytes"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Target is the server to check. Its user needs an account of its own. Nobody
// else may revoke the user's token meanwhile.
type Target struct {
	AuthURL string // v1, such as http://127.0.0.1:8080/auth/v1.0
	User    string // ACCOUNT:USER
	Key     string
	// Guest is a user of another account, with GuestKey; empty: there is none, and
	// what ACLs give is not tried.
	Guest, GuestKey string
	// Remembers is how long a proxy may remember an earlier state of an account
	// or a container; 0: not at all.
	Remembers time.Duration
	// Differences are what the server is known to do otherwise; nil: nothing.
	Differences *Differences
}

// late is how late listings and counts may be. A busy Swift updates them after
// its answer.
const late = 10 * time.Second

// Run runs all cases as parallel subtests.
func Run(t *testing.T, target Target) {
	c := &client{
		target: target,
		http: &http.Client{
			Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 16},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Timeout:       time.Minute,
		},
	}
	t.Cleanup(c.http.CloseIdleConnections)
	c.login(t)
	var cases, ran atomic.Int32
	t.Cleanup(func() {
		if ran.Load() == cases.Load() {
			target.Differences.missedForms(t)
		}
	})
	for _, group := range []map[string]func(*run){
		authCases, containerCases, listingCases, metadataCases, objectCases, expiryCases,
		conditionCases, rangeCases, copyCases, bulkCases, tempURLCases, connectionCases,
		versionsCases, aclCases,
	} {
		for _, name := range slices.Sorted(maps.Keys(group)) {
			cases.Add(1)
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := newRun(t, c, name)
				t.Cleanup(r.cleanUp)
				group[name](r)
				target.Differences.missed(t, name)
				ran.Add(1)
			})
		}
	}
}

// client talks to the target.
type client struct {
	target     Target
	http       *http.Client
	storageURL string
	origin     string // the server, without a path
	root       string // what stands before /v1/ in the storage URL
	account    string
	token      string
	guest      string // the guest's token
}

func (c *client) login(t *testing.T) {
	t.Helper()
	if c.target.Guest != "" {
		g := client{target: Target{AuthURL: c.target.AuthURL, User: c.target.Guest, Key: c.target.GuestKey}, http: c.http}
		g.login(t)
		c.guest = g.token
	}
	req, err := http.NewRequest(http.MethodGet, c.target.AuthURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-User", c.target.User)
	req.Header.Set("X-Auth-Key", c.target.Key)
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	// 204 is Ceph's gateway.
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent {
		t.Fatalf("login at %s: %s", c.target.AuthURL, resp.Status)
	}
	c.storageURL, c.token = resp.Header.Get("X-Storage-Url"), resp.Header.Get("X-Auth-Token")
	root, path, ok := strings.Cut(c.storageURL, "/v1/")
	if !ok || path == "" || c.token == "" {
		t.Fatalf("login gave storage URL %q and a token of %d bytes", c.storageURL, len(c.token))
	}
	u, err := url.Parse(root)
	if err != nil {
		t.Fatal(err)
	}
	c.origin, c.root, c.account = u.Scheme+"://"+u.Host, root, path
}

// run is one case. {c} and {d} in its paths, headers and bodies stand for the
// names of two containers. Only {c} exists at first.
type run struct {
	*testing.T
	*client
	name  string
	names *strings.Replacer
	c, d  string
}

func newRun(t *testing.T, c *client, name string) *run {
	var random [6]byte
	rand.Read(random[:])
	prefix := "conformance-" + hex.EncodeToString(random[:])
	r := &run{T: t, client: c, name: name, c: prefix + "-c", d: prefix + "-d"}
	r.names = strings.NewReplacer("{c}", r.c, "{d}", r.d, "{a}", c.account)
	r.do(s("PUT {c}", 201))
	return r
}

// cleanUp removes both containers and everything in them.
func (r *run) cleanUp() {
	for _, container := range []string{r.c, r.d} {
		deadline := time.Now().Add(late)
		for {
			a := r.send(s("GET "+container+"?format=json", 0))
			if a.status == http.StatusNotFound {
				break
			}
			var list []struct{ Name string }
			if err := json.Unmarshal([]byte(a.body), &list); err != nil {
				r.Errorf("clean up %s: %d %s", container, a.status, a.body)
				return
			}
			for _, o := range list {
				r.send(s("DELETE "+container+"/"+quotePath(o.Name), 0))
			}
			if a = r.send(s("DELETE "+container, 0)); a.status == http.StatusNoContent {
				break
			}
			if time.Now().After(deadline) {
				r.Errorf("clean up %s: DELETE still gives %d", container, a.status)
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// quotePath quotes every byte that could mean something in a URL.
func quotePath(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch ch := name[i]; {
		case ch >= 'a' && ch <= 'z', ch >= 'A' && ch <= 'Z', ch >= '0' && ch <= '9', ch == '-', ch == '_', ch == '.', ch == '/':
			b.WriteByte(ch)
		default:
			fmt.Fprintf(&b, "%%%02X", ch)
		}
	}
	return b.String()
}

// step is a request and the answer that must come. A path without a slash in
// front is relative to the account. "@" is the account itself.
type step struct {
	request string // METHOD PATH
	status  int
	header  [][2]string
	payload *string
	chunked bool
	noToken bool
	patient func(Target) time.Duration // how long the answer may take to become right; nil: no time
	headers [][2]string
	absent  []string
	body    *string
	checks  []func(answer) error
}

// answer is an answer of the server.
type answer struct {
	status int
	header http.Header
	body   string
}

// s makes a step: the answer to "METHOD PATH" must have this status. 0 means
// any.
func s(request string, status int) *step { return &step{request: request, status: status} }

// with adds a header to the request; an empty value is sent as such.
func (p *step) with(key, value string) *step {
	p.header = append(p.header, [2]string{key, value})
	return p
}

// send gives the request a body.
func (p *step) send(body string) *step { p.payload = &body; return p }

// sendChunked gives the request a body of unannounced length.
func (p *step) sendChunked(body string) *step { p.chunked = true; return p.send(body) }

// anonymous leaves the token out.
func (p *step) anonymous() *step { p.noToken = true; return p }

// soon lets the answer become right within a while; for listings and counts.
func (p *step) soon() *step {
	p.patient = func(Target) time.Duration { return late }
	return p
}

// remembered lets the answer become right when the proxy has forgotten the
// earlier state of an account or a container.
func (p *step) remembered() *step {
	p.patient = func(t Target) time.Duration { return t.Remembers }
	return p
}

// has requires a header of the answer: this value, or after a ~ a value that
// the regular expression matches.
func (p *step) has(key, value string) *step {
	p.headers = append(p.headers, [2]string{key, value})
	return p
}

// lacks requires that headers are absent.
func (p *step) lacks(keys ...string) *step { p.absent = append(p.absent, keys...); return p }

// text requires exactly this body.
func (p *step) text(body string) *step { p.body = &body; return p }

// matches requires a body that the regular expression matches.
func (p *step) matches(pattern string) *step {
	return p.check(func(a answer) error {
		if !regexp.MustCompile(pattern).MatchString(a.body) {
			return fmt.Errorf("body %q, want a match of %q", a.body, pattern)
		}
		return nil
	})
}

func (p *step) check(f func(answer) error) *step { p.checks = append(p.checks, f); return p }

// do runs steps one after the other and reports the errors of each.
func (r *run) do(steps ...*step) {
	r.Helper()
	for _, p := range steps {
		deadline := time.Now()
		if p.patient != nil {
			deadline = deadline.Add(p.patient(r.target))
		}
		title := r.title(p)
		if r.target.Differences.withhold(r.name, title) {
			r.Logf("not sent: %s", title)
			continue
		}
		for {
			faults := r.judge(p, r.send(p))
			known := !slices.ContainsFunc(faults, func(fault string) bool {
				return !r.target.Differences.knows(r.name, title, r.neutral(fault))
			})
			if !known && time.Now().Before(deadline) {
				time.Sleep(50 * time.Millisecond)
				continue
			}
			for _, fault := range faults {
				r.fault(title, fault)
			}
			break
		}
	}
}

func (r *run) judge(p *step, a answer) []string {
	var faults []string
	if p.status != 0 && a.status != p.status {
		faults = append(faults, fmt.Sprintf("status %d, want %d; body %q", a.status, p.status, shorten(a.body)))
	}
	for _, h := range p.headers {
		got, want := a.header.Values(r.names.Replace(h[0])), r.names.Replace(h[1])
		pattern, isPattern := strings.CutPrefix(want, "~")
		if len(got) != 1 || isPattern && !regexp.MustCompile(pattern).MatchString(got[0]) || !isPattern && got[0] != want {
			faults = append(faults, fmt.Sprintf("header %s %q, want %q", h[0], got, want))
		}
	}
	for _, key := range p.absent {
		if got := a.header.Values(key); len(got) > 0 {
			faults = append(faults, fmt.Sprintf("header %s %q, want none", key, got))
		}
	}
	if p.body != nil {
		if want := r.names.Replace(*p.body); a.body != want {
			faults = append(faults, fmt.Sprintf("body %q, want %q", shorten(a.body), shorten(want)))
		}
	}
	for _, f := range p.checks {
		if err := f(a); err != nil {
			faults = append(faults, shorten(err.Error()))
		}
	}
	// Every answer of Swift's proxy has these.
	if id := a.header.Get("X-Trans-Id"); !transID.MatchString(id) || a.header.Get("X-Openstack-Request-Id") != id {
		faults = append(faults, fmt.Sprintf("X-Trans-Id %q, X-Openstack-Request-Id %q", id, a.header.Get("X-Openstack-Request-Id")))
	}
	return faults
}

var transID = regexp.MustCompile(`^tx[0-9a-f]{21}-[0-9a-f]{10}`)

func shorten(s string) string {
	if len(s) > 1000 {
		return s[:1000] + "…"
	}
	return s
}

// send sends a step's request.
func (r *run) send(p *step) answer {
	r.Helper()
	method, path, _ := strings.Cut(r.names.Replace(p.request), " ")
	target := r.storageURL + "/" + path
	switch {
	case strings.HasPrefix(path, "/auth/"):
		target = r.origin + path
	case strings.HasPrefix(path, "/"):
		target = r.root + path
	case strings.HasPrefix(path, "@"):
		target = r.storageURL + path[1:]
	}
	var body io.Reader
	if p.payload != nil {
		body = bytes.NewReader([]byte(r.names.Replace(*p.payload)))
	}
	if p.chunked {
		body = io.MultiReader(body) // hides the length
	}
	req, err := http.NewRequest(method, target, body)
	if err != nil {
		r.Fatalf("%s: %v", p.request, err)
	}
	if !p.noToken {
		req.Header.Set("X-Auth-Token", r.token)
	}
	for _, h := range p.header {
		req.Header[http.CanonicalHeaderKey(r.names.Replace(h[0]))] = []string{r.names.Replace(h[1])}
	}
	resp, err := r.http.Do(req)
	if err != nil {
		r.Fatalf("%s: %v", p.request, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		r.Fatalf("%s: %v", p.request, err)
	}
	return answer{resp.StatusCode, resp.Header, string(data)}
}

// etag is the MD5 of a body, as Swift writes it.
func etag(body string) string {
	sum := md5.Sum([]byte(body))
	return hex.EncodeToString(sum[:])
}

const (
	html      = "text/html; charset=UTF-8"
	plain     = "text/plain; charset=utf-8"
	octets    = "application/octet-stream"
	httpDate  = `~^[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT$`
	timestamp = `~^\d{10}\.\d{5}$`
)

func page(title, text string) string { return "<html><h1>" + title + "</h1><p>" + text + "</p></html>" }

var (
	notFound     = page("Not Found", "The resource could not be found.")
	accepted     = page("Accepted", "The request is accepted for processing.")
	unauthorized = page("Unauthorized", "This server could not verify that you are authorized to access the document you requested.")
)
