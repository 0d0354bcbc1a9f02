// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"swiftnbd/internal/store"
)

// Policy is a storage policy of the cluster.
type Policy struct {
	Name    string
	Aliases string // separated by commas; the name is one of them
	Default bool
}

// rate is a limit of ratelimit (swift/common/middleware/ratelimit.py): a
// container of so many objects takes so many writes in a second.
type rate struct{ objects, writes float64 }

// WriteRate returns how many writes in a second this Swift lets through to a
// container of that many objects. ok is false if /info tells of no limit.
func (i Info) WriteRate(objects int64) (writes float64, ok bool) {
	n := float64(objects)
	for at, r := range i.rates {
		if n < r.objects {
			break
		}
		writes, ok = r.writes, true
		if at+1 < len(i.rates) {
			// Between two limits Swift draws a straight line.
			next := i.rates[at+1]
			part := min(1, (n-r.objects)/(next.objects-r.objects))
			writes += part * (next.writes - r.writes)
		}
	}
	return writes, ok
}

// FindPolicy returns the policy that a name or alias means, whatever its case.
// If the cluster has others only, the error lists them. If it does not tell its
// policies, FindPolicy returns the name unchanged.
func (i Info) FindPolicy(name string) (string, error) {
	if len(i.Policies) == 0 {
		return name, nil
	}
	var there []string
	for _, p := range i.Policies {
		for alias := range strings.SplitSeq(p.Name+","+p.Aliases, ",") {
			if strings.EqualFold(strings.TrimSpace(alias), name) {
				return p.Name, nil
			}
		}
		shown := p.Name
		if p.Default {
			shown += " (the default)"
		}
		there = append(there, shown)
	}
	return "", fmt.Errorf("this Swift has no storage policy %s (there are: %s)", name, strings.Join(there, ", "))
}

// ContainerIn is Container, and a container that it creates gets the storage
// policy. Swift refuses another policy than that of a container that exists.
func (c *Client) ContainerIn(name, policy string) store.Store {
	return &container{client: c, name: name, policy: policy}
}

// Quota is a limit of bytes or objects, and how much of it is in use.
type Quota struct {
	Of          string // "the container", "the account" and so on
	What        string // "bytes" or "objects"
	Header      string
	Used, Limit int64
}

// Usage is what a container's headers say, and its account's.
type Usage struct {
	Policy string // empty where Swift does not say
	Quotas []Quota
}

// Usage asks for a container's storage policy and quotas, and for the quotas of
// its account, which a user who may not see the account does not get.
func (c *Client) Usage(ctx context.Context, name string) (u Usage, err error) {
	s := &container{client: c, name: name}
	if err := s.checkContainer("HEAD", nil); err != nil {
		return u, err
	}
	h, err := s.headers(ctx, request{method: "HEAD", container: name})
	var se *store.StatusError
	if errors.As(err, &se) && se.Code == http.StatusNotFound {
		return u, fmt.Errorf("%w: %w", store.ErrContainerNotFound, err)
	}
	if err != nil {
		return u, err
	}
	u.Policy = h.Get("X-Storage-Policy")
	u.add(h, "the container", "bytes", "X-Container-Meta-Quota-Bytes", "X-Container-Bytes-Used")
	u.add(h, "the container", "objects", "X-Container-Meta-Quota-Count", "X-Container-Object-Count")
	h, err = s.headers(ctx, request{method: "HEAD"})
	if errors.Is(err, store.ErrForbidden) {
		return u, nil
	}
	if err != nil {
		return u, err
	}
	u.add(h, "the account", "bytes", "X-Account-Meta-Quota-Bytes", "X-Account-Bytes-Used")
	u.add(h, "the account", "objects", "X-Account-Quota-Count", "X-Account-Object-Count")
	if p := u.Policy; p != "" {
		u.add(h, "the account in policy "+p, "bytes", "X-Account-Quota-Bytes-Policy-"+p, "X-Account-Storage-Policy-"+p+"-Bytes-Used")
		u.add(h, "the account in policy "+p, "objects", "X-Account-Quota-Count-Policy-"+p, "X-Account-Storage-Policy-"+p+"-Object-Count")
	}
	return u, nil
}

func (u *Usage) add(h http.Header, of, what, limit, used string) {
	if q := number(h, limit); q >= 0 {
		u.Quotas = append(u.Quotas, Quota{of, what, limit, max(0, number(h, used)), q})
	}
}
