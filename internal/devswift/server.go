// SPDX-License-Identifier: MIT

package devswift

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of Swift 2.30's default configuration, as /info shows them.
const (
	maxFileSize        = 5368709122
	maxMetaName        = 128
	maxMetaValue       = 256
	maxMetaCount       = 90
	maxMetaSize        = 4096
	maxObjectName      = 1024
	maxContainerName   = 256
	listingLimit       = 10000
	maxBulkDeletes     = 10000
	maxFailedDeletes   = 1000
	defaultTokenLife   = 24 * time.Hour
	defaultJournal     = 100_000
	reclaimAge         = 7 * 24 * time.Hour
	stripeCount        = 256
	defaultContentType = "application/octet-stream"
)

// User may log in with "ACCOUNT:NAME" and Key, and owns account AUTH_ACCOUNT.
type User struct {
	Account string
	Name    string
	Key     string
}

// Options configures New. The zero value is an empty Swift in memory with the
// user test:tester, key testing.
type Options struct {
	// Dir is the directory for accounts, containers and objects. If it does not
	// exist, it is created. Empty means in memory.
	Dir string

	// Latency passes between a request's arrival and its answer, for each
	// request by itself.
	Latency time.Duration

	// Bandwidth limits the bytes of bodies per second, in both directions
	// together and over all requests. Zero means unlimited.
	Bandwidth int64

	// Clock gives the time. Nil means time.Now.
	Clock func() time.Time

	// TokenLife is how long a token is good for. Zero means a day.
	TokenLife time.Duration

	// DeadToken is the status of the answer to a token that is not valid, or no
	// longer. Zero means 401, as in Swift. Older gateways answer 403.
	DeadToken int

	// Users may log in. Empty means test:tester with the key testing.
	Users []User

	// Fault is asked about each request; see Action. SetFault replaces it.
	Fault FaultFunc

	// Journal is how many requests the log of Requests can hold. Zero means
	// 100,000, and a negative number means none. Count has no limit.
	Journal int

	// Without names sections of /info that this Swift lacks, together with
	// their features. "tempurl" and "bulk_delete" are known.
	Without []string

	// Policy is the name of the only storage policy. Empty means Policy-0, which
	// is the name of the first one.
	Policy string

	// Logger logs failures of the server itself, such as a full disk. Nil means
	// slog.Default.
	Logger *slog.Logger
}

// Server is an embedded Swift. It is safe for concurrent use.
type Server struct {
	opts    Options
	users   []User // tokens.mu guards the keys
	clock   func() time.Time
	log     *slog.Logger
	ticks   ticker
	disk    *disk // nil when in memory
	without map[string]bool
	policy  string // the name of the only one

	accounts map[string]*account // fixed by New
	tokens   tokens
	journal  journal
	pace     throttle
	delay    *delay // nil without a latency
	fault    atomic.Pointer[FaultFunc]
	seed     maphash.Seed
	stripes  [stripeCount]sync.Mutex
	active   atomic.Int64
	// accountAway says that no account server answers; see SetAccountAway.
	accountAway atomic.Bool
	closed      chan struct{}
	closing     sync.Once
}

// New returns a Server that is ready to answer. With Options.Dir it reads the
// data that an earlier Server left there. No other Server may use the
// directory.
func New(o Options) (*Server, error) {
	s := &Server{
		opts:     o,
		users:    slices.Clone(o.Users),
		clock:    o.Clock,
		log:      o.Logger,
		accounts: map[string]*account{},
		without:  map[string]bool{},
		seed:     maphash.MakeSeed(),
		closed:   make(chan struct{}),
		policy:   cmp.Or(o.Policy, firstPolicy),
	}
	if len(s.users) == 0 {
		s.users = []User{{Account: "test", Name: "tester", Key: "testing"}}
	}
	if s.clock == nil {
		s.clock = time.Now
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.opts.TokenLife == 0 {
		s.opts.TokenLife = defaultTokenLife
	}
	if s.opts.Journal == 0 {
		s.opts.Journal = defaultJournal
	}
	for _, section := range o.Without {
		s.without[section] = true
	}
	s.journal.limit = s.opts.Journal
	s.pace.rate = o.Bandwidth
	s.SetFault(o.Fault)
	for _, u := range s.users {
		name := "AUTH_" + u.Account
		if s.accounts[name] == nil {
			s.accounts[name] = newAccount(name, s.now())
		}
	}
	if o.Dir != "" {
		d, err := openDisk(o.Dir, s.log)
		if err != nil {
			return nil, err
		}
		s.disk = d
		for _, a := range s.accounts {
			if err := d.load(a, s.now()); err != nil {
				d.close()
				return nil, err
			}
		}
	}
	if o.Latency > 0 {
		d, err := newDelay(o.Latency, s.closed)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.delay = d
	}
	return s, nil
}

// Close ends the requests that hang because of a fault, and unlocks the
// directory. The http.Server in front must be closed first.
func (s *Server) Close() error {
	var err error
	s.closing.Do(func() {
		close(s.closed)
		if s.disk != nil {
			err = s.disk.close()
		}
	})
	return err
}

// Active returns how many requests are under way.
func (s *Server) Active() int { return int(s.active.Load()) }

// now is the proxy's time, as a timestamp that was not given out before.
func (s *Server) now() timestamp { return s.ticks.next(s.clock()) }

// stripe returns the mutex that serialises changes of one object.
func (s *Server) stripe(container, object string) *sync.Mutex {
	var h maphash.Hash
	h.SetSeed(s.seed)
	h.WriteString(container)
	h.WriteByte('/')
	h.WriteString(object)
	return &s.stripes[h.Sum64()%stripeCount]
}

// newTransID returns a value for X-Trans-Id.
func newTransID(now time.Time) string {
	var b [11]byte
	rand.Read(b[:])
	return "tx" + hex.EncodeToString(b[:])[:21] + "-" + fmt.Sprintf("%010x", now.Unix())
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	s.active.Add(1)
	defer s.active.Add(-1)
	if s.delay != nil {
		// A request that has arrived takes effect even if its client is gone.
		s.delay.wait(r.Context())
	}
	c := newCall(s, w, r)
	defer func() {
		s.journal.add(Record{
			Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery,
			Status: c.status, Received: c.received, Sent: c.sent,
			Start: start, Duration: time.Since(start), TransID: c.transID,
		})
	}()
	s.serveFaulty(c)
	c.drainBody()
}
