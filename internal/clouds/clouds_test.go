// SPDX-License-Identifier: MIT

package clouds

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// of returns the clouds of texts for clouds.yaml, secure.yaml and
// clouds-public.yaml. An empty text is no file.
func of(texts ...string) *Set {
	var files Files
	for i, to := range []**File{&files.Clouds, &files.Secure, &files.Public} {
		if i < len(texts) && texts[i] != "" {
			*to = &File{[]string{"/c/clouds.yaml", "/c/secure.yaml", "/c/clouds-public.yaml"}[i], []byte(texts[i])}
		}
	}
	files.Places.Directory, files.Places.Home = "/work", "/home/u"
	return New(files)
}

func text(t *testing.T, c *Cloud, keys ...string) string {
	t.Helper()
	v, err := c.Get(keys...)
	if err != nil {
		t.Error(err)
	}
	return v
}

// TestFaults: each says where and what, on one line, and no secret.
func TestFaults(t *testing.T) {
	const s = "s3cr3t"
	const bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n" +
		"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n"
	for _, c := range []struct{ clouds, secure, public, region, want string }{
		{clouds: "clouds: {b: {}, c d: {}}", want: "/c/clouds.yaml: cloud a: no such cloud (there are: b, c d)"},
		{clouds: "clouds: {}", want: "/c/clouds.yaml: cloud a: no such cloud (it has none)"},
		{clouds: "", want: "cloud a: there is no clouds.yaml (looked for"},
		{clouds: "clouds:\n a:\n\tb", want: "/c/clouds.yaml:3: not YAML: found character that cannot start any token"},
		{clouds: "clouds: {a: {}}", secure: "clouds:\n  a: {auth: {password: " + s + "}", want: "/c/secure.yaml:1: not YAML: "},
		{clouds: "clouds:\n  a:\n    auth: {password: " + s + "}\n    auth: {}\n", want: "/c/clouds.yaml:4: auth: given twice, first in line 3"},
		{clouds: "- a", want: "/c/clouds.yaml:1: not a file of clouds: it must begin with `clouds:`"},
		{clouds: "clouds: [a]", want: "/c/clouds.yaml:1: clouds: must hold the clouds by their names"},
		{clouds: "clouds: {a: " + s + "}", want: "/c/clouds.yaml:1: cloud a: must be settings of the form"},
		{clouds: "clouds: {a: {auth: {username: u}}}", secure: "clouds:\n  a: {auth: " + s + "}", want: "/c/secure.yaml:2: cloud a: auth: must be settings of the form"},
		{clouds: "clouds: {a: {profile: p}}", public: "public-clouds: {p: [" + s + "]}", want: "/c/clouds-public.yaml:1: cloud p: must be settings of the form"},
		{clouds: "clouds:\n  a:\n    profile: ovh\n", want: "/c/clouds.yaml:3: cloud a: profile: ovh is not in clouds-public.yaml (there is no clouds-public.yaml;"},
		{clouds: "clouds:\n  a:\n    profile: ovh\n", public: "public-clouds: {x: {}}", want: "/c/clouds-public.yaml has: x;"},
		{clouds: "clouds: {a: {regions: [R, S]}}", region: "T", want: "/c/clouds.yaml:1: cloud a: regions: there is no such region, T (there are: R, S)"},
		{clouds: "clouds: {a: {regions: R}}", want: "cloud a: regions: must be a list"},
		{clouds: "clouds: {a: {regions: [{values: {}}]}}", want: "cloud a: regions: a region has no name"},
		{clouds: "clouds: &c {a: *c}", want: "too many values, or too deep"},
		{clouds: bomb, want: "too many values, or too deep"},
	} {
		_, err := of(c.clouds, c.secure, c.public).Cloud("a", c.region)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), s) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v; want %s", c.clouds, err, c.want)
		}
	}
	if _, err := of("clouds: {a: {}, b: [], c: "+s+"}", "clouds: {d: "+s+"}", "public-clouds: {e: "+s+"}").Cloud("a", ""); err != nil {
		t.Errorf("of faults in other clouds: %v", err)
	}
	got, err := of("clouds: {a: {auth: {password: {x: "+s+"}}}}").Cloud("a", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := got.Get("auth.password"); err == nil || err.Error() != "/c/clouds.yaml:1: cloud a: auth.password: must be a single value" {
		t.Error(err)
	}
}

// TestText: what stands in the file is the value.
func TestText(t *testing.T) {
	c, err := of("clouds: {a: {cacert: ~/ca.pem, cert: x.pem, key: ~, auth: {password: 0123, username: no, token: null, user_id: 1e3}}}").Cloud("a", "")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"auth.password": "0123", "auth.username": "no", "auth.token": "", "auth.user_id": "1e3"} {
		if got := text(t, c, key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	for key, want := range map[string]string{"cacert": "/home/u/ca.pem", "cert": "/work/x.pem", "key": ""} {
		if got, err := c.File(key); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", key, got, err, want)
		}
	}
}

