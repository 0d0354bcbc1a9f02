// SPDX-License-Identifier: MIT

// Package breaks breaks rules of version 2 of the format on purpose, one after the
// other, and wants the tests to see each. The sources stay as they are: the broken
// file is an overlay of the go command's.
package breaks

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var all = flag.Bool("all", false, "break all rules, which takes ten minutes, and not only the first")

// rule is a rule of the format or of the design, and how to break it.
type rule struct {
	rule string
	file string // of the repository
	old  string // is there once
	new  string
	dir  string   // of the package whose tests see it
	see  []string // those tests, of which one at least is to fail
}

var rules = []rule{
	{
		"a root that a program does not know is refused",
		"internal/logdisk/layout/root.go",
		"		if !slices.Contains(features, name) {\n			return fail(", "		if !slices.Contains(features, name) && false {\n			return fail(",
		"internal/logdisk/layout", []string{"TestRootRefused"},
	},
	{
		"what a root does not need is deleted after ten minutes, and not at once",
		"internal/logdisk/save.go",
		"after := time.Now().Add(d.o.Horizon)", "after := time.Now()",
		"internal/logdisk", []string{"TestEveryRequest"},
	},
	{
		"a log is never cut before what was acknowledged: opening fails",
		"internal/logdisk/open.go",
		"if g := from.N + uint64(whole); log.durable >= g {", "if g := from.N + uint64(whole); false && log.durable >= g {",
		"internal/logdisk", []string{"TestReplicasAway"},
	},
	{
		"a name has the same bytes at each attempt",
		"internal/logdisk/upload.go",
		"		d.stats.Failures.Add(1)\n", "		d.stats.Failures.Add(1)\n\t\tdata, packed = d.encode(o)\n\t\tetag = d.hash(data)\n",
		"internal/logdisk", []string{"TestEveryRequest", "TestModel"},
	},
	{
		"a root that was sent goes first, as it was: its name gets no other bytes",
		"internal/logdisk/save.go",
		"	if d.sent != nil {\n		if err := d.putRoot(ctx); err != nil {\n			return err\n		}\n	}\n", "	d.sent = nil\n",
		"internal/logdisk", []string{"TestEveryRequest", "TestEveryRequestPaged"},
	},
	{
		"a cut counts if it is whole",
		"internal/logdisk/open.go",
		"		if begun == 0 {\n			n = i + 1", "		if begun == 0 || true {\n			n = i + 1",
		"internal/logdisk", []string{"TestCuts"},
	},
	{
		"a flush is done when its objects are in Swift",
		"internal/logdisk/flush.go",
		"	err := d.await(ctx, o.done, failing)\n", "	var err error\n	_ = failing\n",
		"internal/logdisk", []string{"TestModel"},
	},
	{
		"a flush is done when all numbers before its object are in Swift, too",
		"internal/logdisk/upload.go",
		"	d.acked[o.at.N] = o\n	for {\n", "	d.acked[o.at.N] = o\n	if o.at.N > d.durable+1 {\n\t\td.durable = o.at.N - 1\n\t}\n	for {\n",
		"internal/logdisk", []string{"TestEveryRequest", "TestModel"},
	},
	{
		"before a client is answered, a root is in Swift that ends the log of the epoch before",
		"internal/logdisk/open.go",
		"		if err := d.save(ctx); err != nil {\n			d.Close()\n", "		if err := error(nil); err != nil {\n			d.Close()\n",
		"internal/logdisk", []string{"TestEveryRequest", "TestRivals"},
	},
	{
		"a collector's object gets a block only if the block is where it was read from",
		"internal/logdisk/collect.go",
		"			for s := range watch.Lookup(l.First, l.Count) {\n				d.relocate(part(e, s.First, s.First+s.Count), r.Source)\n",
		"			for _, s := range []struct{ First, Count uint64 }{{l.First, l.Count}} {\n				d.relocate(part(e, s.First, s.First+s.Count), r.Source)\n",
		"internal/logdisk", []string{"TestModel"},
	},
	{
		"what a snapshot needs is not garbage",
		"internal/logdisk/pin.go",
		"	if !objectNeeded(d.pins.list, k) {\n		return false\n	}\n", "	if true {\n		return false\n	}\n",
		"internal/logdisk", []string{"TestModel", "TestSnapshot"},
	},
	{
		"a snapshot with clones is not deleted: its notes count",
		"internal/logdisk/clone.go",
		"	if len(notes) > 0 {\n		err := &ChildrenError{snapshot, notes}\n", "	if len(notes) > 1000 {\n		err := &ChildrenError{snapshot, notes}\n",
		"internal/logdisk", []string{"TestCloneOfGoing", "TestCloneWhileDeleting", "TestCloneEveryRequest", "TestCloneUnlisted"},
	},
	{
		"who is about to clone looks whether the snapshot goes",
		"internal/logdisk/clone.go",
		"		case err == nil:\n			return \"\", 0, fmt.Errorf(\"snapshot %s: %w\", p.Pin.Name, ErrGoing)\n", "		case err == nil:\n",
		"internal/logdisk", []string{"TestCloneOfGoing", "TestCloneWhileDeleting", "TestCloneEveryRequest"},
	},
	{
		"what the former holder's lease says to be durable is not cut off",
		"internal/device/logged.go",
		"		lo.Durable = logdisk.DurableIn(held.Former())\n", "		_ = held.Former()\n",
		"internal/device", []string{"TestFormerDurable"},
	},
	{
		"who cannot open the disk leaves to the next one what the former holder's lease says",
		"internal/lease/release.go",
		"		kept = h.former.items()\n", "		_ = h.former.items()\n",
		"internal/device", []string{"TestFormerDurable"},
	},
	{
		"a mark that arrives late does not hide what another has kept since",
		"internal/lease/number.go",
		"passed = passed.with(o.keptBy(r))", "_ = r",
		"internal/lease", []string{"TestKeptLateNumber", "TestSimulation"},
	},
	{
		"a lease that has ended gives no right to write",
		"internal/store/fence.go",
		"	case s.grant.over():\n", "	case s.grant.over() && false:\n",
		"internal/device", []string{"TestTakenAway"},
	},
	{
		"what is cut off a clone does not come back from its parent",
		"internal/logdisk/resize.go",
		"	d.cutBase(size)\n", "",
		"internal/logdisk", []string{"TestCloneResize", "TestModelClones"},
	},
	{
		"a block is checked by its CRC",
		"internal/logdisk/layout/frame.go",
		"	if le.Uint32(frame[BlockSize:]) != dataCRC(frame[:BlockSize], number, u) {\n", "	if false {\n",
		"internal/logdisk", []string{"TestDamage"},
	},
}

