// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"swiftnbd/internal/cloud"
	"swiftnbd/internal/config"
	"swiftnbd/internal/device"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
)

// profileJobs are what --profile can do to a device without nbdkit.
var profileJobs = map[string]func(*suite, *disk, *device.Device) (profiled, error){
	"seq-read": func(s *suite, v *disk, d *device.Device) (profiled, error) {
		return drive(v.size()>>20, 16, func(i int64, buf []byte) error {
			_, err := d.ReadAt(buf, i<<20)
			return err
		}, nil, 1<<20)
	},
	"seq-write": func(s *suite, v *disk, d *device.Device) (profiled, error) {
		return drive(v.size()>>20, 16, func(i int64, buf []byte) error {
			_, err := d.WriteAt(buf, i<<20)
			return err
		}, d.Sync, 1<<20)
	},
	"cold-rand-read": func(s *suite, v *disk, d *device.Device) (profiled, error) {
		const span = 64 << 10
		places := rand.Perm(int(v.size() / span))
		return drive(min(2400, int64(len(places))), 16, func(i int64, buf []byte) error {
			_, err := d.ReadAt(buf, int64(places[i])*span)
			return err
		}, nil, 4096)
	},
	"warm-rand-read": func(s *suite, v *disk, d *device.Device) (profiled, error) {
		blocks := min(warmSize, v.size()) / 4096
		if err := d.Prefetch(0, blocks*4096); err != nil {
			return profiled{}, err
		}
		return drive(3_000_000, 16, func(i int64, buf []byte) error {
			_, err := d.ReadAt(buf, rand.Int64N(blocks)*4096)
			return err
		}, nil, 4096)
	},
	"rand-write": func(s *suite, v *disk, d *device.Device) (profiled, error) {
		end := time.Now().Add(s.short(8 * time.Second))
		return drive(1<<40, 16, func(i int64, buf []byte) error {
			if time.Now().After(end) {
				return errDone
			}
			_, err := d.WriteAt(buf, rand.Int64N(v.size()/4096)*4096)
			return err
		}, nil, 4096)
	},
	"rand-write-flush": func(s *suite, v *disk, d *device.Device) (profiled, error) {
		return drive(200, 1, func(i int64, buf []byte) error {
			if _, err := d.WriteAt(buf, rand.Int64N(v.size()/4096)*4096); err != nil {
				return err
			}
			return d.Sync()
		}, nil, 4096)
	},
}

var errDone = fmt.Errorf("done")

// profiled is what a job did.
type profiled struct {
	bytes, ios int64
	took       time.Duration
}

// drive does items 0 to n-1 with as many goroutines as clients, and then last.
func drive(n int64, clients int, do func(i int64, buf []byte) error, last func() error, size int) (profiled, error) {
	var (
		next, done atomic.Int64
		wg         sync.WaitGroup
		once       sync.Once
		first      error
	)
	bufs := make([][]byte, clients)
	for k := range bufs {
		bufs[k] = make([]byte, size)
		for i := range bufs[k] {
			bufs[k][i] = byte(rand.Uint32())
		}
	}
	start := time.Now()
	for _, buf := range bufs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := next.Add(1) - 1
				if i >= n {
					return
				}
				binary.LittleEndian.PutUint64(buf, uint64(i))
				if err := do(i, buf); err != nil {
					if !errors.Is(err, errDone) {
						once.Do(func() { first = err })
					}
					next.Store(n)
					return
				}
				done.Add(1)
			}
		}()
	}
	wg.Wait()
	if first == nil && last != nil {
		first = last()
	}
	return profiled{done.Load() * int64(size), done.Load(), time.Since(start)}, first
}

