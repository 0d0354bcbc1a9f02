// SPDX-License-Identifier: MIT

package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"swiftnbd/internal/cmdline"
	"swiftnbd/internal/devswift"
)

// oldOptions are the options of swiftnbd 0.11's tool, those of the program and
// those of each verb: "NAME", or "NAME VALUE" with a value that it took, and
// the short form where there was one.
var oldOptions = map[string][]struct{ long, short string }{
	"": {
		{"version", ""}, {"help", "h"}, {"secrets FILE", ""}, {"auth-url http://h/v1.0", "a"}, {"verbose", "v"},
		{"keystone-auth", "k"}, {"keystone-separator :", ""}, {"keystone-service swift", ""},
		{"keystone-endpoint internalURL", ""}, {"keystone-region R", ""},
	},
	"list":     {{"help", "h"}, {"simple-output", "s"}},
	"setup":    {{"help", "h"}, {"object-size 65536", ""}, {"force", "f"}},
	"unlock":   {{"help", "h"}},
	"lock":     {{"help", "h"}},
	"download": {{"help", "h"}, {"quiet", "q"}},
	"delete":   {{"help", "h"}},
}

// TestOldOptions gives the tool each option of swiftnbd 0.11 in each spelling
// that argparse took: in full, in its short form, with its value behind a blank
// or a "=", and cut short as far as only one of 0.11's options begins like it.
func TestOldOptions(t *testing.T) {
	for verb, list := range oldOptions {
		for _, o := range list {
			name, value, valued := strings.Cut(o.long, " ")
			spellings := []string{"--" + name}
			for i := 1; i < len(name); i++ {
				alone := true
				for _, other := range list {
					n, _, _ := strings.Cut(other.long, " ")
					alone = alone && (n == name || !strings.HasPrefix(n, name[:i]))
				}
				if alone {
					spellings = append(spellings, "--"+name[:i])
				}
			}
			if o.short != "" {
				spellings = append(spellings, "-"+o.short)
			}
			if len(spellings) < 2 {
				t.Errorf("%s can only be given in full", name)
			}
			for _, s := range spellings {
				forms := [][]string{{s}}
				if valued {
					forms = [][]string{{s, value}, {s + "=" + value}}
				}
				for _, args := range forms {
					if verb != "" {
						args = append([]string{verb}, args...)
					}
					if got := given(t, verb, args); !slices.Equal(got, []string{name + "=" + value}) {
						t.Errorf("%q gives %q, want %s=%s", args, got, name, value)
					}
				}
			}
		}
	}
}

// given returns the options that a command line gives to a verb, as NAME=VALUE.
func given(t *testing.T, verb string, args []string) (options []string) {
	t.Helper()
	root := (&tool{}).root()
	args, err := cmdline.Expand(root, args)
	if err != nil {
		t.Errorf("%q: %v", args, err)
		return nil
	}
	cmd, rest, err := root.Find(args)
	if err == nil && verb != "" && cmd.Name() != verb {
		t.Errorf("%q is for %s", args, cmd.Name())
	}
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err != nil {
		t.Errorf("%q: %v", args, err)
		return nil
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		value := f.Value.String()
		if f.NoOptDefVal != "" {
			value = "" // a switch
		}
		options = append(options, f.Name+"="+value)
	})
	return options
}

// TestOptionSpellings checks what beginnings and other names of options stand
// for, and what is left alone.
func TestOptionSpellings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ args, want, err string }{
		{args: "--keystone-region-name R list", want: "--keystone-region R list"},
		{args: "--keystone-tenant-separator=: list", want: "--keystone-separator=: list"},
		{args: "--keystone-service-type x --keystone-endpoint-type y", want: "--keystone-service x --keystone-endpoint y"},
		{args: "--keystone-endpoint-t y", want: "--keystone-endpoint y"},
		{args: "--keystone-t : list", want: "--keystone-separator : list"},
		{args: "--keystone list", want: "--keystone-auth list"},
		{args: "--keystone-s x", err: "ambiguous option --keystone-s (--keystone-separator, --keystone-service)"},
		{args: "--keystone- x", err: "ambiguous option --keystone- (--keystone-auth, --keystone-endpoint, --keystone-region, --keystone-separator, --keystone-service)"},
		{args: "--ver", err: "ambiguous option --ver (--verbose, --version)"},
		{args: "--c FILE list", want: "--cacert FILE list"}, // no option of 0.11, but there is no other
		{args: "--cl mine --reg R list", want: "--cloud mine --region R list"},
		{args: "--ke FILE list", err: "ambiguous option --ke (--keystone-auth, --keystone-endpoint, --keystone-region, --keystone-separator, --keystone-service)"},
		{args: "list --s", want: "list --simple-output"},
		{args: "list --j", want: "list --json"},
		{args: "list --sec FILE", want: "list --secrets FILE"},
		{args: "setup disk --si 1G", want: "setup disk --size 1G"},
		{args: "setup disk 5 --fo --obj 64K", want: "setup disk 5 --force --object-size 64K"},
		{args: "lock --yes", want: "lock --yes"}, // unknown there
		{args: "--nonsense", want: "--nonsense"},
		{args: "--secrets --secr list", want: "--secrets --secr list"}, // a value
		{args: "-a --secr list", want: "-a --secr list"},
		{args: "-va --secr list", want: "-va --secr list"},
		{args: "-aurl --secr x", want: "-aurl --secrets x"},
		{args: "-kv --secr x", want: "-kv --secrets x"},
		{args: "download -- --secr x", want: "download -- --secr x"},
		{args: "download - --q", want: "download - --quiet"},
		{args: "lock list --s", want: "lock list --secrets"}, // the verb is the first word
		{args: "__complete list --s", want: "__complete list --s"},
	} {
		got, err := cmdline.Expand((&tool{}).root(), strings.Fields(c.args))
		switch {
		case c.err != "":
			if err == nil || err.Error() != c.err {
				t.Errorf("%s: %v, want %s", c.args, err, c.err)
			}
		case err != nil || strings.Join(got, " ") != c.want:
			t.Errorf("%s: %q, %v, want %s", c.args, got, err, c.want)
		}
	}
	b := newBench(t, devswift.Options{})
	b.fails(2, []string{"ambiguous option --keystone-s"}, "--keystone-s", ":", "list")
}
