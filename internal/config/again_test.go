// SPDX-License-Identifier: MIT

package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/internal/clouds"
)

// TestAgain changes the files under a container whose login was refused.
func TestAgain(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "secrets.conf")
	const section = "[%]\nauthurl = http://h/auth/v1.0\nusername = u\npassword = "
	of := func(name, password string) string { return strings.Replace(section, "%", name, 1) + password + "\n" }
	yaml := func(password string) string { return strings.Replace(cloudA, "s3cr3t", password, 1) }
	write("secrets.conf", "[DEFAULT]\n"+of("a", "one")+of("b", "one")+"[c]\ncloud = a\n", 0o600)
	write("clouds.yaml", yaml("one"), 0o600)
	env := environ("OS_CLIENT_CONFIG_FILE="+filepath.Join(dir, "clouds.yaml"), "HOME=/nowhere",
		"OS_AUTH_URL=http://e/v3", "OS_USERNAME=e", "OS_PASSWORD=two")
	was, _, err := ReadSecrets(path)
	if err != nil {
		t.Fatal(err)
	}
	d := Defaults{Clouds: clouds.New(clouds.Load(env))}
	secrets := filepath.Join(dir, "secrets.conf")
	for _, c := range []struct {
		container, says string
		change          func()
		password, place string
		warning         bool
	}{
		{container: "a", password: "one", place: "section [a] of " + secrets},
		{container: "c", password: "one", place: "cloud a of " + filepath.Join(dir, "clouds.yaml")},
		{container: "a", change: func() { write("secrets.conf", of("a", "two")+"[c]\ncloud = a\n", 0o644) }, password: "two", place: "section [a] of " + secrets, warning: true},
		{container: "b", says: secrets + ": [b]: there is no such section any more"},
		{container: "c", change: func() { write("clouds.yaml", yaml("two"), 0o600) }, password: "two", place: "cloud a of " + filepath.Join(dir, "clouds.yaml"), warning: true},
		{container: "c", change: func() {
			write("clouds.yaml", yaml(""), 0o600)
			write("secure.yaml", "clouds: {a: {auth: {password: three}}}", 0o600)
		}, password: "three", place: "cloud a of " + filepath.Join(dir, "secure.yaml"), warning: true},
		{container: "c", change: func() { os.Remove(filepath.Join(dir, "clouds.yaml")) }, says: "OS_CLIENT_CONFIG_FILE: "},
		{container: "a", change: func() {
			write("secrets.conf", "[DEFAULT]\npassword = three\n"+strings.Replace(of("a", ""), "password = \n", "", 1), 0o600)
		},
			password: "three", place: "section [DEFAULT] of " + secrets},
		{container: "a", change: func() { write("secrets.conf", of("a", "two")+"half a li", 0o600) }, says: secrets + ":5: "},
		{container: "a", change: func() { os.Remove(secrets) }, says: "secrets file " + secrets + ": "},
	} {
		if c.change != nil {
			c.change()
		}
		x, _, warning, err := was.Again(c.container, d, env)
		if c.says != "" {
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v; want %q", c.container, err, c.says)
			}
			continue
		}
		if err != nil || x.Login.Password.Reveal() != c.password || x.Place != c.place || (warning != "") != c.warning {
			t.Errorf("%s: %q from %s, %q, %v; want %q from %s", c.container, x.Login.Password.Reveal(), x.Place, warning, err, c.password, c.place)
		}
	}
	// Where there was no file, there need be none, and the environment is what it was.
	x, _, _, err := NoSecrets(secrets).Again("a", d, environ("OS_AUTH_URL=http://e/v3", "OS_USERNAME=e", "OS_PASSWORD=two"))
	if err != nil || x.Login.Password.Reveal() != "two" || x.Place != "the environment" {
		t.Errorf("%q from %s, %v", x.Login.Password.Reveal(), x.Place, err)
	}
}

// TestSameLogin compares what a login consists of.
func TestSameLogin(t *testing.T) {
	a := Login{AuthURL: "http://h/v3", Username: "u", Password: "p", CACert: "/a"}
	b := a
	if b.CACert, b.ClientCert, b.ClientKey, b.Insecure = "/b", "/c", "/k", true; !SameLogin(a, b) {
		t.Error("certificates count")
	}
	for i, change := range []func(*Login){
		func(l *Login) { l.Password = "q" }, func(l *Login) { l.AppCredentialSecret = "q" }, func(l *Login) { l.StorageURL = "http://h/v1/A" },
		func(l *Login) { l.Token = "t" }, func(l *Login) { l.Region = "R" },
	} {
		b := a
		if change(&b); SameLogin(a, b) {
			t.Errorf("change %d is not seen", i)
		}
	}
}

// TestAgainPipe reads the secrets from a pipe: what it has told is all that there is.
func TestAgainPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("[a]\nauthurl = http://h/auth/v1.0\nusername = u\npassword = p\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	was, _, err := ReadSecrets(fmt.Sprintf("/proc/self/fd/%d", r.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	x, _, _, err := was.Again("a", Defaults{}, nil)
	if err != nil || x.Login.Password.Reveal() != "p" {
		t.Errorf("%q, %v", x.Login.Password.Reveal(), err)
	}
}
