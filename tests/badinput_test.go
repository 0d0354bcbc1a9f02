// SPDX-License-Identifier: MIT

package tests

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// badInput is one thing that can be wrong, and what the one line that says so
// has to name.
type badInput struct {
	name string
	// input returns the plugin's parameters, given a volume that would work
	// and the secrets file that lets one in.
	input func(t *testing.T, c *harness.Cloud, volume, secrets string) []string
	env   []string
	words []string // each stands in the line; VOLUME and SECRETS are the volume and the file
}

// section makes an input that has a secrets file of its own.
func section(f func(c *harness.Cloud, volume string) string) func(*testing.T, *harness.Cloud, string, string) []string {
	return func(t *testing.T, c *harness.Cloud, volume, secrets string) []string {
		harness.WriteFile(t, secrets, f(c, volume))
		return []string{volume, "secrets=" + secrets}
	}
}

// params makes an input that has further parameters.
func params(more ...string) func(*testing.T, *harness.Cloud, string, string) []string {
	return func(_ *testing.T, _ *harness.Cloud, volume, secrets string) []string {
		return append([]string{volume, "secrets=" + secrets}, more...)
	}
}

// meta makes an input whose container has other metadata.
func meta(key, value string) func(*testing.T, *harness.Cloud, string, string) []string {
	return func(t *testing.T, c *harness.Cloud, volume, secrets string) []string {
		c.Account(t).SetMeta(t, volume, key, value)
		return []string{volume, "secrets=" + secrets}
	}
}

