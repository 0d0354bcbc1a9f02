// SPDX-License-Identifier: MIT

package cmdline

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// program returns a command line of the kind that ours are.
func program() *cobra.Command {
	root := &cobra.Command{Use: "program", Version: "1"}
	AddLogin(root.PersistentFlags())
	verb := &cobra.Command{Use: "verb", Run: func(*cobra.Command, []string) {}}
	verb.Flags().StringP("output", "o", "", "")
	verb.Flags().Bool("secret", false, "")
	Old(verb.Flags(), "output")
	root.AddCommand(verb)
	return root
}

// TestExpand checks that a verb's own options of 0.11 come before those of the
// program, and 0.11's before ours.
func TestExpand(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--se FILE", "--secrets FILE"},
		{"verb --se FILE", "verb --secrets FILE"}, // 0.11 had no --secret
		{"verb --secret --se FILE", "verb --secret --secrets FILE"},
		{"verb --ou --se", "verb --output --se"},
		{"verb -o --se", "verb -o --se"},
		{"verb -o=x --se", "verb -o=x --secrets"},
		{"verb -", "verb -"},
		{"--ou x", "--ou x"},
		{"--keystone --keystone-region-n=R", "--keystone-auth --keystone-region=R"},
		{"--=", "--="},
	} {
		got, err := Expand(program(), strings.Fields(c.args))
		if c.args == "--=" { // the beginning of all
			if err == nil {
				t.Errorf("%s: %q", c.args, got)
			}
			continue
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, %v, want %s", c.args, got, err, c.want)
		}
	}
}

// FuzzExpand gives Expand any command line: it keeps every argument in its
// place and each value as it is, and what it has expanded it leaves alone.
func FuzzExpand(f *testing.F) {
	for _, s := range []string{"--se\nx\nverb", "verb\n-o\n--se\n--\n--se", "--keystone-s\n:", "-kax\n--", "--=\n-\n--secrets=--se", "__complete\n--s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		args := strings.Split(text, "\n")
		once, err := Expand(program(), args)
		if err != nil {
			return
		}
		if len(once) != len(args) {
			t.Fatalf("%q becomes %q", args, once)
		}
		for i := range args {
			_, before, had := strings.Cut(args[i], "=")
			_, after, has := strings.Cut(once[i], "=")
			if once[i] != args[i] && (!strings.HasPrefix(args[i], "--") || had != has || before != after) {
				t.Errorf("%q becomes %q", args[i], once[i])
			}
		}
		twice, err := Expand(program(), once)
		if err != nil || !slices.Equal(once, twice) {
			t.Errorf("%q becomes %q, and that %q (%v)", args, once, twice, err)
		}
	})
}
