// SPDX-License-Identifier: MIT

package harness

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// Cloud is a Swift that runs, with an account in it.
type Cloud struct {
	AuthURL  string
	User     string
	Key      string
	Keystone *Keystone // nil where there is none
}

// Keystone has the URL and the credentials for the real Swift's Keystone.
type Keystone struct {
	AuthURL                  string
	User, Password           string
	Project, Domain, Region  string
	AppCredID, AppCredSecret string
}

var (
	devOnce sync.Once
	dev     *Cloud
	devErr  error

	realOnce sync.Once
	realOne  *Cloud
	realErr  error

	rgwOnce sync.Once
	rgwOne  *Cloud
	rgwErr  error
)

// Dev returns the embedded Swift that the tests of a package share.
func Dev(t testing.TB) *Cloud {
	t.Helper()
	program := Built(t, "swiftdev")
	devOnce.Do(func() {
		var p *Process
		dev, p, devErr = startDev(program)
		if p != nil {
			atEnd(p.kill)
		}
	})
	if devErr != nil {
		t.Fatal(devErr)
	}
	return dev
}

// OwnDev starts an embedded Swift for one test, with further options.
func OwnDev(t testing.TB, args ...string) (*Cloud, *Process) {
	t.Helper()
	c, p, err := startDev(Built(t, "swiftdev"), args...)
	if p != nil {
		t.Cleanup(func() { p.end(t) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return c, p
}

// authLine is what swiftdev prints once it listens.
var authLine = regexp.MustCompile(`(?m)^(http://127\.0\.0\.1:[0-9]+/auth/v1\.0)$`)

func startDev(program string, args ...string) (*Cloud, *Process, error) {
	// If --listen is given twice, the last one counts.
	p, err := start(exec.Command(program, append([]string{"--listen", "127.0.0.1:0"}, args...)...))
	if err != nil {
		return nil, nil, err
	}
	var m []string
	up := within(Patience, func() bool {
		m = authLine.FindStringSubmatch(p.Output())
		return m != nil || !p.Running()
	})
	if !up || m == nil {
		return nil, p, fmt.Errorf("swiftdev did not come up:\n%s", p.Output())
	}
	return &Cloud{AuthURL: m[1], User: "test:tester", Key: "testing"}, p, nil
}

// Real returns the real Swift: the one that the environment names, as
// `scripts/saio.sh env` prints it, or else one that is started for the tests of
// this package, with Keystone.
func Real(t testing.TB) *Cloud {
	t.Helper()
	script := filepath.Join(Root(t), "scripts", "saio.sh")
	realOnce.Do(func() { realOne, realErr = realCloud(script) })
	if realErr != nil {
		t.Fatal(realErr)
	}
	return realOne
}

func realCloud(script string) (*Cloud, error) {
	env := os.Getenv
	if env("SWIFTNBD_TEST_AUTH") == "" {
		dir, err := os.MkdirTemp("", "swiftnbd-saio")
		if err != nil {
			return nil, err
		}
		vars, err := startReal(script, dir)
		if err != nil {
			os.RemoveAll(dir)
			return nil, err
		}
		env = func(name string) string { return vars[name] }
	}
	c := &Cloud{AuthURL: env("SWIFTNBD_TEST_AUTH"), User: env("SWIFTNBD_TEST_USER"), Key: env("SWIFTNBD_TEST_KEY")}
	if url := env("SWIFTNBD_TEST_KEYSTONE"); url != "" {
		c.Keystone = &Keystone{
			AuthURL: url, User: "tester", Password: "testing", Project: "test", Domain: "Default", Region: "RegionOne",
			AppCredID: env("SWIFTNBD_TEST_APPCRED_ID"), AppCredSecret: env("SWIFTNBD_TEST_APPCRED_SECRET"),
		}
	}
	return c, nil
}

// startReal starts a real Swift in dir and returns the variables that
// `saio.sh env` exports.
func startReal(script, dir string) (map[string]string, error) {
	s := saio{script, dir}
	if _, err := s.run(nil, "up", "--keystone"); err != nil {
		return nil, err
	}
	atEnd(func() { s.run(nil, "wipe") })
	return s.vars(nil)
}

// RGW returns Ceph's Swift gateway: the one that the environment names, as
// `scripts/rgw.sh env` prints it, or else one that is started for the tests of
// this package.
func RGW(t testing.TB) *Cloud {
	t.Helper()
	script := filepath.Join(Root(t), "scripts", "rgw.sh")
	rgwOnce.Do(func() { rgwOne, rgwErr = rgwCloud(script) })
	if rgwErr != nil {
		t.Fatal(rgwErr)
	}
	return rgwOne
}

func rgwCloud(script string) (*Cloud, error) {
	env := os.Getenv
	if env("SWIFTNBD_TEST_RGW_AUTH") == "" {
		dir, err := os.MkdirTemp("", "swiftnbd-rgw")
		if err != nil {
			return nil, err
		}
		s := saio{script, dir}
		settings := []string{"RGW_DIR=" + dir}
		atEnd(func() { s.run(settings, "wipe") })
		if _, err := s.run(settings, "up"); err != nil {
			return nil, err
		}
		vars, err := s.vars(settings)
		if err != nil {
			return nil, err
		}
		env = func(name string) string { return vars[name] }
	}
	return &Cloud{AuthURL: env("SWIFTNBD_TEST_RGW_AUTH"), User: env("SWIFTNBD_TEST_RGW_USER"), Key: env("SWIFTNBD_TEST_RGW_KEY")}, nil
}

// saio runs scripts/saio.sh, or rgw.sh, for one directory.
type saio struct{ script, dir string }

// run runs a command of the script with further settings, and returns what it
// printed.
func (s saio) run(settings []string, args ...string) (string, error) {
	cmd := exec.Command(s.script, args...)
	cmd.Env = append(os.Environ(), "SAIO_DIR="+s.dir, "SAIO_FSYNC=0")
	cmd.Env = append(cmd.Env, settings...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(s.script), strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// vars returns the variables that `saio.sh env` exports.
func (s saio) vars(settings []string) (map[string]string, error) {
	out, err := s.run(settings, "env")
	if err != nil {
		return nil, err
	}
	vars := make(map[string]string)
	for line := range strings.Lines(out) {
		if words, ok := strings.CutPrefix(strings.TrimSpace(line), "export "); ok {
			for _, kv := range strings.Fields(words) {
				k, v, _ := strings.Cut(kv, "=")
				vars[k] = v
			}
		}
	}
	return vars, nil
}

// Section returns a section of a secrets file for a container of the cloud,
// with v1 authentication and further "key = value" lines.
func (c *Cloud) Section(container string, lines ...string) string {
	return Section(container, append([]string{
		"authurl = " + c.AuthURL, "username = " + c.User, "password = " + c.Key}, lines...)...)
}

// Section returns a section of a secrets file.
func Section(name string, lines ...string) string {
	return "[" + name + "]\n" + strings.Join(lines, "\n") + "\n\n"
}

// Secrets writes a secrets file, mode 0600, of these sections.
func Secrets(t testing.TB, sections ...string) string {
	t.Helper()
	return WriteFile(t, filepath.Join(TempDir(t), "secrets.conf"), strings.Join(sections, ""))
}

// PasswordSection is Section with Keystone's user and password.
func (k *Keystone) PasswordSection(container string, lines ...string) string {
	return Section(container, append([]string{
		"authurl = " + k.AuthURL, "username = " + k.User, "password = " + k.Password, "project = " + k.Project,
		"user-domain = " + k.Domain, "project-domain = " + k.Domain, "region = " + k.Region}, lines...)...)
}

// AppCredSection is Section with Keystone's application credential.
func (k *Keystone) AppCredSection(container string, lines ...string) string {
	return Section(container, append([]string{
		"authurl = " + k.AuthURL, "application-credential-id = " + k.AppCredID,
		"application-credential-secret = " + k.AppCredSecret}, lines...)...)
}