// TestPlaces finds the files in their order.
func TestPlaces(t *testing.T) {
	here, home, xdg, own := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	t.Chdir(here)
	env := map[string]string{"HOME": home, "XDG_CONFIG_HOME": xdg}
	read := func() (Files, error) {
		t.Helper()
		p, err := PlacesOf(func(name string) string { return env[name] })
		if err != nil {
			t.Fatal(err)
		}
		for _, paths := range []*[]string{&p.Config, &p.Secure, &p.Public} {
			var mine []string
			for _, path := range *paths {
				if !strings.HasPrefix(path, "/etc/") { // not this machine's
					mine = append(mine, path)
				}
			}
			*paths = mine
		}
		return p.Read()
	}
	write := func(path string) string {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("clouds: {}"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	want := func(clouds, secure string) {
		t.Helper()
		if f, err := read(); err != nil || f.Clouds.orNone(nil) != clouds || f.Secure.orNone(nil) != secure {
			t.Errorf("%v, %v, %v; want %s, %s", f.Clouds, f.Secure, err, clouds, secure)
		}
	}
	want("", "")
	user := filepath.Join(home, ".config", "openstack")
	for _, path := range []string{filepath.Join(user, "clouds.yml"), filepath.Join(xdg, "openstack", "clouds.yaml"),
		filepath.Join(here, "clouds.json"), filepath.Join(here, "clouds.yaml")} {
		want(write(path), "")
	}
	want(filepath.Join(here, "clouds.yaml"), write(filepath.Join(user, "secure.yaml")))

	env["OS_CLIENT_CONFIG_FILE"] = filepath.Join(own, "mine")
	if _, err := read(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "OS_CLIENT_CONFIG_FILE: "+own) {
		t.Errorf("a named file that is not there: %v", err)
	}
	want(write(filepath.Join(own, "mine")), filepath.Join(user, "secure.yaml"))
	want(filepath.Join(own, "mine"), write(filepath.Join(own, "secure.yaml"))) // the one beside it comes first
	env["OS_CLIENT_SECURE_FILE"] = write(filepath.Join(own, "other"))
	want(filepath.Join(own, "mine"), filepath.Join(own, "other"))
	if err := os.Mkdir(filepath.Join(own, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	env["OS_CLIENT_CONFIG_FILE"] = filepath.Join(own, "folder")
	if _, err := read(); err == nil || !strings.Contains(err.Error(), filepath.Join(own, "folder")+": is a directory") {
		t.Errorf("a folder: %v", err)
	}
}

// TestTrouble: a file that cannot be read concerns those who name a cloud.
func TestTrouble(t *testing.T) {
	files := Load(func(name string) string {
		return map[string]string{"OS_CLIENT_CONFIG_FILE": t.TempDir()}[name]
	})
	_, err := New(files).Cloud("a", "")
	if err == nil || !strings.HasPrefix(err.Error(), "cloud a: /") || !strings.HasSuffix(err.Error(), ": is a directory") {
		t.Error(err)
	}
}

// TestSecret prints the types in every way, and looks for what the files hold.
func TestSecret(t *testing.T) {
	s := of("clouds: {a: {auth: {password: s3cr3t}}}")
	if _, err := s.Cloud("a", ""); err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{s, s.files.Clouds, *s.files.Clouds, struct{ S *Set }{s}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
			if out := fmt.Sprintf(verb, v); strings.Contains(out, "s3cr3t") || strings.Contains(out, "733363723374") || strings.Contains(out, "115 51") {
				t.Errorf("%s: %s", verb, out)
			}
		}
	}
}

// FuzzParse: no file makes the parser fail in another way than with a Fault.
func FuzzParse(f *testing.F) {
	f.Add([]byte("clouds: {a: {auth: {<<: *x}, regions: [a, {name: b}]}}"))
	f.Add([]byte("x: &x {y: *x}\nclouds: *x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := of(string(data)).Cloud("a", "")
		var fault *Fault
		if err != nil && len(data) > 0 && !errors.As(err, &fault) {
			t.Error(err)
		}
	})
}

// TestAgainPipe has clouds.yaml in a pipe, which has told all that it had.
func TestAgainPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("clouds: {a: {region_name: R}}"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	path := fmt.Sprintf("/proc/self/fd/%d", r.Fd())
	was := New(Load(func(name string) string { return map[string]string{"OS_CLIENT_CONFIG_FILE": path}[name] }))
	if c, err := was.Again().Cloud("a", ""); err != nil || c.Region != "R" {
		t.Errorf("%v, %v", c, err)
	}
}
