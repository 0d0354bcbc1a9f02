// SPDX-License-Identifier: MIT

package store

import (
	"container/list"
	"context"
	"sync"
)

// Class says how urgent an operation is.
type Class int

const (
	// Foreground operations are reads: a client waits for them.
	Foreground Class = iota
	// Background operations are write-back, and the removal of objects.
	Background
	// Unlimited operations do not go through the limiter. They are the
	// operations on the container itself, which are few and small. A lease's
	// renewal must not wait behind a thousand uploads.
	Unlimited
)

// ClassOf returns the class of an operation. It depends on what the operation
// does.
func ClassOf(op Op) Class {
	switch op.Kind {
	case OpPut, OpDelete, OpBulkDelete:
		return Background
	case OpMetadata, OpSetMetadata, OpCreateContainer, OpDeleteContainer:
		return Unlimited
	}
	return Foreground
}

// Limiter allows a number of operations at once, in two classes:
//
//   - A free slot goes to Foreground first, unless Background has less than
//     an eighth of the slots, at least one. Readers slow write-back down, but
//     never stop it.
//   - Background may take every slot while nothing else needs one. A read that
//     comes then waits for the first of these uploads that ends. Slots that are
//     kept empty for it would slow every flush down.
//   - With a single slot, the waiting classes take turns.
//   - Within a class the order is the order of arrival.
//
// Put a Limiter around Retry and not within it. Then the time that an operation
// waits for its slot does not count as Swift's, and a cluster that asks for
// patience does not get more requests meanwhile.
type Limiter struct {
	slots   int
	reserve int // for Background

	mu      sync.Mutex
	running [2]int
	waiting [2]list.List // of chan struct{}, closed when the slot is granted
	turn    Class        // with a single slot: the class served last
}

// NewLimiter returns a Limiter of n operations at once, n at least 1.
func NewLimiter(n int) *Limiter {
	l := &Limiter{slots: max(1, n), turn: Background}
	if l.slots > 1 {
		l.reserve = max(1, l.slots/8)
	}
	return l
}

// Load is what a Limiter is doing.
type Load struct {
	Foreground, Background               int // operations under way
	WaitingForeground, WaitingBackground int
}

// Load returns what the Limiter is doing now.
func (l *Limiter) Load() Load {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Load{
		Foreground: l.running[Foreground], Background: l.running[Background],
		WaitingForeground: l.waiting[Foreground].Len(), WaitingBackground: l.waiting[Background].Len(),
	}
}

// Store returns s under this limit. Several stores may share the limit. ClassOf
// gives the class of an operation.
func (l *Limiter) Store(s Store) Store { return l.store(s, ClassOf) }

// StoreAs is Store with all operations in one class.
func (l *Limiter) StoreAs(class Class, s Store) Store {
	return l.store(s, func(Op) Class { return class })
}

func (l *Limiter) store(s Store, classOf func(Op) Class) Store {
	return Wrap(s, func(ctx context.Context, op Op, call func(context.Context) error) error {
		class := classOf(op)
		if class != Foreground && class != Background {
			return call(ctx)
		}
		if err := l.acquire(ctx, class); err != nil {
			return &TransportError{Op: op.String(), Err: err}
		}
		defer l.release(class)
		return call(ctx)
	})
}

// Limit returns s with at most n operations at once; see Limiter.
func Limit(s Store, n int) Store { return NewLimiter(n).Store(s) }

func (l *Limiter) acquire(ctx context.Context, class Class) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	granted := make(chan struct{})
	l.mu.Lock()
	place := l.waiting[class].PushBack(granted)
	l.grantLocked()
	l.mu.Unlock()
	select {
	case <-granted:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-granted: // granted at the same moment
		l.running[class]--
	default:
		l.waiting[class].Remove(place)
	}
	// A slot may have been kept for the operation that stopped waiting.
	l.grantLocked()
	return context.Cause(ctx)
}

func (l *Limiter) release(class Class) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running[class]--
	l.grantLocked()
}

// grantLocked gives the free slots to waiting operations.
func (l *Limiter) grantLocked() {
	for {
		class, ok := l.nextLocked()
		if !ok {
			return
		}
		queue := &l.waiting[class]
		close(queue.Remove(queue.Front()).(chan struct{}))
		l.running[class]++
		l.turn = class
	}
}

// nextLocked says which class gets the next slot, if there is one for it.
func (l *Limiter) nextLocked() (Class, bool) {
	if l.running[Foreground]+l.running[Background] >= l.slots {
		return 0, false
	}
	foreground := l.waiting[Foreground].Len() > 0
	background := l.waiting[Background].Len() > 0
	switch {
	case foreground && background && l.slots == 1:
		return 1 - l.turn, true
	case foreground && background && l.running[Background] < l.reserve:
		return Background, true
	case foreground:
		return Foreground, true
	}
	return Background, background
}
