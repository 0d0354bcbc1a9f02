// SPDX-License-Identifier: MIT

// Package cloud puts the layers of a store together, in the only order in which
// they do what they promise. The plugin, swiftnbd-ctl, the benchmarks and the
// tests all reach a container through this package. From the outside in:
//
//	store.Ordered   a late write must not undo a later one (Writer only)
//	store.Limiter   bounds the requests at once; an operation that waits holds nothing
//	store.Retry     hides failures that are shorter than the policy's time
//	Options.Watch   sees every attempt: counters, traces, a test's faults
//	Account         the container itself, behind its fence where it is written
//
// The limiter is outside Retry: the time that an operation waits for its slot
// does not count as Swift's. Ordered is outside the limiter: a write that waits
// for a late one holds no slot.
package cloud

import (
	"context"
	"fmt"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/swift"
)

// Account gives access to the containers of one account. *swiftstore.Client is
// one.
type Account interface {
	// Container returns the container of that name.
	Container(name string) store.Store
	// Fenced returns the container of that name, whose objects are written
	// only while the fence holds. It reports writes that may land late.
	Fenced(name string, fence *store.Fence, late *store.Stragglers) store.Store
	// CheckFence finds out whether the account refuses what a fence forbids.
	CheckFence(ctx context.Context, name string, g store.Grant) error
}

// Options say how the requests to an account are made.
type Options struct {
	// Connections is how many operations on objects may run at once, over all
	// containers. 0 means no limit.
	Connections int
	// Policy is how patiently operations are tried again.
	Policy store.Policy
	// Watch, if not nil, is put around each container, within Retry. It sees
	// every attempt.
	Watch func(container string, s store.Store) store.Store
}

// Cloud is one account with the layers that reach its containers.
type Cloud struct {
	account Account
	limiter *store.Limiter // nil: no limit
	o       Options
}

// New returns the way to an account's containers.
func New(account Account, o Options) *Cloud {
	c := &Cloud{account: account, o: o}
	if o.Connections > 0 {
		c.limiter = store.NewLimiter(o.Connections)
	}
	return c
}

// Dial is New for a Swift: it prepares the login, and makes no request yet. The
// caller closes the client.
func Dial(s swiftstore.Options, o Options) (*Cloud, *swiftstore.Client, error) {
	client, err := swiftstore.Dial(s)
	if err != nil {
		return nil, nil, err
	}
	return New(client, o), client, nil
}

// Reader returns a container for a program that does not write its objects.
func (c *Cloud) Reader(container string) store.Store {
	return c.limited(c.Unlimited(container))
}

// Unlimited returns a container whose operations are tried again and not
// limited. It is for the few and small requests of a lease.
func (c *Cloud) Unlimited(container string) store.Store {
	return c.Patient(container, c.o.Policy)
}

// Patient is Unlimited with a patience of its own.
func (c *Cloud) Patient(container string, p store.Policy) store.Store {
	return store.Retry(c.watched(container, c.account.Container(container)), p)
}

// elsewhere is an Account that knows the way to others of the same Swift.
type elsewhere interface {
	// At returns the account with the storage URL, with the same login.
	At(ctx context.Context, url string) (*swiftstore.Client, error)
}

// Base is Reader for a container that may be in another account of the same
// Swift: with the storage URL url, if it is not empty. The login is the same.
func (c *Cloud) Base(ctx context.Context, url, container string) (store.Store, error) {
	account := c.account
	if url != "" {
		e, ok := account.(elsewhere)
		if !ok {
			return nil, fmt.Errorf("container %s is at %s, to which there is no way here", container, url)
		}
		other, err := e.At(ctx, url)
		if err != nil {
			return nil, err
		}
		account = other
	}
	return c.limited(store.Retry(c.watched(container, account.Container(container)), c.o.Policy)), nil
}

// Writer returns a container for its only writer, and how its lease is taken,
// with the given term. They share a fence, so they are made anew for each
// device that opens the container.
func (c *Cloud) Writer(container string, term time.Duration) (store.Store, lease.Options) {
	fence, late := new(store.Fence), new(store.Stragglers)
	s := c.watched(container, c.account.Fenced(container, fence, late))
	policy := c.o.Policy
	policy.Resend = true
	return store.Ordered(c.limited(store.Retry(s, policy)), late), lease.Options{
		Name:    container,
		Term:    term,
		Fence:   fence,
		Sibling: c.Unlimited,
		CheckFence: func(ctx context.Context, g store.Grant) error {
			return c.account.CheckFence(ctx, container, g)
		},
	}
}

func (c *Cloud) watched(container string, s store.Store) store.Store {
	if c.o.Watch == nil {
		return s
	}
	return c.o.Watch(container, s)
}

func (c *Cloud) limited(s store.Store) store.Store {
	if c.limiter == nil {
		return s
	}
	return c.limiter.Store(s)
}
