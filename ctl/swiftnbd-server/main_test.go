// SPDX-License-Identifier: MIT

package main

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"swiftnbd/internal/cmdline"
)

// TestSyslog sends messages to system loggers as 0.11 did: the facility is
// local0, the level the message's, the first address that answers is taken, and
// the network only where --syslog was given.
func TestSyslog(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	local, err := net.ListenPacket("unixgram", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	remote, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	before := syslogAddresses
	defer func() { syslogAddresses = before }()

	for _, c := range []struct {
		name      string
		options   options
		addresses [][2]string
		hears     net.PacketConn // nil: nobody
		err       bool
	}{
		{name: "local", options: options{syslog: true}, addresses: [][2]string{{"unixgram", socket}, {"udp", remote.LocalAddr().String()}}, hears: local},
		{name: "network", options: options{syslog: true}, addresses: [][2]string{{"unixgram", socket + "no"}, {"udp", remote.LocalAddr().String()}}, hears: remote},
		{name: "before the file", options: options{syslog: true, logFile: socket + "file"}, addresses: [][2]string{{"unixgram", socket}}, hears: local},
		{name: "none", options: options{syslog: true}, addresses: [][2]string{{"unixgram", socket + "no"}}, err: true},
		{name: "not asked for", addresses: [][2]string{{"unixgram", socket}}, hears: local},
		{name: "not asked for, network", addresses: [][2]string{{"unixgram", socket + "no"}, {"udp", remote.LocalAddr().String()}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			syslogAddresses = c.addresses
			log, err := openLog(&c.options)
			if (err != nil) != c.err {
				t.Fatalf("openLog: %v", err)
			}
			if err != nil {
				return
			}
			defer log.close()
			log.begun("begun") // nothing on standard error
			log.relay(strings.NewReader("nbdkit: swift: error: bad\nnbdkit: debug: small\nnbdkit: swift: warning: careful\n"))
			if _, err := os.Stat(socket + "file"); err == nil {
				t.Error("there is a log file as well")
			}
			if c.hears == nil {
				if log.syslog != nil {
					t.Error("somebody listens")
				}
				return
			}
			// local0 is 16: 16*8 + the severity, of info, error, debug, warning.
			form := regexp.MustCompile(`^<(\d+)>.* swiftnbd\[\d+\]: (.*)\n?$`)
			var got []string
			for range 4 {
				data := make([]byte, 4096)
				n, _, err := c.hears.ReadFrom(data)
				if err != nil {
					t.Fatal(err)
				}
				m := form.FindSubmatch(data[:n])
				if m == nil {
					t.Fatalf("the logger got %q", data[:n])
				}
				got = append(got, string(m[1])+" "+string(m[2]))
			}
			want := []string{"134 INFO: begun", "131 ERROR: nbdkit: swift: error: bad", "135 DEBUG: nbdkit: debug: small", "132 WARNING: nbdkit: swift: warning: careful"}
			if !slices.Equal(got, want) {
				t.Errorf("the logger got\n%q, want\n%q", got, want)
			}
		})
	}
}

// TestNbdkitArgs holds what the options become against nbdkit's command line.
func TestNbdkitArgs(t *testing.T) {
	t.Setenv("SWIFTNBD_PLUGIN", "")
	secrets := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(secrets, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"", "-f -p 10809 -i 127.0.0.1 swift secrets=S"},
		{"-b 0.0.0.0 -p10811 -c 128 -fv", "-f -p 10811 -i 0.0.0.0 -v -D swift.store=1 -D swift.lock=1 swift secrets=S cache=128M"},
		{"--bind-a=:: --bind-p=1 --cache=1 --verb", "-f -p 1 -i :: -v -D swift.store=1 -D swift.lock=1 swift secrets=S cache=1M"},
		{"--auth http://h/v1.0", "-f -p 10809 -i 127.0.0.1 swift secrets=S authurl=http://h/v1.0"},
		{"--cloud mine", "-f -p 10809 -i 127.0.0.1 swift secrets=S cloud=mine"},
		{"-k", "-f -p 10809 -i 127.0.0.1 swift secrets=S keystone-auth=1 keystone-separator=. keystone-service=object-store keystone-endpoint=publicURL"},
		{"-a http://k/v2.0 -k --keystone-r R --keystone-sep : --keystone-serv swift --keystone-e internalURL",
			"-f -p 10809 -i 127.0.0.1 swift secrets=S authurl=http://k/v2.0 keystone-auth=1 keystone-region=R keystone-separator=: keystone-service=swift keystone-endpoint=internalURL"},
	} {
		var o options
		root := command(&o, func() {})
		args, err := cmdline.Expand(root, append(strings.Fields(c.args), "--secrets", secrets))
		if err == nil {
			root.SetArgs(args)
			err = root.Execute()
		}
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		if got := strings.Join(o.nbdkitArgs(), " "); got != strings.ReplaceAll(c.want, "=S", "="+secrets) {
			t.Errorf("%s:\ngot  %s\nwant %s", c.args, got, c.want)
		}
	}
}

// TestOldBeginnings cuts each option of swiftnbd 0.11's server short, as far as
// only one of them begins like it.
func TestOldBeginnings(t *testing.T) {
	old := strings.Fields("help version secrets auth-url bind-address bind-port cache-limit log-file syslog foreground pid-file verbose " +
		"keystone-auth keystone-separator keystone-service keystone-endpoint keystone-region")
	for _, name := range old {
		for i := 1; i <= len(name); i++ {
			others := slices.DeleteFunc(slices.Clone(old), func(o string) bool { return o == name || !strings.HasPrefix(o, name[:i]) })
			if len(others) > 0 || name[:i] == "keystone" {
				continue
			}
			got, err := cmdline.Expand(command(new(options), func() {}), []string{"--" + name[:i] + "=x"})
			if err != nil || len(got) != 1 || got[0] != "--"+name+"=x" {
				t.Errorf("--%s: %q, %v, want --%s", name[:i], got, err, name)
			}
		}
	}
}

// TestPidFileIsPipe: another user may have made a pipe where the pid file belongs, in
// the temporary directory. It is an error, and not waited for.
func TestPidFileIsPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	// So much is read of a file. An empty pipe would be waited for.
	writer, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if _, err := writer.WriteString(strings.Repeat("1", 64)); err != nil {
		t.Fatal(err)
	}
	p, err := lockPidFile(path)
	if err == nil || !strings.Contains(err.Error(), "not a file") {
		t.Errorf("the pid file is %v, the error %v", p, err)
	}
	if n, err := unix.IoctlGetInt(int(writer.Fd()), unix.TIOCINQ); err != nil || n != 64 {
		t.Errorf("%d bytes are left in the pipe, %v: it was read", n, err)
	}
}
