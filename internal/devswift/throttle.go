// SPDX-License-Identifier: MIT

package devswift

import (
	"context"
	"sync"
	"time"
)

// throttleSlice is how many bytes are sent between two looks at the clock.
const throttleSlice = 32 << 10

// throttleBurst is how far the line may be behind the clock and catch up. It
// compensates for timers that fire late.
const throttleBurst = 20 * time.Millisecond

// throttle paces bodies to a number of bytes per second, over all requests.
type throttle struct {
	rate int64 // bytes per second; 0 means unlimited; fixed

	mu   sync.Mutex
	free time.Time // when the line is free again
}

// slice returns how many of n bytes to move at once.
func (t *throttle) slice(n int) int {
	if t.rate > 0 && n > throttleSlice {
		return throttleSlice
	}
	return n
}

// take waits until the line has carried n bytes.
func (t *throttle) take(ctx context.Context, n int) {
	if t.rate <= 0 || n <= 0 {
		return
	}
	t.mu.Lock()
	now := time.Now()
	if idle := now.Add(-throttleBurst); t.free.Before(idle) {
		t.free = idle
	}
	t.free = t.free.Add(time.Duration(int64(n) * int64(time.Second) / t.rate))
	wait := t.free.Sub(now)
	t.mu.Unlock()
	// Below a millisecond, a timer is too coarse. The debt stays for the next
	// call.
	if wait < time.Millisecond {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
