// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"bytes"
	"errors"
	"net/http"
	"testing"

	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
	swiftstore "swiftnbd/internal/store/swift"
)

// TestForeignChecksum reads objects that others have put: with no checksum,
// with what is none, and with one. What we put over them has its own, and what
// they put over ours has not ours.
func TestForeignChecksum(t *testing.T) {
	for name, login := range logins(t) {
		c := dial(t, swiftstore.Options{Login: login})
		if err := c.Login(t.Context()); err != nil {
			t.Fatal(err)
		}
		container := storetest.Name(t)
		s := c.Container(container)
		if _, err := s.CreateContainer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		data := storetest.Bytes(1000, 1)
		for _, tc := range []struct{ header, want string }{
			{"", ""}, {"0123abcd", "0123abcd"}, {"0123ABCD", ""}, {"0123abc", ""}, {"0123abcd0", ""}, {"0123abcg", ""}, {"crc", ""},
		} {
			if err := s.Put(t.Context(), "o", storetest.Bytes(1000, 2), ""); err != nil {
				t.Fatal(err)
			}
			req, err := http.NewRequest("PUT", c.Session().StorageURL+"/"+container+"/o", bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Auth-Token", c.Session().Token.Reveal())
			if tc.header != "" {
				req.Header.Set("X-Object-Meta-Swiftnbd-Crc32c", tc.header)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusCreated {
				t.Fatalf("%s: PUT: %s", name, resp.Status)
			}
			info, err := s.Get(t.Context(), "o", make([]byte, len(data)), store.GetOptions{Newest: true, Whole: true})
			if err != nil || info.Checksum != store.Checksum(tc.want) || info.ETag != storetest.Sum(data) {
				t.Errorf("%s: put with the checksum %q: %+v, %v", name, tc.header, info, err)
			}
			if head, err := s.Head(t.Context(), "o"); err != nil || head.Checksum != info.Checksum {
				t.Errorf("%s: put with the checksum %q: HEAD says %+v, %v", name, tc.header, head, err)
			}
		}
		if err := s.Delete(t.Context(), "o"); err != nil {
			t.Error(err)
		}
		var err error
		eventually(t, "the listing is empty", func() bool { // it may be late
			err = s.DeleteContainer(t.Context())
			return !errors.Is(err, store.ErrNotEmpty)
		})
		if err != nil {
			t.Error(err)
		}
	}
}
