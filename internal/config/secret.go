// SPDX-License-Identifier: MIT

package config

import (
	"fmt"
	"log/slog"
)

// redacted is what every way of printing a Secret gives, whatever it holds.
// An empty Secret prints the same, so that a log does not tell even that.
const redacted = "[redacted]"

// Secret is a password, a key or a token. It prints as "[redacted]" through
// every verb of fmt, through encoding/json, encoding.TextMarshaler and
// log/slog; only Reveal gives it away. fmt does not call the methods of a
// value in an unexported field: a type that keeps a Secret in one, and can be
// printed, needs a Format method of its own, as Secrets has. Nor does it for
// %p, which is for pointers only, and which go vet reports.
type Secret string

// Reveal returns the secret itself. Whoever calls it sees to it that the
// result reaches no log, no error and no command line.
func (s Secret) Reveal() string { return string(s) }

// String implements fmt.Stringer and redacts.
func (Secret) String() string { return redacted }

// GoString implements fmt.GoStringer and redacts.
func (Secret) GoString() string { return redacted }

// Format implements fmt.Formatter and redacts under every verb, %x and %d
// too, which would not ask String.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText implements encoding.TextMarshaler and redacts.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements json.Marshaler and redacts.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// LogValue implements slog.LogValuer and redacts.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
