// SPDX-License-Identifier: MIT

package conformance

import (
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

//go:embed rgw.txt
var rgw string

// RGW returns what Ceph's gateway does otherwise than Swift.
func RGW() *Differences { return parseDifferences(rgw) }

// Differences are the faults that a server is known to have. A listed fault does
// not fail its case, but one that is listed and does not come does. So the list
// says how the server answers, and a change is noticed.
//
// The list's lines that begin with "#" are the reasons; each holds for the lines
// below it. The others name a case, a request of it and the part of the answer
// that differs, separated by " | ". In front of them stands, for some:
//
//	~  every fault that this regular expression matches, in all cases
//	?  the fault comes at times only
//	!  the request is not sent, because the server does not survive it
type Differences struct {
	mu    sync.Mutex
	forms []*form
	cases map[string][]*difference
}

type form struct {
	pattern *regexp.Regexp
	seen    bool
}

type difference struct {
	request, got        string
	sometimes, withheld bool
	seen                bool
}

func parseDifferences(list string) *Differences {
	d := &Differences{cases: map[string][]*difference{}}
	for line := range strings.Lines(list) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if pattern, ok := strings.CutPrefix(line, "~ "); ok {
			d.forms = append(d.forms, &form{pattern: regexp.MustCompile(pattern)})
			continue
		}
		var l difference
		rest, ok := strings.CutPrefix(line, "? ")
		l.sometimes = ok
		rest, l.withheld = strings.CutPrefix(rest, "! ")
		parts := strings.SplitN(rest, " | ", 3)
		if len(parts) < 3 && !(l.withheld && len(parts) == 2) {
			panic(fmt.Sprintf("list of differences: %q", line))
		}
		l.request = parts[1]
		if !l.withheld {
			l.got = parts[2]
		}
		d.cases[parts[0]] = append(d.cases[parts[0]], &l)
	}
	return d
}

// knows says whether a fault is a known one that has not come yet.
func (d *Differences) knows(name, request, fault string) bool {
	return d.look(name, request, fault, false)
}

// comes is like knows, and the fault has come then. Each line stands for one
// fault, so that of ten refusals that are listed nine are too few.
func (d *Differences) comes(name, request, fault string) bool {
	return d.look(name, request, fault, true)
}

func (d *Differences) look(name, request, fault string, comes bool) bool {
	if d == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.forms {
		if f.pattern.MatchString(fault) {
			f.seen = f.seen || comes
			return true
		}
	}
	return d.find(name, request, got(fault), comes)
}

// withhold says whether a request must not be sent.
func (d *Differences) withhold(name, request string) bool {
	if d == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.find(name, request, "", true)
}

func (d *Differences) find(name, request, got string, comes bool) bool {
	i := slices.IndexFunc(d.cases[name], func(l *difference) bool {
		return l.request == request && l.got == got && (l.sometimes || !l.seen)
	})
	if i < 0 {
		return false
	}
	l := d.cases[name][i]
	l.seen = l.seen || comes
	return true
}

// missed reports what the list has of a case and what did not come.
func (d *Differences) missed(t testing.TB, name string) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.cases[name] {
		if !l.seen && !l.sometimes {
			t.Errorf("listed as a difference, and does not come any more:\n%s | %s | %s", name, l.request, l.got)
		}
	}
}

// missedForms reports what no case has shown, once all have run.
func (d *Differences) missedForms(t testing.TB) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.forms {
		if !f.seen {
			t.Errorf("listed as a difference of many cases, and does not come any more: %s", f.pattern)
		}
	}
}

// got is the part of a fault that says what came; the tables say what should.
func got(fault string) string {
	fault, _, _ = strings.Cut(fault, ", want ")
	return begin(fault)
}

// begin is the beginning of a text, short enough for a list.
func begin(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), 160)], "")
}

// Parts of requests and answers that differ from run to run.
var variable = []struct {
	pattern *regexp.Regexp
	name    string
}{
	{regexp.MustCompile(`temp_url_(sig|expires)=[^& ]*`), "temp_url_$1={$1}"},
	{regexp.MustCompile(`(n{20,}|v{20,}|x{20,})…?`), "{long}"},
	{regexp.MustCompile(`\btx[0-9a-f]{21}-[0-9a-f]{10}[-0-9a-z]*`), "{transaction}"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z?`), "{time}"},
	{regexp.MustCompile(`[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT`), "{date}"},
	{regexp.MustCompile(`AUTH_rgwtk[0-9a-f]+`), "{a token}"},
	{regexp.MustCompile(`\b[0-9a-f]+-default(-default)?`), "{gateway}"},
	{regexp.MustCompile(`\b1[789]\d{8}(\.\d{5})?\b`), "{timestamp}"},
}

// neutral replaces what differs from run to run by names.
func (r *run) neutral(text string) string {
	text = strings.NewReplacer(r.c, "{c}", r.d, "{d}", r.token, "{token}", r.storageURL, "{url}", r.account, "{a}").Replace(text)
	for _, v := range variable {
		text = v.pattern.ReplaceAllString(text, v.name)
	}
	return strings.ToValidUTF8(text, "{invalid}")
}

// title is a request in the form in which a list of differences has it.
func (r *run) title(p *step) string {
	text := p.request
	for i, h := range p.header {
		if i == 2 && len(p.header) > 3 {
			text += fmt.Sprintf(" and %d more", len(p.header)-i)
			break
		}
		text += fmt.Sprintf(" [%s: %s]", h[0], h[1])
	}
	return begin(r.neutral(text))
}

// fault reports a fault of the server unless it is a known one.
func (r *run) fault(request, fault string) {
	r.Helper()
	if !r.target.Differences.comes(r.name, request, r.neutral(fault)) {
		r.Errorf("%s | %s | %s", r.name, request, r.neutral(fault))
	}
}
