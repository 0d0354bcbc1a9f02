// SPDX-License-Identifier: MIT

package layout

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
)

// What the names of a volume's objects begin with.
const (
	LogPrefix  = "swiftnbd/log/"
	RunPrefix  = "swiftnbd/run/"
	RootPrefix = "swiftnbd/root/"
	KeptPrefix = "swiftnbd/kept/"

	// Of notes about pins: see Note.
	ChildPrefix = "swiftnbd/child/"
	GonePrefix  = "swiftnbd/gone/"
)

const lowerHex = "0123456789abcdef"

// UUID is the identity of a volume.
type UUID [16]byte

// NewUUID returns a random one.
func NewUUID() (u UUID) {
	rand.Read(u[:]) // never fails
	return u
}

// ParseUUID is the inverse of String. It takes 32 lower-case hexadecimal digits
// and nothing else.
func ParseUUID(s string) (u UUID, err error) {
	if len(s) != 2*len(u) || strings.Trim(s, lowerHex) != "" {
		return UUID{}, fmt.Errorf("%q is no uuid: expected %d lower-case hexadecimal digits", s, 2*len(u))
	}
	if _, err := hex.Decode(u[:], []byte(s)); err != nil {
		return UUID{}, fmt.Errorf("%q is no uuid: %w", s, err)
	}
	return u, nil
}

// IsZero reports whether u is the zero value, which is no volume's uuid.
func (u UUID) IsZero() bool { return u == UUID{} }

// String returns 32 lower-case hexadecimal digits.
func (u UUID) String() string { return hex.EncodeToString(u[:]) }

// MarshalText returns what String returns.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (u *UUID) UnmarshalText(b []byte) (err error) {
	*u, err = ParseUUID(string(b))
	return err
}

// Position is a place in the log: the Nth object of an epoch. N counts from 1,
// and is at most MaxN. The zero value is the position before all others. The
// names of runs and roots have positions of their own.
type Position struct {
	Epoch uint32
	N     uint64
}

// Compare returns -1 if p is before q, 0 if they are the same, and 1 otherwise.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Epoch, q.Epoch), cmp.Compare(p.N, q.N))
}

// Less reports whether p is before q.
func (p Position) Less(q Position) bool { return p.Compare(q) < 0 }

// IsZero reports whether p is the zero value.
func (p Position) IsZero() bool { return p == Position{} }

// named reports whether an object can have p in its name.
func (p Position) named() bool { return p.N >= 1 && p.N <= MaxN }

// String returns p as it stands in the name of a data object:
// "0000002a-00000000000f".
func (p Position) String() string { return string(p.appendText(nil, logDigits)) }

// MarshalText returns what String returns.
func (p Position) MarshalText() ([]byte, error) { return p.appendText(nil, logDigits), nil }

// UnmarshalText is the inverse of MarshalText.
func (p *Position) UnmarshalText(b []byte) error {
	q, ok := parsePosition(string(b), logDigits)
	if !ok {
		return fmt.Errorf("%q is no position", b)
	}
	*p = q
	return nil
}

// Digits of N in names. The epoch has 8 in all of them.
const (
	epochDigits = 8
	logDigits   = 12
	runDigits   = 8 // of roots, too
)

// appendText appends p with so many digits for N, or more if N needs them. No
// parser takes the latter.
func (p Position) appendText(dst []byte, digits int) []byte {
	for shift := 4 * (epochDigits - 1); shift >= 0; shift -= 4 {
		dst = append(dst, lowerHex[p.Epoch>>shift&15])
	}
	dst = append(dst, '-')
	for digits < 16 && p.N>>(4*digits) != 0 {
		digits++
	}
	for shift := 4 * (digits - 1); shift >= 0; shift -= 4 {
		dst = append(dst, lowerHex[p.N>>shift&15])
	}
	return dst
}

// parsePosition is the inverse of appendText for positions with an N of at most
// MaxN.
func parsePosition(s string, digits int) (p Position, ok bool) {
	if len(s) != epochDigits+1+digits || s[epochDigits] != '-' {
		return Position{}, false
	}
	epoch, ok1 := parseHex(s[:epochDigits])
	n, ok2 := parseHex(s[epochDigits+1:])
	if !ok1 || !ok2 || n > MaxN {
		return Position{}, false
	}
	return Position{Epoch: uint32(epoch), N: n}, true
}

func parseHex(s string) (v uint64, ok bool) {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			v = v<<4 | uint64(c-'0')
		case c >= 'a' && c <= 'f':
			v = v<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return v, true
}

// LogName returns the name of the data object at p. No parser takes the name for
// an N that is 0 or more than MaxN.
func LogName(p Position) string { return name(LogPrefix, p, logDigits) }

// ParseLogName is the inverse of LogName. It takes exactly what LogName makes.
func ParseLogName(s string) (Position, bool) { return parseName(s, LogPrefix, logDigits) }

// RunName returns the name of a run. p is a position among the runs.
func RunName(p Position) string { return name(RunPrefix, p, runDigits) }

// ParseRunName is the inverse of RunName. It takes exactly what RunName makes.
func ParseRunName(s string) (Position, bool) { return parseName(s, RunPrefix, runDigits) }

// RootName returns the name of a root. p is a position among the roots.
func RootName(p Position) string { return name(RootPrefix, p, runDigits) }

// RootText returns the name of a root without its prefix, as the container's
// metadata and messages have it.
func RootText(p Position) string { return RootName(p)[len(RootPrefix):] }

// ParseRootText is the inverse of RootText. It takes exactly what RootText makes.
func ParseRootText(s string) (Position, bool) { return ParseRootName(RootPrefix + s) }

// ParseRootName is the inverse of RootName. It takes exactly what RootName makes.
func ParseRootName(s string) (Position, bool) { return parseName(s, RootPrefix, runDigits) }

// KeptName returns the name of a list of what snapshots need. p is a position
// among these lists.
func KeptName(p Position) string { return name(KeptPrefix, p, runDigits) }

// ParseKeptName is the inverse of KeptName. It takes exactly what KeptName makes.
func ParseKeptName(s string) (Position, bool) { return parseName(s, KeptPrefix, runDigits) }

func name(prefix string, p Position, digits int) string {
	return string(p.appendText(append(make([]byte, 0, len(prefix)+epochDigits+1+16), prefix...), digits))
}

func parseName(s, prefix string, digits int) (Position, bool) {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return Position{}, false
	}
	p, ok := parsePosition(rest, digits)
	if !ok || !p.named() {
		return Position{}, false
	}
	return p, true
}
