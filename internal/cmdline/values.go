// SPDX-License-Identifier: MIT

package cmdline

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// IntVarP adds an option whose value is a whole number from least to most, and
// says so where it is something else.
func IntVarP(f *pflag.FlagSet, p *int, name, short string, value, least, most int, usage string) {
	*p = value
	f.VarP(&number{p, least, most}, name, short, usage)
}

// number is a pflag.Value.
type number struct {
	n           *int
	least, most int
}

func (v *number) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < v.least || n > v.most {
		return fmt.Errorf("must be a whole number, not less than %d and not more than %d", v.least, v.most)
	}
	*v.n = n
	return nil
}

func (v *number) String() string { return strconv.Itoa(*v.n) }
func (*number) Type() string     { return "int" }

// FlagError is a cobra command's FlagErrorFunc. It puts what Go says of a value
// that cannot be read into words for people.
func FlagError(_ *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) && invalid.GetFlag().Value.Type() == "bool" {
		return fmt.Errorf("invalid argument %q for \"--%s\": it takes no value, or =true or =false", invalid.GetValue(), invalid.GetFlag().Name)
	}
	return err
}