// TestRules breaks nothing. It looks whether each rule's place is there once, and
// whether its tests are there, for all rules: this takes no time.
func TestRules(t *testing.T) {
	for _, r := range rules {
		text, err := os.ReadFile(filepath.Join("../..", r.file))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), r.old); n != 1 {
			t.Errorf("%s has %q %d times: this test has to follow it", r.file, r.old, n)
		}
		files, err := filepath.Glob(filepath.Join("../..", r.dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		var tests strings.Builder
		for _, path := range files {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			tests.Write(b)
		}
		for _, name := range r.see {
			if !strings.Contains(tests.String(), "\nfunc "+name+"(t *testing.T)") {
				t.Errorf("%s: %s has no test %s", r.rule, r.dir, name)
			}
		}
	}
}

// TestBreaks breaks a rule, and wants a test of it to fail. A break that does not
// build, or whose place is not there any more, is an error.
func TestBreaks(t *testing.T) {
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range rules {
		if i > 0 && !*all {
			break
		}
		t.Run(r.rule, func(t *testing.T) {
			path := filepath.Join(top, r.file)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(text), r.old); n != 1 {
				t.Fatalf("%s has %q %d times: this test has to follow it", r.file, r.old, n)
			}
			dir := t.TempDir()
			broken, overlay := filepath.Join(dir, filepath.Base(path)), filepath.Join(dir, "overlay.json")
			if err := os.WriteFile(broken, []byte(strings.Replace(string(text), r.old, r.new, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(map[string]map[string]string{"Replace": {path: broken}})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(overlay, b, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "go", "test", "-vet", "off", "-count", "1", "-timeout", "4m", "-overlay", overlay, "-run", "^("+strings.Join(r.see, "|")+")$", "./"+r.dir)
			cmd.Dir = top
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			saw := caught(string(out))
			t.Logf("caught by %s", strings.Join(saw, ", "))
			if !slices.ContainsFunc(saw, func(name string) bool {
				name, _, _ = strings.Cut(name, ",")
				return slices.Contains(r.see, name)
			}) {
				t.Errorf("none of %s fails:\n%s", strings.Join(r.see, ", "), out)
			}
		})
	}
}

// Tests that have failed, and those at which a time limit has ended the process: some
// breaks make a program wait for ever.
var (
	failed  = regexp.MustCompile(`(?m)^--- FAIL: (\w+)`)
	running = regexp.MustCompile(`(?m)^\s+(Test\w+)(?:/\S*)? \([0-9hms.]+\)$`)
)

// caught returns the tests that have seen something.
func caught(out string) (names []string) {
	for _, m := range failed.FindAllStringSubmatch(out, -1) {
		names = append(names, m[1])
	}
	if _, late, ok := strings.Cut(out, "panic: test timed out after "); ok {
		for _, m := range running.FindAllStringSubmatch(late, -1) {
			names = append(names, m[1]+", which does not end")
		}
	}
	return names
}
