// SPDX-License-Identifier: MIT

package harness

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Filters is a real Swift. Its proxy has filters that the ordinary one lacks:
// name_check, container_sync, staticweb and encryption. It takes objects of
// MaxFileSize at most. The tests of a package share it.
type Filters struct {
	*Cloud
	saio saio
}

// filterSettings are scripts/saio.sh's for Filters.
var filterSettings = []string{"SAIO_PIPELINE=name_check container_sync staticweb encryption", "SAIO_LOG=WARNING", fmt.Sprintf("SAIO_MAX_FILE_SIZE=%d", MaxFileSize)}

// MaxFileSize is the size of the largest object that Filters takes.
const MaxFileSize = 1 << 20

var filtered = sync.OnceValues(func() (*Filters, error) {
	dir, err := os.MkdirTemp("", "swiftnbd-filters")
	if err != nil {
		return nil, err
	}
	s := saio{filtersScript, dir}
	if _, err := s.run(filterSettings, "up"); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	atEnd(func() { s.run(nil, "wipe") })
	vars, err := s.vars(filterSettings)
	if err != nil {
		return nil, err
	}
	return &Filters{cloudOf(vars["SWIFTNBD_TEST_AUTH"], vars), s}, nil
})

var (
	filtersMu     sync.Mutex
	filtersScript string
)

// Filtered returns the Swift with more filters. It is started once.
func Filtered(t testing.TB) *Filters {
	t.Helper()
	filtersMu.Lock()
	defer filtersMu.Unlock()
	filtersScript = filepath.Join(Root(t), "scripts", "saio.sh")
	f, err := filtered()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Objects returns the bytes of every object file, as the object server keeps
// them.
func (f *Filters) Objects(t testing.TB) [][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(f.saio.dir, "node", "*", "objects", "*", "*", "*", "*.data"))
	if err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	for _, name := range files {
		data, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			continue // replaced meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data)
	}
	return all
}

// SyncPut puts an object as container sync does it, for a container whose
// X-Container-Sync-Key is key: with a time that the sender gives it.
func (f *Filters) SyncPut(t testing.TB, a *Account, container, object, key string, at time.Time, data []byte) {
	t.Helper()
	stamp := fmt.Sprintf("%d.%05d", at.Unix(), at.Nanosecond()/1e4)
	u, err := url.Parse(a.StorageURL + "/" + container + "/" + object)
	if err != nil {
		t.Fatal(err)
	}
	const nonce = "nonce"
	mac := hmac.New(sha1.New, []byte("realmkey")) // scripts/saio.sh
	fmt.Fprintf(mac, "PUT\n%s\n%s\n%s\n%s", u.Path, stamp, nonce, key)
	anonymous := Account{StorageURL: a.StorageURL}
	status, _, body := anonymous.Do(t, "PUT", "/"+container+"/"+object, map[string]string{
		"X-Timestamp": stamp, "X-Container-Sync-Auth": "REALM " + nonce + " " + hex.EncodeToString(mac.Sum(nil)),
	}, data)
	if status != 201 {
		t.Fatalf("PUT %s/%s by sync: status %d\n%s", container, object, status, body)
	}
}

// Sync runs one pass of Swift's container sync, after which every container
// with X-Container-Sync-To has been copied, as far as it could be.
func (f *Filters) Sync(t testing.TB) {
	t.Helper()
	if _, err := f.saio.run(filterSettings, "sync"); err != nil {
		t.Fatal(err)
	}
}
