// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/volume"
)

// asked runs a command with --json, which has to print one object and nothing
// else, and returns its keys' values.
func (b *bench) asked(args ...string) map[string]any {
	b.Helper()
	out := b.ok(append(args, "--json")...)
	var v map[string]any
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		b.Fatalf("%q: %v: %s", args, err, out)
	}
	return v
}

// is fails unless v has just these keys and values.
func (b *bench) is(what string, v, want map[string]any) {
	b.Helper()
	if !reflect.DeepEqual(v, want) {
		b.Errorf("%s: %v, want %v", what, v, want)
	}
}

// recent takes a time out of v, which has to be of just now.
func (b *bench) recent(v map[string]any, key string) {
	b.Helper()
	text, _ := v[key].(string)
	at, err := time.Parse(time.RFC3339, text)
	if err != nil || !strings.HasSuffix(text, "Z") || time.Since(at).Abs() > 2*time.Minute {
		b.Errorf("%s is %v", key, v[key])
	}
	delete(v, key)
}

// seconds takes a duration out of v.
func (b *bench) seconds(v map[string]any) {
	b.Helper()
	if s, ok := v["seconds"].(float64); !ok || s <= 0 || s > 600 {
		b.Errorf("seconds is %v", v["seconds"])
	}
	delete(v, "seconds")
}

// TestJSONLife is the life of a disk of each version, as programs see it.
func TestJSONLife(t *testing.T) {
	t.Parallel()
	for format, options := range map[string][]string{"1": {"setup", "disk", "--size", "1M", "--object-size", "64K"}, "2": {"setup", "disk", "--size", "1M", "--format", "2"}} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			version, objects, objectSize := 1., any(16.), any(65536.)
			if format == "2" {
				version, objects, objectSize = 2., nil, nil
			}
			setUp := map[string]any{"container": "disk", "version": version, "size": 1048576., "objects": objects, "object_size": objectSize, "created": true}
			b.is("setup", b.asked(options...), setUp)
			if format == "1" {
				setUp["created"] = false
				b.is("setup -f", b.asked(append(options, "-f")...), setUp)
			}

			v := b.asked("lock", "disk")
			b.recent(v, "since")
			b.is("lock", v, map[string]any{"container": "disk", "holder": "ctl"})
			if r := b.run("lock", "disk", "--json"); r.code != 1 || r.out != "" || !strings.Contains(r.err, "already locked") {
				t.Errorf("lock twice: %+v", r)
			}
			v = b.asked("unlock", "disk")
			b.recent(v, "since")
			b.is("unlock", v, map[string]any{"container": "disk", "holder": "ctl", "lease": 1., "lease_until": nil, "lease_expired": false, "writes_refused": nil})

			// A server's, which has a lease that ends.
			d, _ := b.open("disk")
			content := make([]byte, 1<<20)
			copy(content[300_000:], noise(100_000))
			if _, err := d.WriteAt(content[300_000:400_000], 300_000); err != nil {
				t.Fatal(err)
			}
			if err := d.Sync(); err != nil {
				t.Fatal(err)
			}
			v = b.asked("unlock", "disk")
			b.recent(v, "since")
			b.recent(v, "lease_until")
			lease, _ := v["lease"].(float64)
			delete(v, "lease")
			b.is("unlock", v, map[string]any{"container": "disk", "holder": "server:1", "lease_expired": false, "writes_refused": true})
			if lease < 2 {
				t.Errorf("lease %v", lease)
			}
			d.Abandon()

			path := filepath.Join(t.TempDir(), "image")
			v = b.asked("download", "disk", path)
			b.seconds(v)
			fetched := v["fetched"]
			delete(v, "fetched")
			b.is("download", v, map[string]any{"container": "disk", "snapshot": nil, "since": nil, "version": version, "size": 1048576., "format": "raw", "resumed_at": 0.})
			if want := map[string]float64{"1": 3 * 65536, "2": 1 << 20}[format]; fetched != want {
				t.Errorf("%v bytes were fetched, want %v", fetched, want)
			}
			checkImage(t, path, content)
			if format == "2" {
				b.is("snapshot", b.asked("snapshot", "disk", "monday"), map[string]any{"container": "disk", "snapshot": "monday", "deleted": false})
				b.is("snapshot", b.asked("snapshot", "disk", "tuesday"), map[string]any{"container": "disk", "snapshot": "tuesday", "deleted": false})
				b.is("snapshot --delete", b.asked("snapshot", "--delete", "disk", "tuesday"), map[string]any{"container": "disk", "snapshot": "tuesday", "deleted": true})
				v = b.asked("download", "disk@monday", path)
				b.seconds(v)
				b.is("download", v, map[string]any{"container": "disk", "snapshot": "monday", "since": nil, "version": version, "size": 1048576., "format": "raw", "resumed_at": 0., "fetched": 1048576.})
			}

			v = b.asked("delete", "disk", "--yes")
			n, _ := v["deleted_objects"].(float64)
			delete(v, "deleted_objects")
			b.is("delete", v, map[string]any{"container": "disk", "version": version, "size": 1048576., "deleted_versions": 0., "versions_container": nil})
			if n < 3 {
				t.Errorf("%v objects were deleted", n)
			}
			b.gone("disk")
		})
	}
}

