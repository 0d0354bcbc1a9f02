// SPDX-License-Identifier: MIT

package crash

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

// fuse is the disk as a file, made by nbdfuse.
type fuse struct {
	t    *testing.T
	dir  string
	path string // of the file
	p    *harness.Process
}

func mountFuse(t *testing.T, uri string) *fuse {
	t.Helper()
	f := &fuse{t: t, dir: t.TempDir()}
	f.path = filepath.Join(f.dir, "disk")
	harness.WriteFile(t, f.path, "") // the place that the file is mounted on
	f.p = harness.Start(t, harness.Command(t, "nbdfuse", f.path, uri))
	harness.Eventually(t, "nbdfuse mounts", func() bool {
		if !f.p.Running() {
			t.Fatalf("nbdfuse has ended: %s", f.p.Output())
		}
		info, err := os.Stat(f.path)
		return err == nil && info.Size() > 0
	})
	t.Cleanup(f.unmount)
	return f
}

// unmount takes the file down, whether or not nbdkit still lives.
func (f *fuse) unmount() {
	if f.p == nil {
		return
	}
	_ = syscall.Unmount(f.path, syscall.MNT_DETACH) // fails where nbdfuse has gone by itself
	f.p.Wait(f.t)
	f.p = nil
}

// loop is a loop device over a file, with ext4 on it mounted.
type loop struct {
	t           *testing.T
	device, dir string
}

func mountExt4(t *testing.T, file string) *loop {
	t.Helper()
	l := &loop{t: t, dir: t.TempDir()}
	l.device = strings.TrimSpace(harness.Must(t, "losetup", "--find", "--show", file))
	t.Cleanup(l.unmount)
	harness.Must(t, "mount", "-t", "ext4", "-o", "errors=remount-ro", l.device, l.dir)
	return l
}

func (l *loop) unmount() {
	if l.device == "" {
		return
	}
	// After a crash below there is nothing to be written any more. Whoever
	// looks at all mounted file systems makes this one busy for a moment.
	harness.Eventually(l.t, l.dir+" is unmounted", func() bool {
		return harness.Run(l.t, "umount", l.dir).Status == 0
	})
	harness.Run(l.t, "losetup", "--detach", l.device)
	l.device = ""
}

// files is what has been made durable by fsync, by the file's name.
type files map[string][]byte

// work writes files, each with fsync and its directory's, until nbdkit is gone.
// Each is made under another name and renamed over the old one. A file that is
// being written when it goes may be old or new: it is taken out of f.
func (f files) work(dir string, rng *rand.Rand) {
	for {
		name := fmt.Sprintf("f%03d", rng.IntN(200))
		content := make([]byte, 1+rng.IntN(60000))
		for i := range content {
			content[i] = byte(rng.Uint32())
		}
		delete(f, name)
		if err := durable(dir, name, content); err != nil {
			return
		}
		f[name] = content
	}
}

func durable(dir, name string, content []byte) error {
	file, err := os.Create(filepath.Join(dir, name+".new"))
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// TestKillExt4 has a real ext4 on the disk, with files that are written and
// made durable, and nbdkit killed under it. What Swift holds must then be a
// file system that its journal repairs, with every durable file in it, and the
// next nbdkit takes the dead one's lease over by itself.
func TestKillExt4(t *testing.T) {
	t.Parallel()
	harness.NeedRoot(t)
	rng := newRand(t)
	d := newDisk(t, 96, 1<<20, "cache=16M", "writeback-age=0.3")
	uri := d.start()
	image := filepath.Join(t.TempDir(), "image")
	fsck := func(flag string, most int) {
		t.Helper()
		if r := harness.Run(t, "e2fsck", "-f", flag, image); r.Status < 0 || r.Status > most {
			t.Fatalf("e2fsck %s: exit status %d\n%s%s", flag, r.Status, r.Stdout, r.Stderr)
		}
	}
	f := mountFuse(t, uri)
	harness.Must(t, "mkfs.ext4", "-q", "-F", f.path)
	kept := files{}
	for round := range *killsFlag {
		l := mountExt4(t, f.path)
		done := make(chan struct{})
		seed := rng.Uint64()
		go func() {
			defer close(done)
			kept.work(l.dir, rand.New(rand.NewPCG(seed, 1)))
		}()
		time.Sleep(time.Duration(200+rng.IntN(1500)) * time.Millisecond)
		d.n.Kill(t)
		<-done
		l.unmount()
		f.unmount()

		uri = d.takeOver()
		harness.Must(t, "nbdcopy", uri, image)
		// The journal, and the counts in the superblock that ext4 keeps
		// out of it, may be put right (1); that is all that a preen does
		// before it gives up (4).
		fsck("-p", 1)
		fsck("-n", 0)
		at := mountExt4(t, image)
		for name, content := range kept {
			got, err := os.ReadFile(filepath.Join(at.dir, name))
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("round %d: %s, which was durable, is not there as it was: %v", round, name, err)
			}
		}
		at.unmount()
		if t.Failed() {
			return
		}
		f = mountFuse(t, uri)
	}
	t.Logf("%d files are durable", len(kept))
	f.unmount()
	d.n.Stop(t)
}

// TestFile does to the disk, as a file, what fsx does: reads, writes, punches
// holes, makes durable, in random places, and holds every read against what
// must be there; with nbdkit stopped and started again in between.
func TestFile(t *testing.T) {
	harness.NeedRoot(t)
	for _, objectSize := range []int64{64 << 10, 1 << 20, 100000} {
		t.Run(strconv.FormatInt(objectSize, 10), func(t *testing.T) {
			t.Parallel()
			rng := newRand(t)
			d := newDisk(t, (16<<20)/objectSize, objectSize, fmt.Sprintf("cache=%d", max(2<<20, 5*objectSize)), "writeback-age=0.1")
			want := make([]byte, (16<<20)/objectSize*objectSize)
			const lives = 3
			for range lives {
				f := mountFuse(t, d.start())
				file, err := os.OpenFile(f.path, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				for range *stepsFlag / lives {
					step(t, file, want, rng)
					if t.Failed() {
						break
					}
				}
				if err := errors.Join(file.Sync(), file.Close()); err != nil {
					t.Error(err)
				}
				f.unmount()
				d.n.Stop(t)
				if got := d.account.Read011(t, d.name); !bytes.Equal(got, want) {
					t.Fatal("Swift does not hold what was written")
				}
			}
		})
	}
}

func step(t *testing.T, file *os.File, want []byte, rng *rand.Rand) {
	t.Helper()
	off := rng.IntN(len(want))
	n := 1 + rng.IntN(min(len(want)-off, 1<<rng.IntN(19)))
	switch x := rng.IntN(100); {
	case x < 45:
		for i := range want[off : off+n] {
			want[off+i] = byte(rng.Uint32())
		}
		if _, err := file.WriteAt(want[off:off+n], int64(off)); err != nil {
			t.Error(err)
		}
	case x < 90:
		got := make([]byte, n)
		if _, err := file.ReadAt(got, int64(off)); err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, want[off:off+n]) {
			t.Errorf("%d bytes at %d are not what was written", n, off)
		}
	case x < 95:
		if err := file.Sync(); err != nil {
			t.Error(err)
		}
	default:
		const punch = 3 // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
		err := syscall.Fallocate(int(file.Fd()), punch, int64(off), int64(n))
		if err == syscall.EOPNOTSUPP || err == syscall.ENOSYS {
			return
		}
		if err != nil {
			t.Error(err)
		}
		clear(want[off : off+n])
	}
}
