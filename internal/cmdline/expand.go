// SPDX-License-Identifier: MIT

package cmdline

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// aliases are other names of options: the names that swiftnbd-ctl had for a
// while, and a short form.
var aliases = map[string]string{
	"keystone":                  "keystone-auth",
	"keystone-region-name":      "keystone-region",
	"keystone-tenant-separator": "keystone-separator",
	"keystone-service-type":     "keystone-service",
	"keystone-endpoint-type":    "keystone-endpoint",
}

// oldOption is the annotation of an option that swiftnbd 0.11 had.
const oldOption = "swiftnbd-0.11"

// Old marks options that swiftnbd 0.11 had. An abbreviation that was
// unambiguous there stays so, even if newer options begin in the same way.
func Old(f *pflag.FlagSet, names ...string) {
	for _, name := range names {
		if err := f.SetAnnotation(name, oldOption, nil); err != nil {
			panic(err) // a misspelled name in our own code
		}
	}
}

// newerOption is the annotation of an option that was added when the beginnings
// of others were in use already.
const newerOption = "newer"

// Newer marks options whose addition makes no beginning of another option
// ambiguous.
func Newer(f *pflag.FlagSet, names ...string) {
	for _, name := range names {
		if err := f.SetAnnotation(name, newerOption, nil); err != nil {
			panic(err) // a misspelled name in our own code
		}
	}
}

// Expand returns args with each long option written in full. Like argparse, it
// accepts an unambiguous beginning of the name. It replaces aliases by the real
// names. It leaves an unknown option to cobra, which reports it. root is the
// program, with its commands.
func Expand(root *cobra.Command, args []string) ([]string, error) {
	if len(args) > 0 && strings.HasPrefix(args[0], "__complete") {
		return args, nil // cobra's own, with a command line that is not finished
	}
	root.InitDefaultVersionFlag()
	Old(root.Flags(), "version")
	cmd := root
	known := optionsOf(cmd)
	var out []string
	for i := 0; i < len(args); i++ {
		a := args[i]
		valued := false // the next argument is this one's value
		switch {
		case a == "--":
			return append(out, args[i:]...), nil
		case strings.HasPrefix(a, "--"):
			name, value, hasValue := strings.Cut(a[2:], "=")
			full, err := known.resolve(name)
			if err != nil {
				return nil, err
			}
			a = "--" + full
			if hasValue {
				a += "=" + value
			} else if f := known.all[full]; f != nil {
				valued = f.NoOptDefVal == ""
			}
		case len(a) > 1 && a[0] == '-':
			valued = known.shortTakesNext(a[1:])
		case cmd == root:
			for _, c := range root.Commands() {
				if c.Name() == a {
					cmd, known = c, optionsOf(c)
				}
			}
		}
		out = append(out, a)
		if valued && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
	}
	return out, nil
}

// options are the options that a command takes, by name.
type options struct {
	all map[string]*pflag.Flag
	own map[string]*pflag.Flag // without the options of the program, which each command takes
}

func optionsOf(cmd *cobra.Command) options {
	cmd.InitDefaultHelpFlag()
	Old(cmd.Flags(), "help")
	o := options{make(map[string]*pflag.Flag), make(map[string]*pflag.Flag)}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) { o.all[f.Name], o.own[f.Name] = f, f })
	cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) { o.all[f.Name] = f })
	return o
}

// resolve returns the option that a name, an alias or a beginning stands for.
// If it stands for nothing, resolve returns it unchanged. In swiftnbd 0.11 a
// command knew only its own options, so these come first, and then 0.11's other
// options.
func (o options) resolve(name string) (string, error) {
	if o.all[name] != nil {
		return name, nil
	}
	if full := aliases[name]; o.all[full] != nil {
		return full, nil
	}
	begun := make(map[string]bool)
	for full, f := range o.all {
		if !f.Hidden && strings.HasPrefix(full, name) {
			begun[full] = true
		}
	}
	for alias, full := range aliases {
		if o.all[full] != nil && strings.HasPrefix(alias, name) {
			begun[full] = true
		}
	}
	if len(begun) == 0 {
		return name, nil
	}
	candidates := slices.Sorted(maps.Keys(begun))
	isOld := func(full string) bool { _, ok := o.all[full].Annotations[oldOption]; return ok }
	for _, eligible := range []func(full string) bool{
		func(full string) bool { return o.own[full] != nil && isOld(full) },
		isOld,
		func(full string) bool { _, newer := o.all[full].Annotations[newerOption]; return !newer },
		func(string) bool { return true },
	} {
		var left []string
		for _, full := range candidates {
			if eligible(full) {
				left = append(left, full)
			}
		}
		if len(left) == 1 {
			return left[0], nil
		}
		if len(left) > 1 {
			candidates = left
			break
		}
	}
	return "", fmt.Errorf("ambiguous option --%s (--%s)", name, strings.Join(candidates, ", --"))
}

// shortTakesNext says whether the last option of a cluster of short options
// takes the next argument as its value.
func (o options) shortTakesNext(cluster string) bool {
	for i := range len(cluster) {
		for _, f := range o.all {
			if f.Shorthand == cluster[i:i+1] && f.NoOptDefVal == "" {
				return i == len(cluster)-1
			}
		}
	}
	return false
}
