// SPDX-License-Identifier: MIT

package devswift

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// timestamp is a timestamp of Swift: the time since the epoch in units of 10
// microseconds. It is written as seconds with five decimals. Swift orders all
// changes by it.
type timestamp int64

const ticksPerSecond = 100_000

func timestampOf(t time.Time) timestamp {
	return timestamp(t.UnixNano() / int64(time.Second/ticksPerSecond))
}

// String returns the form of the X-Timestamp header, such as 1795159879.39806.
func (t timestamp) String() string {
	return fmt.Sprintf("%010d.%05d", int64(t)/ticksPerSecond, int64(t)%ticksPerSecond)
}

// parseTimestamp reads what String wrote.
func parseTimestamp(s string) (timestamp, error) {
	whole, frac, _ := strings.Cut(s, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("timestamp %q: %w", s, err)
	}
	ticks, err := strconv.ParseInt((frac + "00000")[:5], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("timestamp %q: %w", s, err)
	}
	return timestamp(seconds*ticksPerSecond + ticks), nil
}

func (t timestamp) time() time.Time {
	return time.Unix(int64(t)/ticksPerSecond, int64(t)%ticksPerSecond*int64(time.Second/ticksPerSecond)).UTC()
}

// ceil returns the next full second, since Last-Modified is never before
// X-Timestamp.
func (t timestamp) ceil() time.Time {
	seconds := int64(t) / ticksPerSecond
	if int64(t)%ticksPerSecond != 0 {
		seconds++
	}
	return time.Unix(seconds, 0).UTC()
}

// httpDate returns the form of Last-Modified.
func (t timestamp) httpDate() string { return t.ceil().Format(http.TimeFormat) }

// isoDate returns the form of last_modified in a listing, with microseconds and
// no zone.
func (t timestamp) isoDate() string { return t.time().Format("2006-01-02T15:04:05.000000") }

// ticker hands out timestamps that never repeat, since two changes of an
// object in the same 10 microseconds would make the second one lose.
type ticker struct{ last atomic.Int64 }

func (k *ticker) next(now time.Time) timestamp {
	want := int64(timestampOf(now))
	for {
		last := k.last.Load()
		ts := max(want, last+1)
		// If a test moves the clock back by more than a second, it stays back.
		if last-want > ticksPerSecond {
			ts = want
		}
		if k.last.CompareAndSwap(last, ts) {
			return timestamp(ts)
		}
	}
}
