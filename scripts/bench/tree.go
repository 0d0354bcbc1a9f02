// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The tree job is what a person does first with a new disk: mkfs.ext4, mount,
// untar a source tree, sync, umount. The host has no NBD client in its kernel,
// so nbdfuse makes a file of the disk and a loop device a disk of the file:
// ext4 and mkfs are the kernel's and the real ones, discards arrive as trims,
// and flushes where ext4 wants them. It takes root.

// sourceTree makes a tar archive of a source tree that is on every machine
// that can build this: some of Go's own library.
func (s *suite) sourceTree() (string, error) {
	if s.tarball != "" {
		return s.tarball, nil
	}
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	root := filepath.Join(strings.TrimSpace(string(out)), "src")
	path := s.path("tree.tar")
	cmd := exec.Command("tar", "-C", root, "--owner=0", "--group=0", "-cf", path, "net", "go", "encoding", "internal", "cmd/internal")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("tar: %w\n%s", err, out)
	}
	s.tarball = path
	return path, nil
}

// treeSize is the disk of the tree job.
const treeSize = 256 << 20

// onFile does the tree job on a file, which is a disk in some FUSE.
func (s *suite) onFile(file string) (time.Duration, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("mounting takes root")
	}
	tarball, err := s.sourceTree()
	if err != nil {
		return 0, err
	}
	mnt := s.path("mnt")
	if err := os.Mkdir(mnt, 0o777); err != nil {
		return 0, err
	}
	start := time.Now()
	if err := s.command("mkfs.ext4", "-q", "-F", file); err != nil {
		return 0, err
	}
	if err := s.command("mount", "-o", "loop,discard", file, mnt); err != nil {
		return 0, err
	}
	err = s.command("tar", "-C", mnt, "-xf", tarball)
	if err == nil {
		err = s.command("sync", "-f", mnt)
	}
	if e := s.command("umount", mnt); err == nil {
		err = e
	}
	return time.Since(start), err
}

// command runs a program to its end.
func (s *suite) command(name string, args ...string) error {
	path, err := lookPath(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// lookPath finds a program, also where only root looks.
func lookPath(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

// fuse starts a program that mounts a FUSE on dir in the foreground, waits for
// file to be there, and returns what unmounts it and waits for its end.
func (s *suite) fuse(dir, file, name string, args ...string) (func() error, error) {
	var said bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	gone := false
	stop := func() error {
		if gone {
			return nil
		}
		gone = true
		if err := s.command("umount", dir); err != nil {
			cmd.Process.Kill()
			<-ended
			return err
		}
		select {
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", name, err, said.String())
			}
			return nil
		case <-time.After(startTimeout):
			cmd.Process.Kill()
			return fmt.Errorf("%s did not end in time\n%s", name, said.String())
		}
	}
	for deadline := time.Now().Add(startTimeout); ; {
		if _, err := os.Stat(file); err == nil {
			s.atEnd(stop)
			return stop, nil
		}
		select {
		case err := <-ended:
			return nil, fmt.Errorf("%s did not start: %w\n%s", name, err, said.String())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			return nil, fmt.Errorf("%s did not start in time\n%s", name, said.String())
		}
	}
}

// tree is what the tree job cost.
type tree struct {
	took     time.Duration
	requests counts
	chunks   int64 // that the client has read or written
}

// tree does the tree job on a new disk behind the plugin.
func (s *suite) tree(cloud string, size int64, params ...string) (tree, error) {
	v, err := s.empty(cloud, size, treeSize)
	if err != nil {
		return tree{}, err
	}
	return s.treeOn(v, size, params...)
}

// treeOn does the tree job on a new disk, whose chunks count as size bytes.
func (s *suite) treeOn(v *disk, size int64, params ...string) (tree, error) {
	log := s.path("log")
	n, err := s.serveArgs(v, true, []string{"--filter=log"}, append(params, "logfile="+log)...)
	if err != nil {
		return tree{}, err
	}
	defer n.kill()
	dir := s.path("fuse")
	if err := os.Mkdir(dir, 0o777); err != nil {
		return tree{}, err
	}
	file := filepath.Join(dir, "disk")
	unmount, err := s.fuse(dir, file, "nbdfuse", file, n.uri)
	if err != nil {
		return tree{}, err
	}
	took, err := s.onFile(file)
	begin := time.Now()
	if e := unmount(); err == nil {
		err = e
	}
	if err != nil {
		return tree{}, err
	}
	// What the file system has not flushed is written when nbdkit ends.
	if err := n.stop(); err != nil {
		return tree{}, err
	}
	took += time.Since(begin)
	requests, err := v.cloud.counts(v.container)
	if err != nil {
		return tree{}, err
	}
	chunks, err := touched(log, size)
	return tree{took, requests, chunks}, err
}

// touched counts the chunks that a client has read or written, by the log
// filter's file: "… connection=1 Write id=2 offset=0x0 count=0x1000 …". Trims
// and zeroes are not counted, since they need not touch anything.
func touched(log string, size int64) (int64, error) {
	f, err := os.Open(log)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	chunks := make(map[int64]bool)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		for _, kind := range []string{" Read id=", " Write id="} {
			_, rest, ok := strings.Cut(lines.Text(), kind)
			if !ok {
				continue
			}
			var id, off, count int64
			if _, err := fmt.Sscanf(rest, "%d offset=0x%x count=0x%x", &id, &off, &count); err != nil {
				return 0, fmt.Errorf("the log filter wrote %q: %w", lines.Text(), err)
			}
			for c := off / size; c <= (off+count-1)/size; c++ {
				chunks[c] = true
			}
		}
	}
	return int64(len(chunks)), lines.Err()
}

// treeLine is the tree job's requests against the chunks that it touches.
func (s *suite) treeLine(cloud string, size int64) line {
	l := line{
		name: fmt.Sprintf("untar/%s/%s", cloud, sizeName(size)), target: 1.2,
		what: fmt.Sprintf("mkfs.ext4, mount, untar a source tree, sync, umount: requests to Swift against chunks read or written, %s objects, %s", sizeName(size), s.cloudName(cloud)),
	}
	l.run = func(r *result) error {
		r.Peer = "chunks"
		var last tree
		err := s.pairs(r, "requests", func() (float64, error) {
			var err error
			last, err = s.tree(cloud, size)
			return float64(last.chunks), err
		}, func() (float64, error) { return float64(last.requests.total()), nil })
		r.note("%v; the last took %.1f s", last.requests, last.took.Seconds())
		return err
	}
	return l
}
