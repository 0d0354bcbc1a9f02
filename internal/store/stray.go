// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
)

// OnItsWay says whether the request that ended with err may still be on its way to the
// proxy. A request that has reached the proxy has its timestamp, and is older than all
// later requests. 502 and 504 come from a load balancer.
func OnItsWay(err error) bool {
	var te *TransportError
	if errors.As(err, &te) {
		return te.Sent
	}
	var se *StatusError
	return errors.As(err, &se) && (se.Code == http.StatusBadGateway || se.Code == http.StatusGatewayTimeout)
}

type straysKey struct{}

// WithStrays returns a context for operations under Retry. strays is set if an attempt
// of theirs may still be on its way when another one has succeeded: it may take effect
// once more, at any time. Nobody else learns of that.
func WithStrays(ctx context.Context, strays *atomic.Bool) context.Context {
	return context.WithValue(ctx, straysKey{}, strays)
}

// Stray sets what WithStrays was given.
func Stray(ctx context.Context) {
	if strays, ok := ctx.Value(straysKey{}).(*atomic.Bool); ok {
		strays.Store(true)
	}
}