// TestJSONMark: a mark of 0.11's has no lease, and nothing is refused by it.
func TestJSONMark(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "4")
	b.setItem("disk", volume.KeyClient, "127.0.0.1:51120@1700000000")
	b.is("unlock", b.asked("unlock", "disk"), map[string]any{"container": "disk", "holder": "127.0.0.1:51120", "since": "2023-11-14T22:13:20Z",
		"lease": nil, "lease_until": nil, "lease_expired": false, "writes_refused": nil})
}

// TestJSONSetupWarns: what setup has to say about the size of objects is no part of
// the object, and is not lost.
func TestJSONSetupWarns(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	r := b.run("setup", "disk", "--size", "5000", "--object-size", "1000", "--json")
	var out setUp
	if err := json.Unmarshal([]byte(r.out), &out); err != nil || out.Size != 5000 || r.code != 0 ||
		r.err != "swiftnbd-ctl: warning: objects of 1000 B make a slow disk: each is a request\n" {
		t.Errorf("%+v, %v", r, err)
	}
}

// request makes a request for a container with one header, past the store.
func (b *bench) request(method, container, key, value string) {
	b.Helper()
	do := func(method, url, token, key, value string) http.Header {
		r, err := http.NewRequestWithContext(b.Context(), method, url, nil)
		if err != nil {
			b.Fatal(err)
		}
		if token == "" {
			r.Header.Set("X-Auth-User", "test:tester")
			r.Header.Set("X-Auth-Key", "testing")
		}
		r.Header.Set("X-Auth-Token", token)
		if key != "" {
			r.Header.Set(key, value)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			b.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode/100 != 2 {
			b.Fatalf("%s %s: %s", method, url, answer.Status)
		}
		return answer.Header
	}
	login := do(http.MethodGet, b.auth, "", "", "")
	do(method, login.Get("X-Storage-Url")+"/"+container, login.Get("X-Auth-Token"), key, value)
}

// TestWarningOnce: a disk's warning is called one once.
func TestWarningOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	path, _ := sparse(t, 65536, map[int][]byte{0: noise(100)})
	b.ok("setup", "disk", "--size", "1M")
	b.request("POST", "disk", "X-Versions-Enabled", "true")
	if r := b.run("upload", path, "disk"); r.code != 0 || r.err != program+": warning: disk: X-Versions-Enabled: whatever is overwritten or deleted is kept as an older version, and billed\n" {
		t.Errorf("%+v", r)
	}
}

// TestListNoSecrets: without a secrets file, list says what it needs.
func TestListNoSecrets(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/etc/swiftnbd/secrets.conf"); err == nil {
		t.Skip("this machine has a secrets file")
	}
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "--size", "1M")
	env := map[string]string{"ST_AUTH": b.auth, "ST_USER": "test:tester", "ST_KEY": "testing"}
	for args, want := range map[string]struct {
		code int
		says string
	}{
		"list":      {1, ": without it, say which containers, as in swiftnbd-ctl list CONTAINER\n"},
		"list disk": {0, ""},
	} {
		var errs bytes.Buffer
		code := b.pace.run(t.Context(), strings.Fields(args), strings.NewReader(""), io.Discard, &errs, func(name string) string { return env[name] })
		if code != want.code || !strings.HasSuffix(errs.String(), want.says) {
			t.Errorf("%s: exit status %d, %s", args, code, errs.String())
		}
	}
}

