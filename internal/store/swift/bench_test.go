// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
	swiftstore "swiftnbd/internal/store/swift"
)

// BenchmarkObjects is the client's own cost, against a server that does
// nothing with what it gets: bytes a second and allocations a request.
func BenchmarkObjects(b *testing.B) {
	for _, size := range []int{64 << 10, 1 << 20, 4 << 20} {
		data := storetest.Bytes(size, 1)
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				buf := make([]byte, 256<<10)
				for {
					if _, err := r.Body.Read(buf); err != nil {
						break
					}
				}
				w.WriteHeader(http.StatusCreated)
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(size))
			_, _ = w.Write(data)
		}))
		session := swiftstore.Session{StorageURL: web.URL + "/v1/AUTH_test", Token: "tok"}
		c, err := swiftstore.Dial(swiftstore.Options{Session: &session, Login: config.Login{AuthURL: web.URL, Username: "u"}})
		if err != nil {
			b.Fatal(err)
		}
		s := c.Container("c")
		run := func(name string, do func(object string, p []byte) error) {
			b.Run(fmt.Sprintf("%s/%dKiB", name, size>>10), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.SetParallelism(8)
				var n atomic.Int64
				b.RunParallel(func(pb *testing.PB) {
					object := fmt.Sprint("o", n.Add(1))
					p := make([]byte, size)
					for pb.Next() {
						if err := do(object, p); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
		run("put", func(object string, p []byte) error { return s.Put(b.Context(), object, p, "") })
		run("get", func(object string, p []byte) error {
			_, err := s.Get(b.Context(), object, p, store.GetOptions{Whole: true})
			return err
		})
		c.Close()
		web.Close()
	}
}
