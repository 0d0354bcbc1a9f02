// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"swiftnbd/internal/clouds"
	"swiftnbd/internal/cmdline"
	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/version"
)

// tool is one run of the program.
type tool struct {
	stdin  io.Reader
	stdout io.Writer
	stderr *console
	env    config.Environ
	pace   pace

	// The global flags.
	login      *cmdline.Login
	cacert     string
	storageURL string
	region     string
	endpoint   string
	cert, key  string
	insecure   bool
	policy     string // --policy of setup and upload
	verbose    bool

	unsaid error // why a line for people could not be printed, the first time

	json bool // --json: one object is the result, and say prints nothing

	begun    bool // a verb has begun: errors are the operation's from now on
	changes  bool // the verb changes something, all of it or nothing, and may be repeated
	named    bool // --secrets was given
	log      *slog.Logger
	secrets  *config.Secrets // nil until loaded
	noFile   error           // why there is no secrets file, if the environment may replace it
	defaults config.Defaults
	clients  map[config.Login]*swiftstore.Client
	whole    map[string]string // CONTAINER@SNAPSHOT as it was given, by the container
}

// unknownCommand is the error of a command that does not exist.
func unknownCommand(root *cobra.Command, name string) error {
	if like := root.SuggestionsFor(name); len(like) > 0 {
		return usagef("unknown command %q (did you mean %s?)", name, strings.Join(like, " or "))
	}
	return usagef("unknown command %q", name)
}

// root builds the command line.
func (t *tool) root() *cobra.Command {
	root := &cobra.Command{
		Use:   program,
		Short: "Set up and manage the Swift containers that hold disks for nbdkit's swift plugin",
		Long: `swiftnbd-ctl sets up, lists, shows, locks, unlocks, downloads, checks and deletes the
OpenStack Swift containers that hold disks for nbdkit's swift plugin and for
swiftnbd. The secrets file names the containers and their credentials. The
usual OS_* and ST_* environment variables can give the credentials as well. It also
attaches disks to the kernel of this machine, and detaches them.`,
		Version:       version.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("no command given")
			}
			return unknownCommand(cmd, args[0])
		},
		Args:                       cobra.ArbitraryArgs,
		SuggestionsMinimumDistance: 2,
	}
	root.SetFlagErrorFunc(cmdline.FlagError)
	root.SetVersionTemplate(program + " {{.Version}}\n")
	root.SetIn(t.stdin)
	root.SetOut(t.stdout)
	root.SetErr(t.stderr)

	f := root.PersistentFlags()
	t.login = cmdline.AddLogin(f)
	f.StringVar(&t.cacert, "cacert", "", "PEM `FILE` of the authorities to trust, if the secrets file has none")
	f.StringVar(&t.storageURL, "storage-url", "", "the account's `URL`, instead of the one that the login gives, if the secrets file has none")
	f.StringVar(&t.region, "region", "", "`REGION` of the endpoint, if the secrets file has none")
	f.StringVar(&t.endpoint, "endpoint-type", "", "`TYPE` of the endpoint, if the secrets file has none: public, internal or admin")
	f.StringVar(&t.cert, "cert", "", "PEM `FILE` with a client's certificate, if the secrets file has none")
	f.StringVar(&t.key, "key", "", "PEM `FILE` with the certificate's key, if it is not in the same file")
	f.BoolVar(&t.insecure, "insecure", false, "do not verify the cloud's certificates")
	cmdline.Newer(f, "region", "endpoint-type", "cert", "key", "insecure")
	values(root, "endpoint-type", "public", "internal", "admin")
	values(root, "keystone-endpoint", "publicURL", "internalURL", "adminURL")
	_ = root.RegisterFlagCompletionFunc("cloud", func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		names, _ := clouds.New(clouds.Load(t.env)).Names() // a fault is told when a cloud is used
		return names, cobra.ShellCompDirectiveNoFileComp
	})
	f.BoolVarP(&t.verbose, "verbose", "v", false, "log each request to standard error")
	cmdline.Old(f, "verbose")
	_ = root.MarkPersistentFlagFilename("secrets")
	for _, name := range []string{"cacert", "cert", "key"} {
		_ = root.MarkPersistentFlagFilename(name)
	}

	root.AddCommand(t.listCommand(), t.infoCommand(), t.setupCommand(), t.unlockCommand(), t.lockCommand(), t.downloadCommand(), t.uploadCommand(), t.resizeCommand(), t.deleteCommand(), t.verifyCommand(),
		t.attachCommand(), t.detachCommand(), t.snapshotCommand(), t.snapshotsCommand(), t.revertCommand(), t.rewindCommand(), t.diffCommand(),
		t.cloneCommand(), t.flattenCommand())
	root.AddCommand(t.topCommand(), t.benchCommand(), t.convertCommand())
	completionCommand(root, t.stdout)
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Args = func(_ *cobra.Command, args []string) error {
			if found, _, err := root.Find(args); len(args) > 0 && (err != nil || found == root) {
				return unknownCommand(root, args[0])
			}
			return nil
		}
	}
	return root
}

