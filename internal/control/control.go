// SPDX-License-Identifier: MIT

// Package control carries a request of swiftnbd-ctl to the process that serves a
// disk, and the answer back. They go through the metadata of the disk's
// container, which the server reads at each renewal of its lease anyway. So it
// works from any machine that may write the container, and costs the server
// nothing while nobody asks.
//
// A request names the lease whose holder is asked: "LEASE VERB ARGUMENT". Nobody
// else obeys it, so what a server that went away has not done is never done by
// the one after it. The one that asks has to look who holds the lease then.
//
// A request has a number of its own, and the server does each number once. It
// may see a request again after it was removed: a replica of the metadata may be
// behind. One of which it is not known whether it arrived may arrive later, when the
// one that asked has gone on by another way: that one answers it itself.
package control

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"swiftnbd/internal/store"
)

// The keys of a request and of its answer, before the request's number. The
// number has digits only: the case of letters in a key may change on the way.
const (
	keyAsk    = "Swiftnbd-Ask-"
	keyAnswer = "Swiftnbd-Answer-"
)

// Verbs of requests.
const (
	Snapshot       = "snapshot"        // the argument is its name
	DeleteSnapshot = "delete-snapshot" // likewise
	DropSnapshot   = "drop-snapshot"   // DeleteSnapshot of one that has clones, too
	Grow           = "grow"            // to so many bytes, decimal
)

const (
	// done is the answer of a request that was carried out.
	done = "done"
	// withdrawn is the answer that the one that asked gives itself: nobody is to do it.
	withdrawn = "withdrawn"
)

// Request is what a server is asked for.
type Request struct {
	Lease    int64 // the number of the lease of who is asked
	Verb     string
	Argument string
}

func (r Request) value() string { return fmt.Sprintf("%d %s %s", r.Lease, r.Verb, r.Argument) }

// Check says whether the request can be sent.
func (r Request) Check() error {
	if n := len(r.value()) - store.MaxMetaValue; n > 0 {
		return fmt.Errorf("%q is %d bytes too long for a request to a running server", r.Argument, n)
	}
	return store.CheckMeta(keyAsk, r.value())
}

// parseRequest is the inverse of value.
func parseRequest(v string) (r Request, ok bool) {
	number, rest, _ := strings.Cut(v, " ")
	r.Verb, r.Argument, _ = strings.Cut(rest, " ")
	var err error
	r.Lease, err = strconv.ParseInt(number, 10, 64)
	return r, err == nil && r.Lease > 0 && r.Verb != ""
}

// RefusedError is the server's answer that it has not done it, and why.
type RefusedError struct{ Why string }

func (e *RefusedError) Error() string { return e.Why }

// Errors of Ask. After them the server may have done it all the same.
var (
	ErrGone     = errors.New("the server that was asked does not hold the disk any more")
	ErrNoAnswer = errors.New("the server has not answered")
)

// withdrawTime bounds the removal of a request that nobody waits for any more.
const withdrawTime = 10 * time.Second

// Ask asks the holder of the lease, and waits for its answer until ctx is done.
// It looks for the answer once in every. serving says whether the lease is still
// that holder's; it is called from time to time. Errors are a *RefusedError,
// ErrGone, ErrNoAnswer with ctx's cause, or the store's. In each case nothing of the
// request remains in the container, as far as the store can be reached; but if it may
// arrive still, an answer does, which the server removes.
func Ask(ctx context.Context, s store.Store, r Request, every time.Duration, serving func(ctx context.Context) (bool, error)) (err error) {
	if err := r.Check(); err != nil {
		return err
	}
	number := strconv.FormatUint(1+rand.Uint64N(1e15), 10)
	ask, answer := keyAsk+number, keyAnswer+number
	left := map[string]string{ask: "", answer: ""}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
		defer cancel()
		if werr := s.SetMetadata(ctx, left); werr != nil && err == nil {
			err = fmt.Errorf("it is done, but the request for it is still in the container: %w", werr)
		}
	}()
	if err := s.SetMetadata(ctx, map[string]string{ask: r.value()}); err != nil {
		if store.Ambiguous(err) {
			left[answer] = fmt.Sprintf("%d %s", r.Lease, withdrawn)
		}
		return err
	}
	looked := time.Now()
	for gone := false; ; {
		md, err := s.Metadata(ctx)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %w", ErrNoAnswer, context.Cause(ctx))
		case err != nil:
			return err
		}
		if text, ok := answerIn(md.Items[store.MetaKey(answer)]); ok {
			if text == done {
				return nil
			}
			return &RefusedError{text}
		}
		if gone {
			return ErrGone
		}
		if time.Since(looked) > 5*every {
			ok, err := serving(ctx)
			switch {
			case ctx.Err() != nil:
				continue
			case err != nil:
				return err
			}
			gone, looked = !ok, time.Now() // it may have answered just before
		}
		if gone {
			continue
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
		}
	}
}

// answerValue is the answer of the holder of a lease. It is one line of at most
// store.MaxMetaValue bytes.
func answerValue(lease int64, err error) string {
	text := done
	if err != nil {
		text = strings.Join(strings.Fields(strings.ToValidUTF8(store.OneLine(err.Error()), "?")), " ")
	}
	v := fmt.Sprintf("%d %s", lease, text)
	if len(v) <= store.MaxMetaValue {
		return v
	}
	n := store.MaxMetaValue
	for n > 0 && !utf8.RuneStart(v[n]) {
		n--
	}
	return strings.TrimSpace(v[:n])
}

func answerIn(v string) (text string, ok bool) {
	_, text, ok = strings.Cut(v, " ")
	return text, ok && text != ""
}