// TestJSONDeleteVersions: delete counts the older versions that it deletes, and
// names the container that has others.
func TestJSONDeleteVersions(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "4", "--object-size", "4096")
	b.request("POST", "disk", "X-Versions-Enabled", "true")
	for range 3 {
		b.put("disk", "disk.part/00000001", noise(4096))
	}
	if v := b.asked("delete", "disk", "--yes", "--old-versions"); v["deleted_versions"].(float64) < 2 || v["versions_container"] != nil {
		t.Errorf("%v", v)
	}
	b.ok("setup", "disk", "4", "--object-size", "4096")
	b.request("PUT", "attic", "", "")
	b.request("POST", "disk", "X-History-Location", "attic")
	r := b.run("delete", "disk", "--yes", "--json")
	var out deleted
	if err := json.Unmarshal([]byte(r.out), &out); err != nil || r.code != 0 || out.Archive == nil || *out.Archive != "attic" || out.Versions != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestJSONList: of a disk of version 2 the columns show how much Swift has stored,
// and so does --json.
func TestJSONList(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.fillLog("disk", 4<<20, 1)
	var all []listed
	if err := json.Unmarshal([]byte(b.ok("list", "--json")), &all); err != nil || len(all) != 1 {
		t.Fatal(err)
	}
	md, err := b.store("disk").Metadata(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if e := all[0]; e.Stored == nil || e.Bytes == nil || *e.Stored != md.Objects || *e.Bytes != md.Bytes || md.Bytes < 1<<20 || e.Objects != nil {
		t.Errorf("%+v, and Swift has %d objects, %d bytes", e, md.Objects, md.Bytes)
	}
}

// printed are the types that are printed as JSON, by command.
var printed = map[string]reflect.Type{
	"convert": reflect.TypeFor[converted](),
	"clone":   reflect.TypeFor[cloned](), "flatten": reflect.TypeFor[flattened](),
	"bench":  reflect.TypeFor[benched](),
	"delete": reflect.TypeFor[deleted](), "diff": reflect.TypeFor[diffFound](), "download": reflect.TypeFor[downloaded](), "info": reflect.TypeFor[info](),
	"list": reflect.TypeFor[listed](), "lock": reflect.TypeFor[locked](), "resize": reflect.TypeFor[resized](), "revert": reflect.TypeFor[reverted](), "rewind": reflect.TypeFor[rewound](), "setup": reflect.TypeFor[setUp](),
	"attach": reflect.TypeFor[attached](), "detach": reflect.TypeFor[attached](), "snapshot": reflect.TypeFor[snapshotted](),
	"snapshots": reflect.TypeFor[snapshotFound](), "top": reflect.TypeFor[topped](), "unlock": reflect.TypeFor[unlocked](), "upload": reflect.TypeFor[uploaded](), "verify": reflect.TypeFor[verified](),
}

// keysOf returns the keys of a type in JSON, with those of what it embeds or has.
func keysOf(t reflect.Type) (keys []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		if key := f.Tag.Get("json"); key != "" {
			keys = append(keys, key)
			in := f.Type
			for in.Kind() == reflect.Slice || in.Kind() == reflect.Pointer {
				in = in.Elem()
			}
			if in.Kind() == reflect.Struct && in != reflect.TypeFor[time.Time]() {
				keys = append(keys, keysOf(in)...)
			}
		} else if f.Anonymous {
			keys = append(keys, keysOf(f.Type)...)
		}
	}
	return keys
}

// TestJSONManual: the manual has the form of each command's JSON: its keys, and no
// others.
func TestJSONManual(t *testing.T) {
	text, err := os.ReadFile("swiftnbd-ctl.pod")
	if err != nil {
		t.Fatal(err)
	}
	told := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?ms)^C<([a-z]+)> prints an (?:array|object)(.*?)\n\n`).FindAllStringSubmatch(string(text), -1) {
		told[m[1]] = m[2]
	}
	for verb, kind := range printed {
		for _, key := range keysOf(kind) {
			if !strings.Contains(told[verb], "C<"+key+">") {
				t.Errorf("the manual does not name the key %s of %s --json", key, verb)
			}
		}
		// What is in parentheses, or after a colon, explains.
		list := regexp.MustCompile(`(?s)\([^)]*\)|[.:](?:\s.*)?$`).ReplaceAllString(told[verb], "")
		for _, m := range regexp.MustCompile(`C<([a-z_]+)>`).FindAllStringSubmatch(list, -1) {
			if !slices.Contains(keysOf(kind), m[1]) && verb != "info" { // which explains by the way
				t.Errorf("the manual names a key %s of %s --json, which is not there", m[1], verb)
			}
		}
	}
	// Whoever has a --json is in the list.
	for _, cmd := range (&tool{}).root().Commands() {
		if has := cmd.Flags().Lookup("json") != nil; has != slices.Contains(slices.Collect(maps.Keys(printed)), cmd.Name()) {
			t.Errorf("%s: --json is there: %v", cmd.Name(), has)
		}
	}
}
