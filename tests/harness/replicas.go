// SPDX-License-Identifier: MIT

package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// NumReplicas is how many replicas Replicas keeps of everything.
const NumReplicas = 3

// Replicas is a real Swift with three replicas of each container and object,
// every one of them kept by a server of its own that can be stopped and
// started. No replicator runs, so a replica that missed a change stays behind,
// and its proxies never leave a server alone for its errors, so it is asked as
// often as the others. It is shared by the tests of a package, which must not
// run beside each other.
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
// running. Those that the test stops are started again when it ends.
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

// Start starts servers that were stopped, with what they kept, and waits until
// they answer. One that runs is left alone.
func (r *Replicas) Start(t testing.TB, names ...string) {
	t.Helper()
	if _, err := r.saio.run(replicaSettings, append([]string{"start"}, names...)...); err != nil {
		t.Fatal(err)
	}
}

// Slow starts a second proxy, whose clock is behind by that, and returns the
// way through it. It is stopped when the test ends.
func (r *Replicas) Slow(t testing.TB, behind time.Duration) *Cloud {
	t.Helper()
	const proxy = "proxy-slow"
	settings := append(replicaSettings[:len(replicaSettings):len(replicaSettings)],
		fmt.Sprintf("SAIO_SKEW=%g", behind.Seconds()))
	r.Stop(t, proxy) // its clock may be another's
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
