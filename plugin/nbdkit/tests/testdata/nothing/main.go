// SPDX-License-Identifier: MIT

// Command nothing registers no plugin: a mistake that must be reported.
package main

import _ "libguestfs.org/nbdkit"

func main() {}
