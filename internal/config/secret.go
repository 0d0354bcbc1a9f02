// SPDX-License-Identifier: MIT

package config

import (
	"fmt"
	"log/slog"
)

// redacted is the text of every Secret in print. An empty Secret prints the
// same, so a log does not even show whether there is one.
const redacted = "[redacted]"

// Secret is a password, a key or a token. It prints as "[redacted]" through
// every verb of fmt, through encoding/json, encoding.TextMarshaler and
// log/slog. Only Reveal returns it. fmt does not call the methods of a value in
// an unexported field. A type with a Secret in such a field needs a Format
// method of its own if it can be printed, as Secrets has. fmt does not call
// them for %p either. This verb is for pointers only, and go vet reports it.
type Secret string

// Reveal returns the secret itself. The caller must keep the result out of
// logs, errors and command lines.
func (s Secret) Reveal() string { return string(s) }

// String implements fmt.Stringer and redacts.
func (Secret) String() string { return redacted }

// GoString implements fmt.GoStringer and redacts.
func (Secret) GoString() string { return redacted }

// Format implements fmt.Formatter and redacts under every verb. For %x and %d,
// fmt would not call String.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText implements encoding.TextMarshaler and redacts.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements json.Marshaler and redacts.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// LogValue implements slog.LogValuer and redacts.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
