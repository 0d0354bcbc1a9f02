// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"swiftnbd/internal/config"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/version"
)

// tool is one run of the program.
type tool struct {
	stdin  io.Reader
	stdout io.Writer
	stderr *console
	env    config.Environ

	// The global flags.
	secretsPath string
	authURL     string
	cacert      string
	keystone    bool
	keystoneOpt config.KeystoneOptions
	verbose     bool

	begun    bool // a verb has begun: errors are the operation's from now on
	named    bool // --secrets was given
	log      *slog.Logger
	secrets  *config.Secrets // nil until loaded
	noFile   error           // why there is no secrets file, where that can be done without
	defaults config.Defaults
	clouds   map[config.Login]*swiftstore.Client
}

// root builds the command line.
func (t *tool) root() *cobra.Command {
	root := &cobra.Command{
		Use:   program,
		Short: "Look after the Swift containers that hold disks for nbdkit's swift plugin",
		Long: `swiftnbd-ctl sets up, lists, shows, locks, unlocks, downloads and deletes the
OpenStack Swift containers that hold disks for nbdkit's swift plugin and for
swiftnbd. Containers and their credentials stand in the secrets file, or come
from the usual OS_* and ST_* environment variables.`,
		Version:       version.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("no command given")
			}
			if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
				return usagef("unknown command %q (did you mean %s?)", args[0], strings.Join(like, " or "))
			}
			return usagef("unknown command %q", args[0])
		},
		Args:                       cobra.ArbitraryArgs,
		SuggestionsMinimumDistance: 2,
	}
	root.SetVersionTemplate(program + " {{.Version}}\n")
	root.SetIn(t.stdin)
	root.SetOut(t.stdout)
	root.SetErr(t.stderr)

	f := root.PersistentFlags()
	f.StringVar(&t.secretsPath, "secrets", config.DefaultPath, "`FILE` with the containers and their credentials")
	f.StringVarP(&t.authURL, "auth-url", "a", "", "authentication `URL` of the containers for which the secrets file names none")
	f.StringVar(&t.cacert, "cacert", "", "PEM `FILE` of the authorities to trust, where the secrets file names none")
	f.BoolVarP(&t.keystone, "keystone-auth", "k", false, "authenticate with Keystone (v2.0, or v3 where the URL says so), with TENANT.USERNAME as user name")
	f.StringVar(&t.keystoneOpt.RegionName, "keystone-region-name", "", "with -k, `REGION` of the endpoint")
	f.StringVar(&t.keystoneOpt.TenantSeparator, "keystone-tenant-separator", ".", "with -k, the `SEPARATOR` of tenant and user name")
	f.StringVar(&t.keystoneOpt.ServiceType, "keystone-service-type", "object-store", "with -k, `TYPE` of the service in the catalogue")
	f.StringVar(&t.keystoneOpt.EndpointType, "keystone-endpoint-type", "publicURL", "with -k, `TYPE` of the endpoint: publicURL, internalURL or adminURL")
	f.BoolVarP(&t.verbose, "verbose", "v", false, "log the requests that are made to standard error")
	_ = root.MarkPersistentFlagFilename("secrets")
	_ = root.MarkPersistentFlagFilename("cacert")

	root.AddCommand(t.listCommand(), t.infoCommand(), t.setupCommand(), t.unlockCommand(), t.lockCommand(), t.downloadCommand(), t.deleteCommand())
	return root
}

// verb makes f a cobra command's RunE: it checks the global flags, and marks
// where the command line ends and the operation begins.
func (t *tool) verb(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := t.globals(cmd); err != nil {
			return err
		}
		t.begun = true
		return f(cmd.Context(), args)
	}
}

// globals checks and notes the global flags.
func (t *tool) globals(cmd *cobra.Command) error {
	level := slog.LevelWarn
	if t.verbose {
		level = slog.LevelDebug
	}
	t.log = slog.New(slog.NewTextHandler(t.stderr, &slog.HandlerOptions{Level: level}))
	flags := cmd.Flags()
	t.named = flags.Changed("secrets")
	t.defaults = config.Defaults{AuthURL: t.authURL, CACert: t.cacert}
	if flags.Changed("auth-url") {
		if err := config.CheckURL(t.authURL); err != nil {
			return usagef("--auth-url: %w", err)
		}
	}
	if err := config.CheckEndpointType(t.keystoneOpt.EndpointType); err != nil {
		return usagef("--keystone-endpoint-type: %w", err)
	}
	if t.keystone {
		t.defaults.Keystone = &t.keystoneOpt
		return nil
	}
	for _, name := range []string{"region-name", "tenant-separator", "service-type", "endpoint-type"} {
		if flags.Changed("keystone-" + name) {
			t.warn("--keystone-%s has no effect without --keystone-auth", name)
		}
	}
	return nil
}

// needs is the check of a verb's positional arguments: as many as names.
func needs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%s is missing", strings.Join(names[len(args):], " and "))
		case len(args) > len(names):
			return usagef("%q is one argument too many (expected %s)", args[len(names)], strings.Join(names, " "))
		}
		return nil
	}
}

// completeContainers completes the first argument to a container of the
// secrets file, and a second one to a file where files says so.
func (t *tool) completeContainers(files bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			if files && len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return t.containersWith(prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

// containersWith returns the secrets file's containers that begin with prefix,
// and nothing where the file cannot be read.
func (t *tool) containersWith(prefix string) []cobra.Completion {
	secrets, _, err := config.ReadSecrets(t.secretsPath)
	if err != nil {
		return nil
	}
	var names []cobra.Completion
	for _, c := range secrets.Containers() {
		if strings.HasPrefix(c, prefix) {
			names = append(names, c)
		}
	}
	return names
}

// fault reports an error, warn what the user should know, and say what was
// done: one line each.
func (t *tool) fault(err error) { fmt.Fprintf(t.stderr, "%s: %v\n", program, err) }

func (t *tool) warn(format string, a ...any) {
	fmt.Fprintf(t.stderr, "%s: warning: %s\n", program, fmt.Sprintf(format, a...))
}

func (t *tool) say(format string, a ...any) { fmt.Fprintf(t.stdout, format+"\n", a...) }

// terminal returns the terminal that a stream is, if it is one.
func terminal(stream any) (*os.File, bool) {
	f, ok := stream.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}
