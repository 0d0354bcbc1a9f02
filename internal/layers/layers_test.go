// SPDX-License-Identifier: MIT

// Package layers has no code. Its test keeps the packages of this module in
// their order: dependencies run one way.
package layers

import (
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// below says which packages of ours a package may depend on, directly or
// through others. A package that is not named here is a fault: say where it
// belongs.
var below = map[string]string{
	"internal/geometry":             "",
	"internal/version":              "",
	"internal/words":                "",
	"internal/clouds":               "",
	"internal/config":               "clouds",
	"internal/devswift":             "",
	"internal/devswift/conformance": "",
	"internal/cmdline":              "clouds config",
	"internal/logdisk/layout":       "",
	"internal/increment":            "logdisk/layout",
	"internal/logdisk/blockmap":     "logdisk/layout",
	"internal/store":                "",
	"internal/store/etag":           "store",
	"internal/store/faulty":         "store",
	"internal/store/mem":            "store",
	"internal/store/swift":          "store clouds config",
	"internal/store/storetest":      "store clouds config",
	"internal/volume":               "geometry store",
	"internal/chunked":              "geometry store store/etag volume",
	"internal/lease":                "geometry store volume",
	"internal/control":              "store",
	"internal/cloud":                "geometry store volume lease clouds config store/swift",
	"internal/cache":                "geometry",
	"internal/device":               "geometry store store/etag control volume lease cache chunked words logdisk logdisk/layout logdisk/blockmap",
	"internal/logdisk":              "geometry store store/etag volume cache chunked logdisk/layout logdisk/blockmap",
	"internal/metrics":              "store",
	"internal/nbd":                  "",
	"internal/nbd/kernel":           "",
	"internal/nbd/bridge":           "nbd words",
	"plugin":                        "geometry store store/etag control volume lease cache chunked device cloud clouds config metrics store/swift version words logdisk logdisk/layout logdisk/blockmap",
	"ctl":                           "geometry store store/etag control cache volume lease chunked cloud cmdline clouds config device store/swift version words logdisk logdisk/layout logdisk/blockmap increment nbd nbd/kernel nbd/bridge",
	"ctl/swiftnbd-server":           "cmdline clouds config version",
	"scripts/bench":                 "geometry store store/etag control volume lease cache chunked device cloud clouds config store/swift devswift words logdisk logdisk/layout logdisk/blockmap",
	"scripts/swiftdev":              "devswift",
}

// The plugin alone has the binding, and with it nbdkit's C.
const binding, bindingUser = "libguestfs.org/nbdkit", "plugin"

// readFolders opens the folders of our packages: go test runs a test again, and
// does not repeat its last result, where folders that it opened have changed.
func readFolders(t *testing.T, roots ...string) {
	for _, root := range roots {
		err := filepath.WalkDir(filepath.Join("..", "..", root), func(_ string, _ fs.DirEntry, err error) error { return err })
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestLayers(t *testing.T) {
	readFolders(t, "internal", "plugin", "ctl", "scripts")
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Deps " "}}`, "swiftnbd/internal/...", "swiftnbd/plugin/...", "swiftnbd/ctl/...",
		"swiftnbd/scripts/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		name := strings.TrimPrefix(fields[0], "swiftnbd/")
		if name == "internal/layers" {
			continue
		}
		allowed, ok := below[name]
		if !ok {
			t.Errorf("%s has no place among the layers", name)
			continue
		}
		seen++
		for _, dep := range fields[1:] {
			if dep == binding && name != bindingUser {
				t.Errorf("%s depends on the binding, which is the plugin's", name)
			}
			ours, found := strings.CutPrefix(dep, "swiftnbd/")
			if found && !slices.Contains(strings.Fields(allowed), strings.TrimPrefix(ours, "internal/")) {
				t.Errorf("%s depends on %s, which is not below it", name, ours)
			}
		}
	}
	if seen != len(below) {
		t.Errorf("%d packages of %d are there", seen, len(below))
	}
}
