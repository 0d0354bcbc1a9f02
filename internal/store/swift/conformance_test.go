// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"swiftnbd/internal/config"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
	swiftstore "swiftnbd/internal/store/swift"
)

// eventually waits until cond is true, for a minute at most.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not after a minute: %s", what)
		}
	}
}

// embedded starts an embedded Swift and returns it with its login.
func embedded(t testing.TB, o devswift.Options) (*devswift.Server, config.Login) {
	t.Helper()
	s, err := devswift.New(o)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(s)
	t.Cleanup(func() {
		s.Close() // first, so that what hangs there ends
		web.Close()
	})
	return s, config.Login{AuthURL: web.URL + "/auth/v1.0", Version: 1, Username: "test:tester", Password: "testing"}
}

// dial returns a client that is closed with the test.
func dial(t testing.TB, o swiftstore.Options) *swiftstore.Client {
	t.Helper()
	c, err := swiftstore.Dial(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// logins are the embedded Swift's and, where there is one, the real Swift's.
func logins(t *testing.T) map[string]config.Login {
	t.Helper()
	_, login := embedded(t, devswift.Options{})
	all := map[string]config.Login{"embedded": login}
	if os.Getenv(storetest.EnvAuth) != "" || os.Getenv(storetest.EnvRequire) != "" {
		all["real"] = storetest.RealLogin(t)
	} else {
		t.Logf("%s is not set: tried against the embedded Swift alone", storetest.EnvAuth)
	}
	return all
}

func conform(t *testing.T, login config.Login, differences ...storetest.Difference) {
	c := dial(t, swiftstore.Options{Login: login})
	storetest.Run(t, func(t *testing.T) store.Store { return c.Container(storetest.Name(t)) }, differences...)
	if n := c.Logins(); n != 1 {
		t.Errorf("%d logins for the whole suite", n)
	}
}

func TestConformanceEmbedded(t *testing.T) {
	_, login := embedded(t, devswift.Options{})
	conform(t, login)
}

func TestConformanceReal(t *testing.T)     { t.Parallel(); conform(t, storetest.RealLogin(t)) }
func TestConformanceKeystone(t *testing.T) { t.Parallel(); conform(t, storetest.KeystoneLogin(t)) }
func TestConformanceAppCred(t *testing.T)  { t.Parallel(); conform(t, storetest.AppCredLogin(t)) }

// TestConformanceRGW holds Ceph's gateway to all that Swift does, but for what is
// named here.
func TestConformanceRGW(t *testing.T) {
	t.Parallel()
	conform(t, storetest.RGWLogin(t), storetest.AnyMetadata, storetest.BusyCreation)
}
