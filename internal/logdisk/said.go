// SPDX-License-Identifier: MIT

package logdisk

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"swiftnbd/internal/store"
)

// saidAgain is how long an error was not there, at least, when it is said once more.
const saidAgain = 3 * deleteAgain

// said has the causes of what went wrong lately: so that an error which stays has one
// line in the log, and not one for each attempt.
type said struct {
	mu   sync.Mutex
	last map[string]time.Time // when an error of the cause was there last
}

// news notes the error, and says whether one of its cause was not there lately.
func (s *said) news(err error) bool {
	why, now := cause(err), time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = make(map[string]time.Time)
	}
	maps.DeleteFunc(s.last, func(_ string, last time.Time) bool { return now.Sub(last) > saidAgain })
	_, there := s.last[why]
	s.last[why] = now
	return !there
}

// cause returns what has made err: without the object that it is about, which is another
// one each time, and without how often and how long it was tried.
func cause(err error) string {
	for {
		inner := errors.Unwrap(err)
		if more, ok := err.(interface{ Unwrap() []error }); ok {
			if all := more.Unwrap(); len(all) > 0 {
				inner = all[0]
			}
		}
		if status, ok := err.(*store.StatusError); ok && inner == nil {
			return fmt.Sprint(status.Code)
		}
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}