var badInputs = []badInput{
	// Parameters.
	{name: "unknown-parameter", input: params("colour=blue"), words: []string{"colour"}},
	{name: "unknown-parameter-misspelt", input: params("conections=4"), words: []string{"conections"}},
	{name: "container-twice", input: params("container=other"), words: []string{"container"}},
	{name: "connections-zero", input: params("connections=0"), words: []string{"connections", "0"}},
	{name: "connections-negative", input: params("connections=-1"), words: []string{"connections", "-1"}},
	{name: "connections-word", input: params("connections=many"), words: []string{"connections", "many"}},
	{name: "connections-huge", input: params("connections=99999999999999999999"), words: []string{"connections"}},
	{name: "metrics-empty-path", input: params("metrics=unix:"), words: []string{"metrics=unix:", "the socket's path is missing"}},
	{name: "metrics-long-path", input: params("metrics=unix:/tmp/" + strings.Repeat("x", 120)), words: []string{"at most 107 bytes, and this one has 125"}},
	{name: "metrics-port", input: params("metrics=127.0.0.1:99999"), words: []string{"there is no port 99999"}},
	{name: "timeout-word", input: params("timeout=x"), words: []string{"timeout", "x"}},
	{name: "timeout-zero", input: params("timeout=0"), words: []string{"timeout"}},
	{name: "timeout-negative", input: params("timeout=-5"), words: []string{"timeout", "-5"}},
	{name: "keystone-auth-word", input: params("keystone-auth=perhaps"), words: []string{"keystone-auth", "perhaps"}},
	{name: "keystone-endpoint-word", input: params("keystone-auth=1", "keystone-endpoint=private"), words: []string{"keystone-endpoint", "private"}},
	{name: "keystone-region-empty", input: params("keystone-region="), words: []string{"keystone-region", "empty"}},
	{name: "cacert-missing", input: params("cacert=/nonexistent/ca.pem"), words: []string{"/nonexistent/ca.pem"}},
	{name: "cacert-no-certificate", words: []string{"cacert", "SECRETS"},
		input: func(_ *testing.T, _ *harness.Cloud, volume, secrets string) []string {
			return []string{volume, "secrets=" + secrets, "cacert=" + secrets}
		}},
	{name: "authurl-no-url", words: []string{"auth", "URL"},
		input: func(t *testing.T, c *harness.Cloud, volume, secrets string) []string {
			harness.WriteFile(t, secrets, harness.Section(volume, "username = "+c.User, "password = "+c.Key))
			return []string{volume, "secrets=" + secrets, "authurl=somewhere"}
		}},
	{name: "container-empty", words: []string{"container"},
		input: func(_ *testing.T, _ *harness.Cloud, _, secrets string) []string {
			return []string{"container=", "secrets=" + secrets}
		}},
	{name: "container-slash", words: []string{"a/b", "slash"},
		input: func(_ *testing.T, _ *harness.Cloud, _, secrets string) []string {
			return []string{"a/b", "secrets=" + secrets}
		}},

	// The secrets file.
	{name: "secrets-missing", words: []string{"/nonexistent/secrets.conf", "no such file"},
		input: func(_ *testing.T, _ *harness.Cloud, volume, _ string) []string {
			return []string{volume, "secrets=/nonexistent/secrets.conf"}
		}},
	{name: "secrets-large", words: []string{"SECRETS", "larger than 16 MiB"}, // a disk's image by mistake
		input: func(t *testing.T, _ *harness.Cloud, volume, secrets string) []string {
			harness.WriteFile(t, secrets, "")
			if err := os.Truncate(secrets, 1<<40); err != nil {
				t.Fatal(err)
			}
			return []string{volume, "secrets=" + secrets}
		}},
	{name: "secrets-directory", words: []string{"/etc", "directory"},
		input: func(_ *testing.T, _ *harness.Cloud, volume, _ string) []string {
			return []string{volume, "secrets=/etc"}
		}},
	{name: "secrets-empty-without-container", words: []string{"SECRETS"},
		input: func(t *testing.T, _ *harness.Cloud, _, secrets string) []string {
			harness.WriteFile(t, secrets, "")
			return []string{"secrets=" + secrets}
		}},
	{name: "wrong-section", words: []string{"VOLUME", "SECRETS"}, input: section(
		func(c *harness.Cloud, volume string) string { return c.Section("another") })},
	{name: "no-ini", words: []string{"SECRETS"}, input: section(
		func(_ *harness.Cloud, _ string) string { return "this is no INI file\n" })},
	{name: "unknown-key", words: []string{"SECRETS", "VOLUME", "pasword"}, input: section(
		func(c *harness.Cloud, volume string) string {
			return harness.Section(volume, "authurl = "+c.AuthURL, "username = "+c.User, "pasword = "+c.Key)
		})},
	{name: "password-missing", words: []string{"SECRETS", "VOLUME", "password"}, input: section(
		func(c *harness.Cloud, volume string) string {
			return harness.Section(volume, "authurl = "+c.AuthURL, "username = "+c.User)
		})},
	{name: "username-missing", words: []string{"SECRETS", "VOLUME", "username"}, input: section(
		func(c *harness.Cloud, volume string) string {
			return harness.Section(volume, "authurl = "+c.AuthURL, "password = "+c.Key)
		})},
	{name: "authurl-missing", words: []string{"SECRETS", "VOLUME", "authurl"}, input: section(
		func(c *harness.Cloud, volume string) string {
			return harness.Section(volume, "username = "+c.User, "password = "+c.Key)
		})},
	{name: "authurl-bad", words: []string{"SECRETS", "VOLUME", "authurl"}, input: section(
		func(c *harness.Cloud, volume string) string {
			return harness.Section(volume, "authurl = ftp://example", "username = "+c.User, "password = "+c.Key)
		})},
	{name: "read-only-bad", words: []string{"SECRETS", "VOLUME", "read-only", "perhaps"}, input: section(
		func(c *harness.Cloud, volume string) string { return c.Section(volume, "read-only = perhaps") })},
	{name: "key-cache-bad", words: []string{"SECRETS:5: [VOLUME] cache", "64MB"}, input: section(
		func(c *harness.Cloud, volume string) string { return c.Section(volume, "cache = 64MB") })},
	{name: "key-cache-small", words: []string{"SECRETS:5: [VOLUME] cache", "1000", "65536"}, input: section(
		func(c *harness.Cloud, volume string) string { return c.Section(volume, "cache = 1000") })},
	{name: "key-default-lease-bad", words: []string{"SECRETS:2: [DEFAULT] lease", "3"}, input: section(
		func(c *harness.Cloud, volume string) string {
			return harness.Section("DEFAULT", "lease = 3") + c.Section(volume)
		})},
	{name: "key-of-another-section-bad", words: []string{"SECRETS", "[another] connections", "many"}, input: section(
		func(c *harness.Cloud, volume string) string {
			return c.Section(volume) + c.Section("another", "connections = many")
		})},
	{name: "endpoint-type-bad", words: []string{"SECRETS", "VOLUME", "endpoint-type"}, input: section(
		func(c *harness.Cloud, volume string) string { return c.Section(volume, "endpoint-type = secret") })},
	{name: "key-cacert-missing", words: []string{"VOLUME", "certificate", "/nonexistent/ca.pem"}, input: section(
		func(c *harness.Cloud, volume string) string { return c.Section(volume, "cacert = /nonexistent/ca.pem") })},
	{name: "appcred-without-secret", words: []string{"SECRETS", "VOLUME", "application-credential-secret"}, input: section(
		func(_ *harness.Cloud, volume string) string {
			return harness.Section(volume, "authurl = http://127.0.0.1:1/v3", "application-credential-id = x")
		})},
	{name: "password-and-appcred", words: []string{"SECRETS", "application-credential-id"}, input: section(
		func(c *harness.Cloud, volume string) string {
			return c.Section(volume, "application-credential-id = x", "application-credential-secret = y")
		})},

	// Swift.
	{name: "wrong-password", words: []string{"VOLUME"}, input: section(
		func(c *harness.Cloud, volume string) string {
			return harness.Section(volume, "authurl = "+c.AuthURL, "username = "+c.User, "password = not-the-one-secret")
		})},
	{name: "wrong-user", words: []string{"VOLUME"}, input: section(
		func(c *harness.Cloud, volume string) string {
			return harness.Section(volume, "authurl = "+c.AuthURL, "username = test:nobody", "password = "+c.Key)
		})},
	{name: "wrong-path", words: []string{"VOLUME"}, input: section(
		func(c *harness.Cloud, volume string) string {
			return harness.Section(volume, "authurl = "+strings.TrimSuffix(c.AuthURL, "/auth/v1.0")+"/nothing/v1.0",
				"username = "+c.User, "password = "+c.Key)
		})},
	{name: "unreachable", words: []string{"VOLUME", "refused"}, input: func(t *testing.T, c *harness.Cloud, volume, secrets string) []string {
		harness.WriteFile(t, secrets, harness.Section(volume, fmt.Sprintf("authurl = http://127.0.0.1:%d/auth/v1.0", harness.FreePort(t)),
			"username = "+c.User, "password = "+c.Key))
		return []string{volume, "secrets=" + secrets, "timeout=2"}
	}},
	{name: "unknown-host", words: []string{"VOLUME", "swift.invalid"}, input: func(t *testing.T, c *harness.Cloud, volume, secrets string) []string {
		harness.WriteFile(t, secrets, harness.Section(volume, "authurl = http://swift.invalid/auth/v1.0",
			"username = "+c.User, "password = "+c.Key))
		return []string{volume, "secrets=" + secrets, "timeout=2"}
	}},
	{name: "silent-server", words: []string{"VOLUME"}, input: silent},
	{name: "container-missing", words: []string{"VOLUME"}, input: func(t *testing.T, c *harness.Cloud, volume, secrets string) []string {
		c.Account(t).Remove(t, volume)
		return []string{volume, "secrets=" + secrets}
	}},
	{name: "not-set-up", words: []string{"VOLUME", "set up"}, input: func(t *testing.T, c *harness.Cloud, volume, secrets string) []string {
		c.Account(t).Remove(t, volume)
		c.Account(t).Create(t, volume, nil)
		return []string{volume, "secrets=" + secrets}
	}},
	{name: "locked", words: []string{"VOLUME", "lock", "192.0.2.7"}, input: meta("Client", "192.0.2.7:51120@1700000000")},
	{name: "locked-by-operator", words: []string{"VOLUME", "lock", "ctl"}, input: meta("Client", "ctl@1700000000")},
	{name: "object-size-word", words: []string{"VOLUME", "object-size", "big"}, input: meta("Object-Size", "big")},
	{name: "object-size-zero", words: []string{"VOLUME", "object-size", "0"}, input: meta("Object-Size", "0")},
	{name: "object-size-negative", words: []string{"VOLUME", "object-size", "-65536"}, input: meta("Object-Size", "-65536")},
	{name: "object-size-huge", words: []string{"VOLUME", "object-size"}, input: meta("Object-Size", "9223372036854775807")},
	{name: "objects-word", words: []string{"VOLUME", "objects", "some"}, input: meta("Objects", "some")},
	{name: "objects-zero", words: []string{"VOLUME", "objects", "0"}, input: meta("Objects", "0")},
	{name: "objects-overflow", words: []string{"VOLUME", "objects"}, input: meta("Objects", "9223372036854775807")},
	{name: "objects-missing", words: []string{"VOLUME", "set up"}, input: meta("Objects", "")},
	{name: "version-two-whole", words: []string{"VOLUME", "version 2 of the format"}, input: func(t *testing.T, c *harness.Cloud, volume, secrets string) []string {
		for key, value := range map[string]string{"Version": "2", "Uuid": "000102030405060708090a0b0c0d0e0f", "Size": "1048576", "Objects": "", "Object-Size": ""} {
			c.Account(t).SetMeta(t, volume, key, value)
		}
		return []string{volume, "secrets=" + secrets}
	}},
	{name: "version-two-no-lease", words: []string{"VOLUME", "version 2 of the format needs a lease", "lease=0"}, input: func(t *testing.T, c *harness.Cloud, volume, secrets string) []string {
		for key, value := range map[string]string{"Version": "2", "Uuid": "000102030405060708090a0b0c0d0e0f", "Size": "1048576", "Root": "00000000-00000001", "Objects": "", "Object-Size": ""} {
			c.Account(t).SetMeta(t, volume, key, value)
		}
		return []string{volume, "secrets=" + secrets, "lease=0"}
	}},
	{name: "version-two", words: []string{"VOLUME", "version", "2"}, input: meta("Version", "2")},

	// The environment.
	{name: "environment-no-url", words: []string{"ST_AUTH"}, env: []string{"ST_AUTH=nowhere", "ST_USER=u", "ST_KEY=k"},
		input: section(func(c *harness.Cloud, _ string) string { return c.Section("another") })},
}

