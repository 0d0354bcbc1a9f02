// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	pgbenchClients = 8
	// pgbenchScale is pgbench's: with fewer branches than clients the clients
	// would wait for each other's locks even more.
	pgbenchScale = pgbenchClients
	pgbenchSize  = 1 << 30
)

// pgbench has PostgreSQL on ext4 commit transactions of eight clients, against what
// its flushes allow when each takes one PUT.
func (s *suite) pgbench(cloud string) line {
	l := line{
		name: "v2/pgbench/" + cloud, target: 0.95, least: true,
		what: fmt.Sprintf("version 2: transactions a second of pgbench -c %d on PostgreSQL on ext4, %s, against one PUT of 8 KiB for each of the file system's flushes", pgbenchClients, s.cloudName(cloud)),
	}
	l.run = func(r *result) error {
		return s.commitRate(r, cloud, "transaction", func(ideal time.Duration) (databaseRun, error) {
			return s.onExt4(cloud, pgbenchSize, ideal, func(run *databaseRun, v *disk, log, mnt string) error {
				return s.pgbenchOn(run, v, log, mnt, s.short(10*time.Second))
			})
		})
	}
	return l
}

// postgres is a PostgreSQL that runs as a user without rights.
type postgres struct {
	s        *suite
	bin, dir string // of its programs, and of its socket
	cred     *syscall.Credential
}

// newPostgres finds PostgreSQL's programs and the user, and makes the directory of
// the socket.
func (s *suite) newPostgres() (*postgres, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // Debian's
	if err != nil || len(found) == 0 {
		return nil, errors.Join(err, errors.New("PostgreSQL is not installed: scripts/deps.sh install bench"))
	}
	slices.Sort(found)
	p := &postgres{s: s, bin: filepath.Dir(found[len(found)-1]), dir: s.path("pg")}
	u, err := user.Lookup("nobody")
	if err != nil {
		return nil, err
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	p.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	// That user goes through the suite's directory, and cannot list it. The files
	// with credentials in it are root's alone.
	return p, errors.Join(os.Chmod(s.dir, 0o711), os.Mkdir(p.dir, 0o700), os.Chown(p.dir, int(uid), int(gid)))
}

// command is one of PostgreSQL's programs, as its user.
func (p *postgres) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(p.s.ctx, filepath.Join(p.bin, name), args...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "PGHOST=" + p.dir, "PGUSER=bench", "PGDATABASE=postgres"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.cred, Pdeathsig: syscall.SIGTERM}
	return cmd
}

// run runs one of the programs to its end, and returns what it printed.
func (p *postgres) run(name string, args ...string) (string, error) {
	out, err := p.command(name, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// serve starts the server on the data in a directory, with its default settings but
// for args, and returns what ends it.
func (p *postgres) serve(data string, args ...string) (stop func() error, err error) {
	var said bytes.Buffer
	cmd := p.command("postgres", append([]string{"-D", data, "-c", "listen_addresses=", "-c", "unix_socket_directories=" + p.dir}, args...)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return nil } // it ends in order, or what is mounted stays busy
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	gone := false
	stop = func() error {
		if gone {
			return nil
		}
		gone = true
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil { // a fast shutdown
			return err
		}
		select {
		case err := <-ended:
			if err != nil {
				err = fmt.Errorf("postgres: %w\n%s", err, said.String())
			}
			return err
		case <-time.After(startTimeout):
			cmd.Process.Signal(syscall.SIGQUIT) // an immediate one
			return errors.Join(errors.New("postgres did not end in time"), <-ended)
		}
	}
	for deadline := time.Now().Add(startTimeout); ; {
		if _, err := p.run("pg_isready", "-q"); err == nil {
			return stop, nil
		}
		select {
		case err := <-ended:
			return nil, fmt.Errorf("postgres did not start: %w\n%s", err, said.String())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(errors.New("postgres did not start in time"), stop())
		}
	}
}

// pgbenchOn makes a database below mnt and runs pgbench on it for d.
func (s *suite) pgbenchOn(run *databaseRun, v *disk, log, mnt string, d time.Duration) (err error) {
	p, err := s.newPostgres()
	if err != nil {
		return err
	}
	data := filepath.Join(mnt, "pg")
	if err := errors.Join(os.Chmod(mnt, 0o755), os.Mkdir(data, 0o700), os.Chown(data, int(p.cred.Uid), int(p.cred.Gid))); err != nil {
		return err
	}
	if _, err := p.run("initdb", "-D", data, "-U", "bench", "-A", "trust", "--no-locale", "-E", "UTF8", "--no-sync"); err != nil {
		return err
	}
	// The data is made without a flush for each step, and synced at the end.
	stop, err := p.serve(data, "-c", "fsync=off", "-c", "wal_level=minimal", "-c", "max_wal_senders=0")
	if err != nil {
		return err
	}
	_, err = p.run("pgbench", "-i", "-q", "-s", fmt.Sprint(pgbenchScale))
	if err = errors.Join(err, stop(), s.command("sync", "-f", mnt)); err != nil {
		return err
	}
	if stop, err = p.serve(data); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	return s.passed(run, v, log, func() error {
		out, err := p.run("pgbench", "-n", "-c", fmt.Sprint(pgbenchClients), "-j", "2", "-T", fmt.Sprint(max(1, int(d.Seconds()))))
		if err != nil {
			return err
		}
		run.commits, run.seconds, err = parsePgbench(out)
		return err
	})
}

// parsePgbench finds in what pgbench 15 has printed how many transactions it made,
// and in how many seconds.
func parsePgbench(out string) (commits int, seconds float64, err error) {
	var failed int
	var tps float64
	for l := range strings.Lines(out) {
		_, _ = fmt.Sscanf(l, "number of transactions actually processed: %d", &commits)
		_, _ = fmt.Sscanf(l, "number of failed transactions: %d", &failed)
		_, _ = fmt.Sscanf(l, "tps = %g (without initial connection time)", &tps)
	}
	if commits == 0 || tps <= 0 || failed > 0 {
		return 0, 0, fmt.Errorf("pgbench has made %d transactions, %g a second, and %d failed:\n%s", commits, tps, failed, out)
	}
	return commits, float64(commits) / tps, nil
}
