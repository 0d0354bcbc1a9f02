// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"time"
)

// humanSize renders bytes for people, in powers of 1024: "64 KiB", "1.5 GiB".
// A size that is no whole number of its unit has one decimal.
func humanSize(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	unit, i := int64(1024), 0
	for n/unit >= 1024 && i < len(units)-1 {
		unit *= 1024
		i++
	}
	if n%unit == 0 {
		return fmt.Sprintf("%d %ciB", n/unit, units[i])
	}
	return fmt.Sprintf("%.1f %ciB", float64(n)/float64(unit), units[i])
}

// humanTime renders the time of a lock; "" where none is known.
func humanTime(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format("2006-01-02 15:04:05 UTC")
}

// since renders " since TIME", or "" where none is known.
func since(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return " since " + humanTime(at)
}