// verb makes f a cobra command's RunE: it checks the global flags, and marks
// where the command line ends and the operation begins.
func (t *tool) verb(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := t.globals(cmd); err != nil {
			return err
		}
		t.begun, t.changes = true, changing[cmd.Name()]
		return f(cmd.Context(), args)
	}
}

// changing are the verbs that change a disk and do not say themselves how to go on
// when they end half way.
var changing = map[string]bool{
	"setup": true, "delete": true, "resize": true, "snapshot": true, "revert": true, "clone": true, "flatten": true, "convert": true,
}

// goOnAfter adds to the error of a verb how to go on, unless it says so.
func (t *tool) goOnAfter(err error) error {
	var cut *interruptedError
	switch {
	case !t.changes:
	case errors.As(err, &cut) && err.Error() == cut.Error():
		return fmt.Errorf("%w; nothing is broken: run the same command again", err)
	case errors.Is(err, store.ErrNoSpace):
		return fmt.Errorf("%w; make room or have the quota raised, and run the same command again", err)
	}
	return err
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
	unused, err := t.login.Check(flags)
	if err != nil {
		return usagef("%w", err)
	}
	if flags.Changed("storage-url") {
		if err := config.CheckStorageURL(t.storageURL); err != nil {
			return usagef("--storage-url: %w", err)
		}
	}
	if t.endpoint != "" {
		if err := config.CheckEndpointType(t.endpoint); err != nil {
			return usagef("--endpoint-type: %w", err)
		}
	}
	t.defaults = config.Defaults{AuthURL: t.login.AuthURL, CACert: t.cacert, StorageURL: t.storageURL,
		Cloud: t.login.Cloud, Region: t.region, EndpointType: t.endpoint,
		ClientCert: t.cert, ClientKey: t.key, Insecure: t.insecure}
	if t.login.Keystone {
		t.defaults.Keystone = &t.login.KeystoneOptions
	}
	for _, name := range unused {
		t.warn("--%s has no effect without --keystone-auth", name)
	}
	return nil
}

// needs checks that a verb has as many positional arguments as names.
func needs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%s is missing", strings.Join(names[len(args):], " and "))
		case len(args) > len(names):
			return usagef("%q is one argument too many (expected %s)", args[len(names)], strings.Join(names, " "))
		}
		if i := slices.Index(names, "FILE"); i >= 0 && args[i] == "" { // a variable of the shell that is not set
			return usagef("FILE is empty")
		}
		return nil
	}
}

// jsonFlag gives a command whose result is one object its --json, and jsonArrayFlag
// one whose result is an array.
func (t *tool) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&t.json, "json", false, "print a JSON object")
}

func (t *tool) jsonArrayFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&t.json, "json", false, "print a JSON array")
}

// values has the shell complete an option with these values.
func values(cmd *cobra.Command, option string, all ...string) {
	_ = cmd.RegisterFlagCompletionFunc(option, cobra.FixedCompletions(all, cobra.ShellCompDirectiveNoFileComp))
}

// fault reports an error, warn prints a warning, and say prints a result for
// people: nothing with --json. Each prints one line.
func (t *tool) fault(err error) { fmt.Fprintf(t.stderr, "%s: %v\n", program, err) }

func (t *tool) warn(format string, a ...any) {
	fmt.Fprintf(t.stderr, "%s: warning: %s\n", program, fmt.Sprintf(format, a...))
}

// warner returns what prints the warnings of a disk. Some call themselves warnings:
// a server's log has lines of other kinds, too.
func (t *tool) warner(name string) func(format string, a ...any) {
	return func(format string, a ...any) { t.warn(name+": "+strings.TrimPrefix(format, "warning: "), a...) }
}

func (t *tool) say(format string, a ...any) {
	if !t.json {
		if _, err := fmt.Fprintf(t.stdout, format+"\n", a...); err != nil && t.unsaid == nil {
			t.unsaid = err
		}
	}
}

// done prints the result of a command: v as JSON, or the line for people.
func (t *tool) done(v any, format string, a ...any) error {
	if t.json {
		return t.encode(v)
	}
	t.say(format, a...)
	return nil
}

// tell prints what is worth a thought, and no result: for people among what say
// prints, as always, and otherwise as a warning.
func (t *tool) tell(format string, a ...any) {
	if t.json {
		t.warn(format, a...)
		return
	}
	t.say("warning: "+format, a...)
}

// utc returns a time for JSON: null where none is known.
func utc(at time.Time) *time.Time {
	if at.IsZero() {
		return nil
	}
	at = at.UTC()
	return &at
}

// encode prints v as JSON.
func (t *tool) encode(v any) error {
	enc := json.NewEncoder(t.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// terminal returns stream as a file, and whether it is a terminal.
func terminal(stream any) (*os.File, bool) {
	f, ok := stream.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}
