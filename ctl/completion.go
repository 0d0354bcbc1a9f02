// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/config"
	"swiftnbd/internal/logdisk"
)

// What the shell completes
//
// The names of containers come from the secrets file, without a request. The names of
// snapshots are in Swift only, so Swift is asked for them when somebody types TAB where
// one belongs, as kubectl and rclone ask. Whoever types must not wait for long, and gets
// no name if that fails.

// completionTime is how long Swift is asked for the names of snapshots.
const completionTime = 3 * time.Second

// completing completes the arguments of a verb, each by its function. Behind the last
// one there is nothing to complete.
func completing(each ...func(cmd *cobra.Command, args []string, prefix string) []cobra.Completion) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= len(each) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		f := each[len(args)]
		if f == nil { // a file
			return nil, cobra.ShellCompDirectiveDefault
		}
		return f(cmd, args, prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeContainers completes the first argument to a container of the secrets file.
// If file is true, the second one is a file.
func (t *tool) completeContainers(file bool) cobra.CompletionFunc {
	if file {
		return completing(t.completeContainer, nil)
	}
	return completing(t.completeContainer)
}

// containersWith returns the secrets file's containers that begin with prefix.
// If the file cannot be read, it returns none.
func (t *tool) containersWith(prefix string) []cobra.Completion {
	secrets, _, err := config.ReadSecrets(t.login.Secrets)
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

// completeContainer completes CONTAINER.
func (t *tool) completeContainer(_ *cobra.Command, _ []string, prefix string) []cobra.Completion {
	return t.containersWith(prefix)
}

// completeMoment completes CONTAINER@SNAPSHOT.
func (t *tool) completeMoment(cmd *cobra.Command, _ []string, prefix string) []cobra.Completion {
	found := t.containersWith(prefix)
	if i := strings.LastIndexByte(prefix, '@'); i > 0 && t.globals(cmd) == nil {
		for _, snap := range t.snapshotsWith(cmd, prefix[:i], prefix[i+1:]) {
			found = append(found, prefix[:i+1]+snap)
		}
	}
	return found
}

// completeSnapshot completes SNAPSHOT, of the disk that is the first argument.
func (t *tool) completeSnapshot(cmd *cobra.Command, args []string, prefix string) []cobra.Completion {
	if len(args) == 0 || t.globals(cmd) != nil {
		return nil
	}
	return t.snapshotsWith(cmd, args[0], prefix)
}

// completeSince completes the value of --since, where CONTAINER@SNAPSHOT is there already.
func (t *tool) completeSince(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 && t.globals(cmd) == nil {
		if name, _, err := t.splitSnapshot(args[0]); err == nil {
			return t.snapshotsWith(cmd, name, prefix), cobra.ShellCompDirectiveNoFileComp
		}
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// snapshotsWith asks Swift for the disk's snapshots whose names begin with prefix, the
// oldest first. The global flags were checked.
func (t *tool) snapshotsWith(cmd *cobra.Command, name, prefix string) (found []cobra.Completion) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	c, state, err := t.openLog(ctx, name)
	if err != nil {
		return nil
	}
	list, _ := logdisk.Snapshots(ctx, c.logOptions(t, state.Meta, nil, state, defaultConnections))
	for _, s := range list {
		if strings.HasPrefix(s.Name, prefix) {
			found = append(found, s.Name)
		}
	}
	return found
}

// completionCommand makes cobra's command, and has bash take CONTAINER@SNAPSHOT for one
// word: for bash an @ begins a new one.
func completionCommand(root *cobra.Command, out io.Writer) {
	root.InitDefaultCompletionCmd()
	cmd, _, err := root.Find([]string{"completion", "bash"})
	if err != nil {
		panic(err) // cobra has made it just now
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		bare, err := cmd.Flags().GetBool("no-descriptions")
		if err != nil {
			return err
		}
		var script bytes.Buffer
		if err := root.GenBashCompletionV2(&script, !bare); err != nil {
			return err
		}
		_, err = io.WriteString(out, oneWord(script.String()))
		return err
	}
}

// oneWord changes cobra's script for bash: what it does for ":" and "=", it does for
// "@", too.
func oneWord(script string) string {
	const special = `__` + program + `_handle_special_char "$cur" `
	return strings.NewReplacer("_completion -n =:", "_completion -n =:@", special+"=\n", special+"=\n    "+special+"@\n").Replace(script)
}
