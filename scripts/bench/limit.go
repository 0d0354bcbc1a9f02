// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"swiftnbd/internal/store"
)

// limit is what the Swift and this machine can do: a number of connections
// that get and put objects with nothing but net/http. They are kept alive,
// bodies go into and come from buffers that were there before, no checksum is
// computed, and nothing is looked at but the status and the length. It has the
// plugin's buffer sizes, which are better than net/http's own.
type limit struct {
	cloud     *swiftServer
	conns     int
	transport *http.Transport
	buffers   [][]byte // one a connection
}

func newLimit(c *swiftServer, conns int) *limit {
	return &limit{
		cloud: c, conns: conns,
		transport: &http.Transport{
			MaxIdleConnsPerHost: conns, MaxConnsPerHost: conns,
			DisableCompression: true, WriteBufferSize: 68 << 10, ReadBufferSize: 64 << 10,
		},
		buffers: make([][]byte, conns),
	}
}

// withConns returns a limit of another number of connections.
func (l *limit) withConns(conns int) *limit { return newLimit(l.cloud, conns) }

// buffer returns connection k's buffer of n bytes, filled with random bytes
// when it is made.
func (l *limit) buffer(k int, n int64) []byte {
	if int64(len(l.buffers[k])) < n {
		l.buffers[k] = make([]byte, n)
		r := rand.New(rand.NewPCG(uint64(k), 1))
		for i := 0; i+8 <= len(l.buffers[k]); i += 8 {
			binary.LittleEndian.PutUint64(l.buffers[k][i:], r.Uint64())
		}
	}
	return l.buffers[k][:n]
}

// each lets the connections do items 0 to n-1, each the next that is left, and
// returns how long that took.
func (l *limit) each(n int64, size int64, do func(k int, i int64, buf []byte) error) (time.Duration, error) {
	for k := range l.conns {
		l.buffer(k, size)
	}
	var (
		next  atomic.Int64
		wg    sync.WaitGroup
		once  sync.Once
		first error
	)
	start := time.Now()
	for k := range l.conns {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := next.Add(1) - 1
				if i >= n {
					return
				}
				if err := do(k, i, l.buffer(k, size)); err != nil {
					once.Do(func() { first = err })
					next.Store(n)
					return
				}
			}
		}()
	}
	wg.Wait()
	return time.Since(start), first
}

// request begins a request for a chunk.
func (l *limit) request(method, container string, i int64) (*http.Request, error) {
	u, err := url.Parse(fmt.Sprintf("%s/%s/disk.part/%08d", l.cloud.storage, container, i))
	if err != nil {
		return nil, err
	}
	return &http.Request{
		Method: method, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"X-Auth-Token": {l.cloud.token}},
	}, nil
}

// get reads len(buf) bytes of a chunk from off; the whole of it without a
// range when that is all.
func (l *limit) get(container string, i, off, objectSize int64, buf []byte) error {
	req, err := l.request("GET", container, i)
	if err != nil {
		return err
	}
	want := http.StatusOK
	if int64(len(buf)) != objectSize {
		req.Header["Range"] = []string{fmt.Sprintf("bytes=%d-%d", off, off+int64(len(buf))-1)}
		want = http.StatusPartialContent
	}
	resp, err := l.transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want || resp.ContentLength != int64(len(buf)) {
		return fmt.Errorf("GET %s: %s, %d bytes", req.URL.Path, resp.Status, resp.ContentLength)
	}
	if _, err := io.ReadFull(resp.Body, buf); err != nil {
		return fmt.Errorf("GET %s: %w", req.URL.Path, err)
	}
	_, err = io.Copy(io.Discard, resp.Body) // sees the end
	return err
}

// put stores buf, made distinct, as a chunk.
func (l *limit) put(container string, i int64, buf []byte) error {
	if len(buf) >= 16 {
		binary.LittleEndian.PutUint64(buf, uint64(i))
		binary.LittleEndian.PutUint64(buf[8:], uint64(time.Now().UnixNano()))
	}
	return l.store(container, i, buf, nil)
}

// store stores buf as a chunk.
func (l *limit) store(container string, i int64, buf []byte, header http.Header) error {
	req, err := l.request("PUT", container, i)
	if err != nil {
		return err
	}
	maps.Copy(req.Header, header)
	req.ContentLength = int64(len(buf))
	req.Body = io.NopCloser(bytes.NewReader(buf))
	resp, err := l.transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("PUT %s: %s", req.URL.Path, resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// readAll gets every chunk of the volume and returns MB/s.
func (l *limit) readAll(v *disk) (float64, error) {
	took, err := l.each(v.objects, v.objectSize, func(_ int, i int64, buf []byte) error {
		return l.get(v.container, i, 0, v.objectSize, buf)
	})
	return mbps(v.size(), took), err
}

// writeAll puts every chunk of the volume and returns MB/s.
func (l *limit) writeAll(v *disk) (float64, error) {
	took, err := l.each(v.objects, v.objectSize, func(_ int, i int64, buf []byte) error {
		return l.put(v.container, i, buf)
	})
	return mbps(v.size(), took), err
}

// fill puts every chunk of the volume as the plugin does, with its checksum.
func (l *limit) fill(v *disk) error {
	_, err := l.each(v.objects, v.objectSize, func(_ int, i int64, buf []byte) error {
		binary.LittleEndian.PutUint64(buf, uint64(i))
		return l.store(v.container, i, buf, http.Header{"X-Object-Meta-Swiftnbd-Crc32c": {string(store.ChecksumOf(buf))}})
	})
	return err
}

// mbps is millions of bytes a second.
func mbps(n int64, took time.Duration) float64 { return float64(n) / 1e6 / took.Seconds() }
