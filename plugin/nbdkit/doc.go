// SPDX-License-Identifier: MIT

// Package nbdkit is for writing nbdkit plugins in Go.
package nbdkit
