// SPDX-License-Identifier: MIT

package storetest

import (
	"os"
	"testing"

	"swiftnbd/internal/config"
)

// The environment variables that name a real Swift to the tests, as
// `scripts/saio.sh env` prints them. Only this file names them for the store's
// tests. `make check` sets all of them.
const (
	// EnvAuth, EnvUser and EnvKey are a version 1 authentication URL, the
	// user ("test:tester") and the key.
	EnvAuth = "SWIFTNBD_TEST_AUTH"
	EnvUser = "SWIFTNBD_TEST_USER"
	EnvKey  = "SWIFTNBD_TEST_KEY"

	// EnvKeystone is a Keystone version 3 URL, where user tester with the
	// password testing has the project test, all in the domain Default, and
	// the object-store is in RegionOne.
	EnvKeystone = "SWIFTNBD_TEST_KEYSTONE"

	// EnvAppCredID and EnvAppCredSecret are an application credential of
	// that user.
	EnvAppCredID     = "SWIFTNBD_TEST_APPCRED_ID"
	EnvAppCredSecret = "SWIFTNBD_TEST_APPCRED_SECRET"

	// EnvRGWAuth, EnvRGWUser and EnvRGWKey name Ceph's Swift gateway, as
	// `scripts/rgw.sh env` prints them.
	EnvRGWAuth = "SWIFTNBD_TEST_RGW_AUTH"
	EnvRGWUser = "SWIFTNBD_TEST_RGW_USER"
	EnvRGWKey  = "SWIFTNBD_TEST_RGW_KEY"

	// EnvRequire, when not empty, turns a test that is skipped because a
	// variable is missing into one that fails.
	EnvRequire = "SWIFTNBD_TEST_REQUIRE"
)

// need returns the variables' values. If one is missing, it skips the test.
func need(t testing.TB, names ...string) []string {
	t.Helper()
	values := make([]string, len(names))
	for i, name := range names {
		if values[i] = os.Getenv(name); values[i] != "" {
			continue
		}
		if os.Getenv(EnvRequire) != "" {
			t.Fatalf("%s is not set, and %s is", name, EnvRequire)
		}
		t.Skipf("%s is not set: not tried against a real Swift (see `scripts/saio.sh env`)", name)
	}
	return values
}

// RealLogin is the version 1 login of the real Swift.
func RealLogin(t testing.TB) config.Login {
	t.Helper()
	v := need(t, EnvAuth, EnvUser, EnvKey)
	return config.Login{AuthURL: v[0], Version: 1, Username: v[1], Password: config.Secret(v[2])}
}

// RGWLogin is the login of Ceph's gateway.
func RGWLogin(t testing.TB) config.Login {
	t.Helper()
	v := need(t, EnvRGWAuth, EnvRGWUser, EnvRGWKey)
	return config.Login{AuthURL: v[0], Version: 1, Username: v[1], Password: config.Secret(v[2])}
}

// KeystoneLogin is the password login at the real Keystone.
func KeystoneLogin(t testing.TB) config.Login {
	t.Helper()
	v := need(t, EnvKeystone)
	return config.Login{
		AuthURL: v[0], Version: 3, Username: "tester", Password: "testing", Project: "test",
		UserDomain: "Default", ProjectDomain: "Default", Region: "RegionOne", EndpointType: "public",
	}
}

// AppCredLogin is the application credential's login at the real Keystone.
func AppCredLogin(t testing.TB) config.Login {
	t.Helper()
	v := need(t, EnvKeystone, EnvAppCredID, EnvAppCredSecret)
	return config.Login{
		AuthURL: v[0], Version: 3, AppCredentialID: v[1], AppCredentialSecret: config.Secret(v[2]),
		Region: "RegionOne", EndpointType: "public",
	}
}