// silent is a server that takes connections and never answers.
func silent(t *testing.T, c *harness.Cloud, volume, secrets string) []string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
		}
	}()
	harness.WriteFile(t, secrets, harness.Section(volume, "authurl = http://"+l.Addr().String()+"/auth/v1.0",
		"username = "+c.User, "password = "+c.Key))
	return []string{volume, "secrets=" + secrets, "timeout=2"}
}

// TestBadInput gives nbdkit, which would go into the background, one thing
// that is wrong. It ends with a status that is not zero and one line that
// names what is wrong, without a password in it.
func TestBadInput(t *testing.T) {
	for _, bad := range badInputs {
		t.Run(bad.name, func(t *testing.T) {
			t.Parallel()
			bad.run(t, harness.Dev(t))
		})
	}
}

func (bad badInput) run(t *testing.T, c *harness.Cloud) {
	volume, _, parameters := volume(t, c)
	secrets := strings.TrimPrefix(parameters[1], "secrets=")
	o := harness.Options{Mode: harness.Background, Params: bad.input(t, c, volume, secrets), Env: bad.env}
	f := harness.Fail(t, o)
	words := make([]string, len(bad.words))
	for i, w := range bad.words {
		words[i] = strings.NewReplacer("VOLUME", volume, "SECRETS", secrets).Replace(w)
	}
	f.Want(t, words...)
	if strings.Contains(f.Stderr, "not-the-one-secret") {
		t.Errorf("a password is on standard error:\n%s", f.Stderr)
	}
}

