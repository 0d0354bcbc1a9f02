// SPDX-License-Identifier: MIT

package device_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"testing"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/config"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/geometry"
	swiftstore "swiftnbd/internal/store/swift"
)

// TestBitRot has Swift send chunks that it holds damaged: those that we wrote,
// with their checksum, and those that swiftnbd 0.11 wrote, without. A read of
// them is an error that names the chunk, as often as it is made, and what lies
// beside them is read on.
func TestBitRot(t *testing.T) {
	const size = 4096
	swift, err := devswift.New(devswift.Options{Journal: -1})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(swift)
	defer web.Close()
	defer swift.Close()
	c, err := swiftstore.Dial(swiftstore.Options{Login: config.Login{
		AuthURL: web.URL + "/auth/v1.0", Version: 1, Username: "test:tester", Password: "testing"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w := newWorld(t, c.Container("v"), size, 16, true)
	w.mustOpen()
	disk := make([]byte, 3*size)
	noise(rand.New(rand.NewPCG(1, 2)), disk)
	if err := w.device.WriteFUA(disk, 0, true); err != nil {
		t.Fatal(err)
	}
	w.kill()
	// Chunk 1 becomes 0.11's.
	req, err := http.NewRequest("PUT", c.Session().StorageURL+"/v/"+chunked.ObjectName(1), bytes.NewReader(disk[size:2*size]))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", c.Session().Token.Reveal())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatal(resp.Status)
	}

	w.mustOpen()
	defer w.kill()
	for i, by := range []string{chunked.ByChecksum, chunked.ByETag} {
		swift.SetFault(devswift.Rules(devswift.Rule{
			Method: "GET", Prefix: "/v1/AUTH_test/v/" + chunked.ObjectName(geometry.ChunkIndex(i)),
			Action: devswift.Action{Corrupt: true},
		}))
		for range 2 {
			_, err := w.device.ReadAt(make([]byte, 10), int64(i)*size)
			var ce *chunked.ChangedError
			if !errors.As(err, &ce) || int(ce.Chunk) != i || ce.By != by {
				t.Errorf("chunk %d is damaged: %v, want a ChangedError by %s", i, err, by)
			}
			p := make([]byte, size)
			if _, err := w.device.ReadAt(p, 2*size); err != nil || !bytes.Equal(p, disk[2*size:]) {
				t.Errorf("the chunk beside it: %v", err)
			}
		}
	}
	swift.SetFault(nil)
	p := make([]byte, len(disk))
	if _, err := w.device.ReadAt(p, 0); err != nil || !bytes.Equal(p, disk) {
		t.Errorf("when Swift has repaired them: %v", err)
	}
}