// profile does the job of a line, such as seq-read/dev/4M, to a device in this
// process, writes profiles of it into build/, and prints what was done.
func (s *suite) profile(name string) error {
	parts := strings.Split(name, "/")
	job := profileJobs[parts[0]]
	if len(parts) != 3 || job == nil {
		var names []string
		for n := range profileJobs {
			names = append(names, n)
		}
		slices.Sort(names)
		return fmt.Errorf("--profile wants JOB/SWIFT/OBJECTSIZE, such as seq-read/dev/1M, or v2 or v2-scattered as the size; jobs are %s", strings.Join(names, ", "))
	}
	v, err := s.profileDisk(parts[1], parts[2])
	if err != nil {
		return err
	}
	if err := v.setUp(false); err != nil {
		return err
	}
	d, closeClient, err := s.openDevice(v, nil)
	if err != nil {
		return err
	}
	defer closeClient()
	before, err := v.cloud.counts(v.container)
	if err != nil {
		return err
	}
	runtime.SetBlockProfileRate(10_000)
	runtime.SetMutexProfileFraction(10)
	base := filepath.Join(s.build, strings.ReplaceAll(name, "/", "-"))
	f, err := os.Create(base + ".cpu")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	p, err := job(s, v, d)
	pprof.StopCPUProfile()
	if err != nil {
		return err
	}
	for _, kind := range []string{"block", "mutex"} {
		g, err := os.Create(base + "." + kind)
		if err != nil {
			return err
		}
		defer g.Close()
		if err := pprof.Lookup(kind).WriteTo(g, 0); err != nil {
			return err
		}
	}
	after, err := v.cloud.counts(v.container)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %.0f MB/s, %.0f IOPS, %v; %v\n", name, mbps(p.bytes, p.took),
		float64(p.ios)/p.took.Seconds(), p.took.Round(time.Millisecond), after.minus(before))
	st := d.Stats()
	fmt.Printf("cache: hits %d, misses %d, fetches %d, fills %d, ahead %d, uploads %d, evicted %d, flushes %d\n",
		st.Hits, st.Misses, st.Fetches, st.Fills, st.Ahead, st.Uploads, st.Evicted, st.Flushes)
	fmt.Printf("profiles: %s.cpu .block .mutex; go tool pprof -top %s.cpu\n", base, base)
	if parts[0] == "rand-write" {
		d.Abandon()
		return nil
	}
	return d.Close()
}

// profileDisk returns a full disk with objects of that size, or one of version 2
// that was written in order or at random.
func (s *suite) profileDisk(cloud, kind string) (*disk, error) {
	switch kind {
	case "v2":
		return s.filledLog(cloud, s.bulk(cloud, 1<<20), inOrder)
	case "v2-scattered":
		return s.filledLog(cloud, s.bulk(cloud, 1<<20), atRandom)
	}
	size, err := config.ParseSize(kind)
	if err != nil {
		return nil, err
	}
	return s.filled(cloud, size, s.bulk(cloud, size))
}

// openDevice opens a disk as the plugin does. change may be nil, or change the
// options.
func (s *suite) openDevice(v *disk, change func(*device.Options)) (*device.Device, func(), error) {
	account, client, err := cloud.Dial(swiftstore.Options{
		Login:     config.Login{AuthURL: v.cloud.authURL, Username: userName, Password: userKey},
		Container: v.container, Connections: s.conns, Timeout: time.Minute,
	}, cloud.Options{Connections: s.conns, Policy: store.Policy{Timeout: time.Minute}})
	if err != nil {
		return nil, nil, err
	}
	var o device.Options
	for _, p := range s.extra {
		key, value, _ := strings.Cut(p, "=")
		n, err := config.ParseSize(value)
		switch {
		case err != nil:
			return nil, nil, fmt.Errorf("%s: %w", p, err)
		case key == "cache":
			o.Cache = n
		case key == "readahead":
			o.Readahead = cmp.Or(n, -1)
		default:
			return nil, nil, fmt.Errorf("--profile takes no %s", key)
		}
	}
	o.Store, o.Lease = account.Writer(v.container, time.Minute)
	o.Holder, o.Connections, o.Timeout = "bench", s.conns, time.Minute
	o.Log = func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	if change != nil {
		change(&o)
	}
	d, err := device.Open(s.ctx, o)
	return d, func() { client.Close() }, err
}
