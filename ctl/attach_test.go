// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"swiftnbd/internal/cmdline"
	"swiftnbd/internal/config"
	"swiftnbd/internal/nbd"
	"swiftnbd/internal/nbd/bridge"
)

// TestAttachLogin has the nbdkit of attach log in as swiftnbd-ctl does: each of the
// options of the login is a parameter of the plugin.
func TestAttachLogin(t *testing.T) {
	t.Parallel()
	tool := &tool{
		login: &cmdline.Login{Secrets: "/s", AuthURL: "http://a", Cloud: "c", Keystone: true, KeystoneOptions: config.KeystoneOptions{
			RegionName: "R", TenantSeparator: ":", ServiceType: "object-store", EndpointType: "publicURL",
		}},
		cacert: "/ca", storageURL: "http://s", region: "r", endpoint: "internal", cert: "/cert", key: "/key", insecure: true,
	}
	want := []string{
		"authurl=http://a", "cacert=/ca", "cert=/cert", "cloud=c", "endpoint-type=internal", "insecure=1", "key=/key",
		"keystone-auth=1", "keystone-endpoint=publicURL", "keystone-region=R", "keystone-separator=:", "keystone-service=object-store",
		"region=r", "secrets=/s", "storage-url=http://s",
	}
	got := tool.pluginLogin()
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the plugin's parameters are\n%q, want\n%q", got, want)
	}
}

// TestPersistNotStarted attaches with --persist a disk whose nbdkit does not start, as
// with a name that is wrong: attach ends, and does not start it again for ever.
func TestPersistNotStarted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	socket := filepath.Join(t.TempDir(), "socket")
	s := &server{disk: "d@s", argv: []string{"sh", "-c", "exit 3"}, target: nbd.Target{Network: "unix", Address: socket, Export: "d@s"}}
	ended := make(chan error, 1)
	go func() { ended <- s.keepRunning(ctx, nil, func(string, ...any) {}) }()
	_, err := firstBridge(ctx, s, ended, bridge.Options{
		Dial: func(ctx context.Context) (net.Conn, nbd.Export, error) { return nbd.Dial(ctx, s.target) },
	})
	if err == nil || !strings.Contains(err.Error(), "nbdkit does not start: exit status 3; if d@s is a snapshot") {
		t.Errorf("the error is %v", err)
	}
}

// TestPersistKilled kills attach --persist: the nbdkit that it has started is told to
// end, and does not stay for ever without a client.
func TestPersistKilled(t *testing.T) {
	const variable = "SWIFTNBD_TEST_PERSIST"
	if file := os.Getenv(variable); file != "" { // we are attach
		s := &server{argv: []string{"sh", "-c", "trap 'echo told >>" + file + "; exit' TERM; echo $$ >" + file + "; while :; do sleep 0.1; done"}}
		_ = s.keepRunning(t.Context(), nil, t.Logf)
		return
	}
	t.Parallel()
	file := filepath.Join(t.TempDir(), "pid")
	cmd := exec.Command(os.Args[0], "-test.run=^TestPersistKilled$")
	cmd.Env = append(os.Environ(), variable+"="+file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	until := func(what string, is func(words []string) bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			b, _ := os.ReadFile(file)
			if is(strings.Fields(string(b))) {
				return
			}
			if time.Now().After(end) {
				if pid != 0 {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
				t.Fatal(what)
			}
		}
	}
	until("nbdkit does not start", func(words []string) bool {
		if len(words) == 1 {
			pid, _ = strconv.Atoi(words[0])
		}
		return pid != 0
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); !errors.As(err, new(*exec.ExitError)) {
		t.Error(err)
	}
	until("nbdkit stays", func(words []string) bool { return slices.Contains(words, "told") })
}
