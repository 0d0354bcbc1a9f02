// SPDX-License-Identifier: MIT

package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// NumReplicas is how many replicas Replicas keeps of everything.
const NumReplicas = 3

// Replicas is a real Swift with three replicas of each container and object. A
// server of its own keeps each replica, and can be stopped and started. No
// replicator runs, so a replica that missed a change stays behind. The proxies
// never avoid a server because of its errors, so they ask each server equally
// often. The tests of a package share the Swift, and must not run beside each
// other.
type Replicas struct {
	*Cloud
	saio saio
}

// replicaSettings are scripts/saio.sh's for Replicas.
var replicaSettings = []string{fmt.Sprintf("SAIO_REPLICAS=%d", NumReplicas), "SAIO_ERROR_LIMIT=1000000000", "SAIO_LOG=WARNING"}

var (
	replicasOnce sync.Once
	replicas     *Replicas
	replicasErr  error
)

// Replicated returns the Swift with three replicas, with all of its servers
// running. When the test ends, servers that it has stopped are started again.
func Replicated(t testing.TB) *Replicas {
	t.Helper()
	script := filepath.Join(Root(t), "scripts", "saio.sh")
	replicasOnce.Do(func() { replicas, replicasErr = startReplicas(script) })
	if replicasErr != nil {
		t.Fatal(replicasErr)
	}
	t.Cleanup(func() {
		for i := range NumReplicas {
			replicas.Start(t, ObjectServer(i), ContainerServer(i))
		}
	})
	return replicas
}

func startReplicas(script string) (*Replicas, error) {
	dir, err := os.MkdirTemp("", "swiftnbd-replicas")
	if err != nil {
		return nil, err
	}
	s := saio{script, dir}
	if _, err := s.run(replicaSettings, "up"); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	atEnd(func() { s.run(nil, "wipe") })
	vars, err := s.vars(replicaSettings)
	if err != nil {
		return nil, err
	}
	return &Replicas{cloudOf(vars["SWIFTNBD_TEST_AUTH"], vars), s}, nil
}

func cloudOf(auth string, vars map[string]string) *Cloud {
	return &Cloud{AuthURL: auth, User: vars["SWIFTNBD_TEST_USER"], Key: vars["SWIFTNBD_TEST_KEY"]}
}

// ObjectServer names the server that keeps replica i, from 0, of every object.
func ObjectServer(i int) string { return fmt.Sprintf("object-server%d", i%NumReplicas+1) }

// ContainerServer names the server that keeps replica i, from 0, of every
// container.
func ContainerServer(i int) string { return fmt.Sprintf("container-server%d", i%NumReplicas+1) }

// Stop stops servers. What they keep stays as it is.
func (r *Replicas) Stop(t testing.TB, names ...string) {
	t.Helper()
	if _, err := r.saio.run(replicaSettings, append([]string{"stop"}, names...)...); err != nil {
		t.Fatal(err)
	}
}

// Freeze stops running servers with SIGSTOP. Their connections stay open, until
// Stop ends the servers.
func (r *Replicas) Freeze(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(r.saio.dir, "run", name+".pid"))
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatalf("freeze %s: %v", name, err)
		}
	}
}

// Start starts stopped servers with the data that they kept, and waits until
// they answer. It leaves a running server alone.
func (r *Replicas) Start(t testing.TB, names ...string) {
	t.Helper()
	if _, err := r.saio.run(replicaSettings, append([]string{"start"}, names...)...); err != nil {
		t.Fatal(err)
	}
}

// Slow starts a second proxy with a clock that is behind, and returns the Swift
// through this proxy. The proxy is stopped when the test ends.
func (r *Replicas) Slow(t testing.TB, behind time.Duration) *Cloud {
	t.Helper()
	const proxy = "proxy-slow"
	settings := append(replicaSettings[:len(replicaSettings):len(replicaSettings)],
		fmt.Sprintf("SAIO_SKEW=%g", behind.Seconds()))
	r.Stop(t, proxy) // it may have another test's clock
	if _, err := r.saio.run(settings, "start", proxy); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Stop(t, proxy) })
	vars, err := r.saio.vars(settings)
	if err != nil {
		t.Fatal(err)
	}
	return cloudOf(vars["SWIFTNBD_TEST_SLOW_AUTH"], vars)
}

// Forget has a server lose its replicas of all objects, as a disk does that was
// changed for an empty one. The function that it returns brings them back; what
// was written meanwhile is gone then.
func (r *Replicas) Forget(t testing.TB, i int) (remember func()) {
	t.Helper()
	objects := filepath.Join(r.saio.dir, "node", fmt.Sprintf("sd%d", i%NumReplicas+1), "objects")
	lost := objects + ".lost"
	if err := os.Rename(objects, lost); err != nil {
		t.Fatal(err)
	}
	back := sync.OnceFunc(func() {
		if err := os.RemoveAll(objects); err != nil {
			t.Error(err)
		}
		if err := os.Rename(lost, objects); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(back)
	return back
}
