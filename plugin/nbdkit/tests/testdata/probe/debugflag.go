// SPDX-License-Identifier: MIT

package main

// int probe_debug_flag = 0;
import "C"

// debugFlag is what nbdkit -D probe.flag=N set.
func debugFlag() int { return int(C.probe_debug_flag) }
