// SPDX-License-Identifier: MIT

package main

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// TestProcessors: Go gets more processors while there are many requests, or large
// ones, and the usual number afterwards.
func TestProcessors(t *testing.T) {
	for _, tc := range []struct {
		name          string
		bytes, second int // of a request; requests a second
		want          bool
	}{
		{"a flush at a time", 4096, 100, false},
		{"below the bound", 4096, manyRequests * 9 / 10, false},
		{"many", 4096, manyRequests * 11 / 10, true},
		{"few large ones", 2 << 20, 40, false},
		{"many large ones", 2 << 20, 100, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var more bool
				var changes int
				p := &processors{set: func(yes bool) {
					if yes == more {
						t.Errorf("%v twice", yes)
					}
					more = yes
					changes++
				}}
				has := func() bool {
					p.mu.Lock()
					defer p.mu.Unlock()
					return more
				}
				for range 2 {
					for range 3 * tc.second { // 3 seconds
						p.count(tc.bytes)
						time.Sleep(time.Second / time.Duration(tc.second))
					}
					synctest.Wait()
					if has() != tc.want {
						t.Fatalf("%d requests of %d bytes a second: more is %v", tc.second, tc.bytes, has())
					}
					time.Sleep(3 * time.Second)
					synctest.Wait()
					if has() {
						t.Fatal("still more after three quiet seconds")
					}
				}
				if tc.want && changes != 4 {
					t.Errorf("%d changes", changes)
				}
			})
		})
	}
}

// TestProcessorsSet: what is changed is Go's own number, and it comes back. It is
// left alone where the user has set it.
func TestProcessorsSet(t *testing.T) {
	t.Setenv("GOMAXPROCS", "")
	runtime.SetDefaultGOMAXPROCS()
	defer runtime.SetDefaultGOMAXPROCS()
	usual := runtime.GOMAXPROCS(0)
	if p := newProcessors(); usual >= nbdkitThreads {
		if p.set != nil {
			t.Errorf("%d processors are changed", usual)
		}
	} else {
		p.set(true)
		if got := runtime.GOMAXPROCS(0); got <= usual {
			t.Errorf("%d processors, usually %d", got, usual)
		}
		p.set(false)
		if got := runtime.GOMAXPROCS(0); got != usual {
			t.Errorf("%d processors afterwards, usually %d", got, usual)
		}
	}
	t.Setenv("GOMAXPROCS", "2")
	if newProcessors().set != nil {
		t.Error("the user's number is changed")
	}
}
