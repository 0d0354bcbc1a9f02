// SPDX-License-Identifier: MIT

// Command swiftnbd-server serves the disks of the secrets file. It has the
// command line of swiftnbd 0.11's server, so that old unit files and scripts
// still work. It starts nbdkit with the swift plugin, stays beside it, and ends
// with it. It keeps the pid file, writes nbdkit's messages to the chosen log,
// and passes signals on.
//
// In the background there are three processes. The first one, which the user
// has called, starts the second one in a session of its own. It ends when the
// second one says that nbdkit serves. The second one is the parent of nbdkit.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/spf13/cobra"

	"swiftnbd/internal/cmdline"
	"swiftnbd/internal/version"
)

// program is the name that messages begin with.
const program = "swiftnbd-server"

// The exit statuses; nbdkit's own is passed on.
const (
	exitFailed = 1
	exitUsage  = 2
)

// maxCache is the largest cache that can be asked for, MiB: 16 TiB. It is there
// for the typing error that has some digits too many.
const maxCache = 16 << 20

// stageVariable is set in the environment of the process that goes into the
// background.
const stageVariable = "SWIFTNBD_SERVER_BACKGROUND"

func init() {
	// nbdkit gets a signal when the thread that has started it ends. This must
	// be the program's first thread, which ends with the program.
	runtime.LockOSThread()
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// options are the options of the command line.
type options struct {
	login       *cmdline.Login
	bindAddress string
	bindPort    int
	cacheLimit  int // MiB; 0: not given
	logFile     string
	syslog      bool
	foreground  bool
	pidFile     string
	verbose     bool
}

// run is the whole program: it returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	fault := func(err error) { fmt.Fprintf(stderr, "%s: %v\n", program, err) }
	var o options
	serve := false
	root := command(&o, func() { serve = true })
	root.SetOut(stdout)
	root.SetErr(stderr)
	args, err := cmdline.Expand(root, args)
	if err == nil {
		root.SetArgs(args)
		err = root.Execute()
	}
	switch {
	case err != nil:
		fault(err)
		fmt.Fprintf(stderr, "Try '%s --help'.\n", program)
		return exitUsage
	case !serve: // --help, --version
		return 0
	}
	if err := o.absolute(); err != nil {
		fault(err)
		return exitFailed
	}
	var status int
	switch {
	case os.Getenv(stageVariable) != "":
		status, err = background(&o)
	case o.foreground:
		status, err = supervise(&o, os.Stderr, func() {})
	default:
		status, err = launch()
	}
	if err != nil {
		fault(err)
	}
	return status
}

// command returns the command line. It calls ready if the disks are to be
// served.
func command(o *options, ready func()) *cobra.Command {
	root := &cobra.Command{
		Use:   program,
		Short: "Serve the disks of the secrets file over NBD, with the command line of swiftnbd 0.11",
		Long: `swiftnbd-server serves all disks of the secrets file over NBD. It takes the
options of swiftnbd 0.11's server, and starts nbdkit with the swift plugin.`,
		Version:       version.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%q is one argument too many: all containers of the secrets file are served (one alone: nbdkit swift %[1]s)", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(cmd); err != nil {
				return err
			}
			ready()
			return nil
		},
		// "completion bash" and the like write the completions that are installed.
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetFlagErrorFunc(cmdline.FlagError)
	root.SetVersionTemplate(program + " {{.Version}}\n")
	f := root.Flags()
	o.login = cmdline.AddLogin(f)
	f.StringVarP(&o.bindAddress, "bind-address", "b", "127.0.0.1", "listen on this `ADDRESS`")
	cmdline.IntVarP(f, &o.bindPort, "bind-port", "p", 10809, 1, 65535, "listen on this `PORT`")
	cmdline.IntVarP(f, &o.cacheLimit, "cache-limit", "c", 0, 1, maxCache, "memory for the cache of each disk, in `MB`. If not given: 64, or more for large objects")
	f.StringVarP(&o.logFile, "log-file", "l", "", "append messages to this `FILE`")
	f.BoolVar(&o.syslog, "syslog", false, "log to the system logger (local0)")
	f.BoolVarP(&o.foreground, "foreground", "f", false, "stay in the foreground")
	f.StringVar(&o.pidFile, "pid-file", filepath.Join(os.TempDir(), "swiftnbd.pid"), "`FILE` for the process id")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log what nbdkit and the plugin do")
	cmdline.Old(f, "bind-address", "bind-port", "cache-limit", "log-file", "syslog", "foreground", "pid-file", "verbose")
	return root
}

// check checks the options, and warns of those that have no effect.
func (o *options) check(cmd *cobra.Command) error {
	unused, err := o.login.Check(cmd.Flags())
	if err != nil {
		return err
	}
	if o.bindAddress == "" {
		return errors.New("--bind-address: is empty (0.0.0.0 is all addresses of this machine)")
	}
	if o.pidFile == "" {
		return errors.New("--pid-file: is empty")
	}
	if os.Getenv(stageVariable) != "" {
		return nil // the first process has warned already
	}
	for _, name := range unused {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: warning: --%s has no effect without --keystone-auth\n", program, name)
	}
	// 0.11 looked at its command line and at this file before all else.
	if _, err := os.Stat(o.login.Secrets); err != nil {
		var pe *os.PathError
		errors.As(err, &pe)
		return fmt.Errorf("failed to load secrets: %s: %w", o.login.Secrets, pe.Err)
	}
	return nil
}

// absolute makes the options' paths absolute, because the process in the
// background works in the root directory.
func (o *options) absolute() (err error) {
	for _, path := range []*string{&o.login.Secrets, &o.logFile, &o.pidFile} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	return nil
}

// nbdkitArgs returns nbdkit's arguments, without the option by which nbdkit
// reports that it is ready.
func (o *options) nbdkitArgs() []string {
	args := []string{"-f", "-p", strconv.Itoa(o.bindPort), "-i", o.bindAddress}
	if o.verbose {
		args = append(args, "-v", "-D", "swift.store=1", "-D", "swift.lock=1")
	}
	plugin := os.Getenv("SWIFTNBD_PLUGIN")
	if plugin == "" {
		plugin = "swift"
	}
	args = append(args, plugin, "secrets="+o.login.Secrets)
	if o.login.AuthURL != "" {
		args = append(args, "authurl="+o.login.AuthURL)
	}
	if o.login.Cloud != "" {
		args = append(args, "cloud="+o.login.Cloud)
	}
	if o.cacheLimit > 0 {
		args = append(args, fmt.Sprintf("cache=%dM", o.cacheLimit))
	}
	if o.login.Keystone {
		k := o.login.KeystoneOptions
		args = append(args, "keystone-auth=1")
		for _, p := range [][2]string{{"region", k.RegionName}, {"separator", k.TenantSeparator}, {"service", k.ServiceType}, {"endpoint", k.EndpointType}} {
			if p[1] != "" {
				args = append(args, "keystone-"+p[0]+"="+p[1])
			}
		}
	}
	return args
}
