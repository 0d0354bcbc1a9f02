// SPDX-License-Identifier: MIT

package tests

import (
	"testing"

	"swiftnbd/tests/harness"
)

// TestTLS reaches Swift by https with a certificate that only cacert knows,
// given as a parameter and as a key of the secrets file; without it nothing
// is served.
func TestTLS(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, account, _ := volume(t, c)
	front := harness.NewFront(t, c, nil)
	secure, ca := front.Cloud, front.CACert
	plain := []string{name, "secrets=" + harness.Secrets(t, secure.Section(name))}

	harness.Fail(t, harness.Options{Mode: harness.Background, Params: plain}).Want(t, name, "certificate")
	for _, params := range [][]string{
		append(plain, "cacert="+ca),
		{name, "secrets=" + harness.Secrets(t, secure.Section(name, "cacert = "+ca))},
	} {
		n := harness.Serve(t, harness.Options{Mode: harness.Background, Params: params})
		harness.RoundTrip(t, n.URI, harness.Random(71, diskSize))
		n.Stop(t)
		unlocked(t, account, name)
	}
}

// TestCACertUnprivileged gives a cacert that only root can read to an nbdkit
// that serves as nobody.
func TestCACertUnprivileged(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, _, _ := volume(t, c)
	secrets := harness.Secrets(t, c.Section(name, "cacert = "+harness.Authority(t)))
	n := harness.Serve(t, harness.Options{Mode: harness.Background, Args: []string{"-u", "nobody", "-g", "nogroup"},
		Params: []string{name, "secrets=" + secrets}})
	harness.RoundTrip(t, n.URI, harness.Random(72, diskSize))
	n.Stop(t)
}
