// SPDX-License-Identifier: MIT

package main

import (
	"slices"
	"testing"

	"swiftnbd/internal/cmdline"
	"swiftnbd/internal/config"
)

// TestAttachLogin has the nbdkit of attach log in as swiftnbd-ctl does: each of the
// options of the login is a parameter of the plugin.
func TestAttachLogin(t *testing.T) {
	t.Parallel()
	tool := &tool{
		login: &cmdline.Login{Secrets: "/s", AuthURL: "http://a", Cloud: "c", Keystone: true, KeystoneOptions: config.KeystoneOptions{
			RegionName: "R", TenantSeparator: ":", ServiceType: "object-store", EndpointType: "publicURL",
		}},
		cacert: "/ca", storageURL: "http://s", region: "r", endpoint: "internal", cert: "/cert", key: "/key", insecure: true,
	}
	want := []string{
		"authurl=http://a", "cacert=/ca", "cert=/cert", "cloud=c", "endpoint-type=internal", "insecure=1", "key=/key",
		"keystone-auth=1", "keystone-endpoint=publicURL", "keystone-region=R", "keystone-separator=:", "keystone-service=object-store",
		"region=r", "secrets=/s", "storage-url=http://s",
	}
	got := tool.pluginLogin()
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the plugin's parameters are\n%q, want\n%q", got, want)
	}
}
