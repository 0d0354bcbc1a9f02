// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"net/http"
	"os"
	"strconv"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/volume"
)

// disk is a volume in a cloud, every chunk of which may hold random bytes.
type disk struct {
	cloud      *swiftServer
	container  string
	objectSize int64
	objects    int64
	log        bool // it is of version 2; then the two numbers above only say how large it is
}

func (v *disk) size() int64 { return v.objectSize * v.objects }

// diskKey is what makes one filled disk as good as another.
type diskKey struct {
	cloud      string
	objectSize int64
	objects    int64
	fill       string // of version 2, how it was filled
}

// filled returns a disk of about bytes bytes that is full of random bytes. It
// is made at its first use and kept: whoever uses it must leave it full.
func (s *suite) filled(cloud string, objectSize, bytes int64) (*disk, error) {
	key := diskKey{cloud, objectSize, max(1, bytes/objectSize), ""}
	if v := s.disks[key]; v != nil {
		return v, nil
	}
	v, err := s.empty(cloud, objectSize, bytes)
	if err != nil {
		return nil, err
	}
	s.logf("filling %s: %d objects of %s", v.container, v.objects, sizeName(v.objectSize))
	if err := v.cloud.limit.fill(v); err != nil {
		return nil, err
	}
	s.disks[key] = v
	return v, nil
}

// empty makes a disk without objects.
func (s *suite) empty(cloud string, objectSize, bytes int64) (*disk, error) {
	c, err := s.cloud(cloud)
	if err != nil {
		return nil, err
	}
	s.serial++
	v := &disk{
		cloud: c, container: fmt.Sprintf("bench%d-%d", os.Getpid(), s.serial),
		objectSize: objectSize, objects: max(1, bytes/objectSize),
	}
	return v, v.setUp(true)
}

// The metadata of a volume, as headers.
func metaHeader(key string) string { return "X-Container-Meta-" + key }

// setUp writes the volume's metadata as if it had been left in order. blank
// says that it has no objects, which the plugin may then rely on; otherwise it
// knows nothing of them. A disk of version 2 is set up when it is made.
func (v *disk) setUp(blank bool) error {
	if v.log {
		return nil
	}
	header := map[string]string{
		metaHeader(volume.KeyVersion):    strconv.Itoa(volume.Version1),
		metaHeader(volume.KeyObjects):    strconv.FormatInt(v.objects, 10),
		metaHeader(volume.KeyObjectSize): strconv.FormatInt(v.objectSize, 10),
		metaHeader(volume.KeyClient):     "",
		metaHeader(volume.KeyLast):       "bench@1",
		metaHeader(volume.KeyBlank):      "",
		metaHeader(volume.KeyMap):        "",
	}
	if blank {
		header[metaHeader(volume.KeyBlank)] = "bench@1"
	}
	_, err := v.cloud.call("PUT", v.container, header)
	return err
}

// remove deletes the disk's objects, to have their space back.
func (v *disk) remove() error {
	_, err := v.cloud.limit.each(v.objects, 0, func(_ int, i int64, _ []byte) error {
		_, err := v.cloud.call("DELETE", fmt.Sprintf("%s/%s%08d", v.container, chunked.Prefix, i), nil, http.StatusNotFound)
		return err
	})
	return err
}

// counting does something, and returns the requests for the disk's objects that
// were made meanwhile.
func (v *disk) counting(do func() error) (counts, error) {
	before, err := v.cloud.counts(v.container)
	if err != nil {
		return nil, err
	}
	if err := do(); err != nil {
		return nil, err
	}
	after, err := v.cloud.counts(v.container)
	return after.minus(before), err
}

// counted is fio, and counting.
func (s *suite) counted(v *disk, j fioJob) (f fioResult, made counts, err error) {
	made, err = v.counting(func() (err error) {
		f, err = s.fio(j)
		return err
	})
	return f, made, err
}
