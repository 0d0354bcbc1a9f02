// SPDX-License-Identifier: MIT

package nbdkit

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"syscall"
)

// ParseSize takes a size such as 10G as nbdkit does, and returns it in bytes.
// The suffixes b, k, m, g, t, p and e are powers of 1024, in either case, and s
// is sectors of 512 bytes. It works outside nbdkit as well.
func ParseSize(s string) (int64, error) {
	bad := func(why string) (int64, error) {
		return 0, PluginError{Errmsg: fmt.Sprintf("'%s' is not a size: %s", s, why), Errno: syscall.EINVAL}
	}
	digits, unit := strings.TrimLeft(s, " \t\n\v\f\r"), int64(1)
	if digits == "" {
		return bad("it is empty")
	}
	switch last := digits[len(digits)-1]; last {
	case 'b', 'B':
	case 's', 'S':
		unit = 512
	case 'k', 'K':
		unit = 1 << 10
	case 'm', 'M':
		unit = 1 << 20
	case 'g', 'G':
		unit = 1 << 30
	case 't', 'T':
		unit = 1 << 40
	case 'p', 'P':
		unit = 1 << 50
	case 'e', 'E':
		unit = 1 << 60
	default:
		if last < '0' || last > '9' {
			return bad(fmt.Sprintf("'%c' is not a unit", last))
		}
		digits += "b"
	}
	digits = digits[:len(digits)-1]
	n, err := strconv.ParseInt(digits, 10, 64)
	switch {
	case err != nil && strings.Contains(err.Error(), "range"):
		return bad("it is too large")
	case err != nil:
		return bad("a number and perhaps a unit (K, M, G …) is expected")
	case n < 0:
		return bad("it is negative")
	case n > math.MaxInt64/unit:
		return bad("it is too large")
	}
	return n * unit, nil
}

// ParseBool takes a switch such as true, on, yes or 1 as nbdkit does, in any
// case. It works outside nbdkit as well.
func ParseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "true", "t", "yes", "y", "on":
		return true, nil
	case "0", "false", "f", "no", "n", "off":
		return false, nil
	}
	return false, PluginError{Errmsg: fmt.Sprintf("'%s' is not a switch: use on or off, true or false, yes or no, 1 or 0", s), Errno: syscall.EINVAL}
}
