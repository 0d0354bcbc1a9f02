// SPDX-License-Identifier: MIT

package devswift_test

import (
	"net/http/httptest"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/devswift/conformance"
	"swiftnbd/internal/store/storetest"
)

// start serves an embedded Swift for the time of a test.
func start(t *testing.T, o devswift.Options) (*devswift.Server, conformance.Target) {
	t.Helper()
	if len(o.Users) == 0 {
		o.Users = []devswift.User{{Account: "test", Name: "tester", Key: "testing"}, {Account: "test2", Name: "tester2", Key: "testing2"}}
	}
	s, err := devswift.New(o)
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s)
	t.Cleanup(func() {
		h.CloseClientConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		h.Close()
	})
	return s, conformance.Target{AuthURL: h.URL + "/auth/v1.0", User: "test:tester", Key: "testing", Guest: "test2:tester2", GuestKey: "testing2"}
}

func TestConformanceMemory(t *testing.T) {
	t.Parallel()
	_, target := start(t, devswift.Options{})
	conformance.Run(t, target)
}

func TestConformanceDir(t *testing.T) {
	t.Parallel()
	_, target := start(t, devswift.Options{Dir: t.TempDir()})
	conformance.Run(t, target)
}

// TestConformanceReal holds a real Swift to the same tables: where it fails,
// the embedded one is wrong too.
func TestConformanceReal(t *testing.T) {
	t.Parallel()
	login := storetest.RealLogin(t)
	conformance.Run(t, conformance.Target{
		AuthURL: login.AuthURL, User: login.Username, Key: login.Password.Reveal(),
		Guest: "test2:tester2", GuestKey: "testing2", // scripts/saio.sh
		Remembers: 70 * time.Second, // a minute, by Swift's default
	})
}

// TestConformanceRGW holds Ceph's gateway to the same tables, but for what
// conformance/rgw.txt says that it does otherwise. That it must do.
func TestConformanceRGW(t *testing.T) {
	t.Parallel()
	login := storetest.RGWLogin(t)
	conformance.Run(t, conformance.Target{
		AuthURL: login.AuthURL, User: login.Username, Key: login.Password.Reveal(),
		Differences: conformance.RGW(),
	})
}
