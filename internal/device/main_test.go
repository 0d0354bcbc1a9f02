// SPDX-License-Identifier: MIT

package device_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain runs more tests at once than there are processors, unless -parallel
// is given: they wait for answers and timeouts more than they work.
func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", "8"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
