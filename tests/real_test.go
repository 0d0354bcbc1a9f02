// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"testing"

	"swiftnbd/tests/harness"
)

// TestRealModes does on the real Swift what the tests of the modes do on the
// embedded one: load from two clients, a round trip, SIGTERM.
func TestRealModes(t *testing.T) {
	t.Parallel()
	const objects = 128
	for _, o := range []harness.Options{
		{Mode: harness.Foreground},
		{Mode: harness.Background, TCP: true},
		{Mode: harness.Captive},
		{Mode: harness.Activated},
	} {
		t.Run(o.Mode.String(), func(t *testing.T) {
			name, account, params := volumeOf(t, harness.Real(t), objects)
			o.Params = params
			n := harness.Serve(t, o)
			harness.Load(t, n.URI, 2, 2)
			data := harness.Random(61, objects*objectSize)
			harness.RoundTrip(t, n.URI, data)
			n.Stop(t)
			unlocked(t, account, name)
			if !bytes.Equal(account.Read011(t, name), data) {
				t.Error("what was written is not in Swift")
			}
		})
	}
}

// TestRealErrors shows that the real Swift's refusals are told as the embedded
// one's are.
func TestRealErrors(t *testing.T) {
	t.Parallel()
	for _, bad := range badInputs {
		switch bad.name {
		case "wrong-password", "wrong-user", "wrong-path", "container-missing", "not-set-up", "locked", "object-size-word":
		default:
			continue
		}
		t.Run(bad.name, func(t *testing.T) { bad.run(t, harness.Real(t)) })
	}
}
