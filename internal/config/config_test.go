// SPDX-License-Identifier: MIT

package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSecretsStaySecret prints every type of this package in every way that
// we know, and looks for the secret and for its hexadecimal form.
func TestSecretsStaySecret(t *testing.T) {
	const marker = "s3cr3t-m4rk3r"
	login := Login{Username: "u", Password: marker, AppCredentialID: "i", AppCredentialSecret: marker}
	export := Export{Container: "a", Login: login}
	secrets, err := ParseSecrets("f", []byte("[a]\nusername=u\npassword="+marker+"\n[b]\napplication-credential-id=i\napplication-credential-secret="+marker+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	secret := Secret(marker)
	values := map[string]any{
		"Secret": secret, "*Secret": &secret, "[]Secret": []Secret{secret}, "map of Secret": map[string]Secret{"k": secret}, "map by Secret": map[Secret]int{secret: 1},
		"[1]Secret": [1]Secret{secret}, "any": []any{secret}, "struct": struct{ S Secret }{secret}, "struct of pointer": struct{ S *Secret }{&secret},
		"Login": login, "*Login": &login, "[]Login": []Login{login}, "Export": export, "*Export": &export, "map of Export": map[string]Export{"a": export},
		"Secrets": secrets, "struct of Secrets": struct{ S *Secrets }{secrets},
		"Defaults": Defaults{Keystone: &KeystoneOptions{}}, "error": fmt.Errorf("login %v: %w", login, errors.New("x")),
	}
	leaks := func(out string) bool {
		return strings.Contains(out, marker) || strings.Contains(strings.ToLower(out), fmt.Sprintf("%x", marker)) ||
			strings.Contains(out, "115 51 99 114") // as bytes in decimal
	}
	for name, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%t", "%c", "%U", "%e", "%10.3s"} {
			if out := fmt.Sprintf(verb, v); leaks(out) {
				t.Errorf("%s of %s: %s", verb, name, out)
			}
		}
		if out := fmt.Sprint(v) + fmt.Sprintln(v); leaks(out) {
			t.Errorf("Print of %s: %s", name, out)
		}
		if out, err := json.Marshal(v); err == nil && leaks(string(out)) && name != "map by Secret" {
			t.Errorf("JSON of %s: %s", name, out)
		}
		var b bytes.Buffer
		slog.New(slog.NewTextHandler(&b, nil)).Info("m", "v", v)
		if name != "map by Secret" {
			slog.New(slog.NewJSONHandler(&b, nil)).Info("m", "v", v)
		}
		if leaks(b.String()) {
			t.Errorf("slog of %s: %s", name, b.String())
		}
	}
	if secret.Reveal() != marker || secrets.values["a"]["password"] != marker {
		t.Error("the secret got lost")
	}
}

// TestErrorsKeepSecrets: a file that is wrong in the line of a password is
// reported without the password.
func TestErrorsKeepSecrets(t *testing.T) {
	const marker = "s3cr3t-m4rk3r"
	for _, text := range []string{
		"[a]\nusername = u\n  password = " + marker + "\n",
		"[a]\npassword = " + marker + "\npassword = " + marker + "\n",
		"[a]\npasswort = " + marker + "\n",
		"[a]\n" + marker + "\n",
		"password = " + marker + "\n",
		"[a]\n= " + marker + "\n",
		"[a]\nauthurl = http://u:" + marker + "@h/\n",
		"[a]\nauthurl = http://u:" + marker + "@h:x/\n",
		"[a]\npassword = " + marker + "\xff\n",
		"[a]\nusername = u\npassword = " + marker + "\nauth-version = 7\n",
	} {
		_, err := ParseSecrets("f", []byte(text))
		if err == nil || strings.Contains(err.Error(), marker) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "65536": 65536, "64K": 65536, "64k": 65536, "64KiB": 65536, "64kib": 65536, "1M": 1 << 20, "1MiB": 1 << 20, "10G": 10 << 30,
		"1T": 1 << 40, "2P": 2 << 50, "7E": 7 << 60, "1b": 1, "1B": 1, "2s": 1024, "3S": 1536, "9223372036854775807": 1<<63 - 1,
	} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "-1", "+1", "1.5G", "64KB", "64 K", " 64K", "64K ", "0x10", "8E", "9223372036854775808", "99999999999999999999", "1Ki", "1KiBB", "1ib", "K"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%q: %d, want an error", in, got)
		}
	}
}

// TestReadSecrets is about the file itself.
func TestReadSecrets(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secrets.conf")
	write := func(mode fs.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte("[a]\nusername=u\npassword=p\n[b]\n"), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := ReadSecrets(path); !errors.Is(err, fs.ErrNotExist) || err.Error() != "secrets file "+path+": no such file or directory" {
		t.Errorf("missing: %v", err)
	}
	write(0o600)
	s, warning, err := ReadSecrets(path)
	if err != nil || warning != "" || strings.Join(s.Containers(), " ") != "a b" {
		t.Errorf("0600: %v, %q, %v", s, warning, err)
	}
	write(0o640)
	if _, warning, err = ReadSecrets(path); err != nil || warning != "" {
		t.Errorf("0640: %q, %v", warning, err)
	}
	write(0o644)
	_, warning, err = ReadSecrets(path)
	if want := path + " is world readable, please consider changing its permissions to 0600"; err != nil || warning != want {
		t.Errorf("0644: %q, %v", warning, err)
	}
	if _, _, err = ReadSecrets(dir); err == nil || err.Error() != "secrets file "+dir+": is a directory" {
		t.Errorf("directory: %v", err)
	}
	if os.Geteuid() != 0 {
		write(0o000)
		if _, _, err = ReadSecrets(path); err == nil || err.Error() != "secrets file "+path+": permission denied" {
			t.Errorf("unreadable: %v", err)
		}
	}
}

// TestDotsAreNoChildren: to ini.v1 "a.b" is a child of "a".
func TestDotsAreNoChildren(t *testing.T) {
	s, err := ParseSecrets("f", []byte("[a]\nusername=u\npassword=p\nread-only=1\n[a.b]\nusername=v\n"))
	if err != nil {
		t.Fatal(err)
	}
	if x, err := s.Export("a.b", Defaults{AuthURL: v1}, nil); err == nil {
		t.Errorf("[a.b] took what is [a]'s: %v", x)
	}
}
