// SPDX-License-Identifier: MIT

// Package store is the interface of an object store. It has the few requests that
// a volume makes of one container, what they promise, and the errors they end
// with. Its subpackages are the stores: swift (OpenStack Swift through
// ncw/swift), mem (in memory, for tests) and faulty (a decorator that fails on
// demand). Ordered, Limiter and Retry decorate any of them. The suite of
// storetest holds all of them to the same behaviour.
package store

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// ETag is the MD5 of an object's bytes in lower-case hexadecimal, without
// quotes, as Swift computes it for a plain object. The empty ETag is "not
// known".
type ETag string

// ObjectInfo is what a store says of one object.
type ObjectInfo struct {
	Name         string
	Size         int64 // bytes of the whole object, also when a range was read
	ETag         ETag
	Checksum     Checksum // empty in a listing too
	LastModified time.Time
	// Elsewhere is not empty if the bytes of the answer are not the object's
	// own. It says then what the object is: a symlink or a manifest. Empty in a
	// listing.
	Elsewhere string
	// Expires is when the store will remove the object by itself; zero: never.
	Expires time.Time
}

// GetOptions says how an object is read.
type GetOptions struct {
	// Offset is the first byte to read.
	Offset int64
	// IfMatch, if not empty, reads only a copy with this ETag. A stale replica
	// answers 412, and the proxy asks the next one. If no replica has such a
	// copy, Get ends with ErrPrecondition.
	IfMatch ETag
	// Newest asks every replica and reads the newest copy (X-Newest: true).
	// Without it and without IfMatch a read may be stale.
	Newest bool
	// Whole says that p should hold the whole object. Its only effect is that
	// the request has no Range header. Swift then verifies the object's
	// checksum while it reads. Offset must be 0.
	Whole bool
	// Arrived, if not nil, is told how many of p's bytes have come in, while the
	// newest of them are still in the processor's cache: 0 at the beginning of
	// each attempt, then more and more, and len(p) before Get returns nil. One
	// goroutine at a time calls it. It may change the bytes that have come in: for
	// the store, they are not p's contents any more.
	Arrived func(n int)
}

// Tell calls Arrived with n, if there is one.
func (o GetOptions) Tell(n int) {
	if o.Arrived != nil {
		o.Arrived(n)
	}
}

// Fill copies the object's bytes into p, as one piece, and tells Arrived. It is for
// stores that have them in memory. It returns how many were copied.
func (o GetOptions) Fill(p, data []byte) int {
	o.Tell(0)
	n := copy(p, data)
	o.Tell(n)
	return n
}

// ListOptions selects a page of a listing. A listing is a hint only: it is
// updated late, and can lack objects that exist.
type ListOptions struct {
	Prefix    string
	Marker    string // names greater than this
	EndMarker string // names less than this
	Limit     int    // names a page; 0 means the server's own limit (10,000)
}

// Metadata is a container's X-Container-Meta-* headers: keys without that
// prefix, in canonical form ("Swiftnbd-Object-Size"), and what Swift counts.
type Metadata struct {
	Items   map[string]string
	Objects int64 // as counted by the container server: late, a hint
	Bytes   int64
	// Versions says what Swift does with objects that are replaced or deleted.
	Versions Versions
	Date     time.Time // the server's clock as it answered, perhaps in whole seconds; zero: not given
}

// Store is one container in an object store. Its methods may be called by many
// goroutines at once. Each makes one request. It may renew an expired token
// once, and does not try again otherwise: that is Retry's duty.
type Store interface {
	// Get reads len(p) bytes of the object from o.Offset into p. The read is
	// short only in error (io.ErrUnexpectedEOF when the object ends before).
	// The ObjectInfo's ETag and Checksum are the whole object's. Get does not
	// compare them with the bytes. After an error p may hold anything, but
	// nothing writes into it once Get has returned. Ends with ErrNotFound (also
	// where there is no such container), ErrPrecondition (o.IfMatch), or
	// another.
	Get(ctx context.Context, name string, p []byte, o GetOptions) (ObjectInfo, error)

	// Head asks for an object's size, ETag and Checksum, the newest copy's.
	Head(ctx context.Context, name string) (ObjectInfo, error)

	// Put stores data as the whole object, with its Checksum. It sends etag,
	// which must be the data's own, and ends with nil only when the store
	// has kept exactly these bytes (201 and nothing else). ErrSuperseded (202)
	// means that the store holds a newer timestamp and has discarded the
	// data. An error for which Ambiguous is true may still take effect
	// later. data must not change until Put returns.
	Put(ctx context.Context, name string, data []byte, etag ETag) error

	// Delete removes the object. ErrNotFound says there was none, ErrSuperseded
	// (409) says that the store holds a newer one.
	Delete(ctx context.Context, name string) error

	// List returns one page of the container's listing, in the order of
	// the names' bytes. An empty page is the end.
	List(ctx context.Context, o ListOptions) ([]ObjectInfo, error)

	// BulkDelete removes many objects in as few requests as the store
	// allows. Names that do not exist are no error. When the store has no
	// bulk delete it ends with errors.ErrUnsupported.
	BulkDelete(ctx context.Context, names []string) error

	// Metadata reads the container's metadata, from the newest copy as far as
	// it can find out. If there is no such container, it ends with
	// ErrContainerNotFound.
	Metadata(ctx context.Context) (Metadata, error)

	// MetadataHint reads any copy of the metadata, for the cost of one request.
	// The copy may be stale. It is for lists that people look at. No decision
	// may depend on it.
	MetadataHint(ctx context.Context) (Metadata, error)

	// SetMetadata merges items into the container's metadata, key by key;
	// an empty value removes the key. Keys as in Metadata.
	SetMetadata(ctx context.Context, items map[string]string) error

	// CreateContainer creates the container with these metadata items. If the
	// container exists, it merges the items. created says which of the two
	// happened (201 or 202).
	CreateContainer(ctx context.Context, items map[string]string) (created bool, err error)

	// DeleteContainer removes the empty container. If the container holds
	// objects, it ends with ErrNotEmpty.
	DeleteContainer(ctx context.Context) error
}