// TestBadInputKeepsMark checks that whoever finds the volume locked leaves the
// holder's mark as it was.
func TestBadInputKeepsMark(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	const holder = "192.0.2.7:51120@1700000000"
	account.SetMeta(t, name, "Client", holder)
	harness.Fail(t, harness.Options{Mode: harness.Background, Params: params}).Want(t, name, "192.0.2.7")
	if got := account.Holder(t, name); got != holder {
		t.Errorf("the mark is %q after a refused start, was %q", got, holder)
	}
}

// TestBadInputLockedMeanwhile locks the volume between nbdkit's start and the
// first client, who is then turned away; when the lock goes, clients come in.
func TestBadInputLockedMeanwhile(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	n := serve(t, params...)
	account.SetMeta(t, name, "Client", "ctl@1700000000")
	if r := harness.TryNbdsh(t, n.URI, "pass"); r.Status == 0 {
		t.Error("a client was let in on a locked volume")
	}
	if got := account.Holder(t, name); got != "ctl@1700000000" {
		t.Errorf("the operator's lock became %q", got)
	}
	account.SetMeta(t, name, "Client", "")
	harness.Nbdsh(t, n.URI, `h.pwrite(b"x", 0)`)
	n.Stop(t)
	unlocked(t, account, name)
}

// TestBadInputWorldReadable checks the warning about a secrets file that all
// can read: a line, and nbdkit serves all the same.
func TestBadInputWorldReadable(t *testing.T) {
	t.Parallel()
	_, _, params := volume(t, harness.Dev(t))
	secrets := strings.TrimPrefix(params[1], "secrets=")
	for mode, want := range map[os.FileMode]bool{0o644: true, 0o600: false, 0o640: false} {
		if err := os.Chmod(secrets, mode); err != nil {
			t.Fatal(err)
		}
		args := append([]string{"-U", "-", harness.Plugin(t)}, params...)
		r := harness.Run(t, "nbdkit", append(args, "--run", `nbdinfo --size "$uri"`)...)
		if r.Status != 0 {
			t.Errorf("mode %o: exit status %d\n%s", mode, r.Status, r.Stderr)
		}
		got := strings.Contains(r.Stderr, filepath.Base(secrets)) && strings.Contains(r.Stderr, "readable")
		if got != want {
			t.Errorf("mode %o: warned: %v, want %v\n%s", mode, got, want, r.Stderr)
		}
		if n := strings.Count(r.Stderr, "readable"); want && n != 1 {
			t.Errorf("mode %o: the warning stands %d times:\n%s", mode, n, r.Stderr)
		}
	}
}