// The errors that a caller tells apart. Use errors.Is.
var (
	ErrNotFound          = errors.New("object not found")
	ErrContainerNotFound = errors.New("container not found")
	ErrPrecondition      = errors.New("no replica has the expected content")
	ErrSuperseded        = errors.New("the cluster holds a newer version and discarded this one")
	ErrNotEmpty          = errors.New("container is not empty")
	ErrUnauthorized      = errors.New("authentication failed")
	ErrForbidden         = errors.New("permission denied")
	ErrNoSpace           = errors.New("no space left: a quota is used up or the cluster is full")
	ErrTooLarge          = errors.New("the object is larger than this Swift takes (max_file_size)")
)

// StatusError is an answer that the store did not expect. errors.Is finds its
// sentinel in Err, if it has one.
type StatusError struct {
	Op         string        // "PUT disk.part/00000003"
	Code       int           // the HTTP status
	RetryAfter time.Duration // the Retry-After header, or 0
	Body       string        // the server's words for the message, one short line without secrets
	Err        error         // a sentinel, or nil
	// Unsent says that the answer belongs to a login. The request itself was
	// not made.
	Unsent bool
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s: %d %s", e.Op, e.Code, statusText(e.Code))
	switch {
	case e.Err == nil && e.Body == "":
	case e.Err == nil:
		s += ": " + e.Body
	case e.Body == "" || strings.Contains(e.Err.Error(), e.Body):
		s += ": " + e.Err.Error()
	default:
		s += ": " + e.Err.Error() + " (the server says: " + e.Body + ")"
	}
	return s
}

// statusText is http.StatusText, and knows Swift's own statuses.
func statusText(code int) string {
	switch code {
	case 497:
		return "Blacklisted"
	case 498:
		return "Rate Limited"
	}
	return http.StatusText(code)
}

func (e *StatusError) Unwrap() error { return e.Err }

// TransportError is a request that got no usable answer: refused, reset, timed
// out, or a body that ended early.
type TransportError struct {
	Op string
	// Sent says that the request may have reached the server: for a PUT or
	// DELETE it may still take effect.
	Sent bool
	Err  error
}

func (e *TransportError) Error() string { return e.Op + ": " + e.Err.Error() }
func (e *TransportError) Unwrap() error { return e.Err }

// Ambiguous says whether the request that ended with err may have taken effect
// or may still do so: a transport error after sending, or an answer of 5xx or
// 408 from a proxy that may have reached some of the object servers.
func Ambiguous(err error) bool {
	var re *RetryError
	if errors.As(err, &re) {
		return re.Ambiguous // of any attempt, and not of the last alone
	}
	var te *TransportError
	if errors.As(err, &te) {
		return te.Sent
	}
	var se *StatusError
	if errors.As(err, &se) {
		return !se.Unsent && (se.Code >= 500 || se.Code == http.StatusRequestTimeout)
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// Transient says whether the same request may succeed later. This is true of
// transport errors, and of the statuses 408, 409, 429, 498 (Swift's rate
// limit), 500, 502, 503, 504 and 507. It is also true if the lease has lapsed
// or its signature is refused, since it may come back. The store itself answers
// 401 with one new login. A 401 after that is final, like 403, 404 and 497.
func Transient(err error) bool {
	var te *TransportError
	if errors.As(err, &te) || errors.Is(err, ErrLapsed) || errors.Is(err, ErrFenced) {
		return true
	}
	var se *StatusError
	if errors.As(err, &se) {
		switch se.Code {
		case 408, 409, 429, 498, 500, 502, 503, 504, 507:
			return !errors.Is(err, ErrSuperseded) && !errors.Is(err, ErrNotEmpty)
		}
	}
	return false
}
