// SPDX-License-Identifier: MIT

package cache

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"swiftnbd/internal/geometry"
)

// gate holds the first request of one kind for one chunk until it is opened.
type gate struct {
	stage   string
	chunk   geometry.ChunkIndex
	reached chan struct{}
	opened  chan struct{}
	used    bool
}

func (v *fakeVolume) gate(stage string, i geometry.ChunkIndex) *gate {
	g := &gate{stage, i, make(chan struct{}), make(chan struct{}), false}
	v.hook = func(stage string, i geometry.ChunkIndex) {
		if stage != g.stage || i != g.chunk {
			return
		}
		v.mu.Lock()
		mine := !g.used
		g.used = true
		v.mu.Unlock()
		if mine {
			close(g.reached)
			<-g.opened
		}
	}
	return g
}

// changes are what may happen to chunk 3, of 4,096 bytes, at a bad moment, and
// what its bytes, all b before, are then.
var changes = map[string]func(t *testing.T, c *Cache, p []byte){
	"zero all": func(t *testing.T, c *Cache, p []byte) {
		clear(p)
		try(t, c.Zero(context.Background(), 3*4096, 4096))
	},
	"zero a part": func(t *testing.T, c *Cache, p []byte) {
		clear(p[100:300])
		try(t, c.Zero(context.Background(), 3*4096+100, 200))
	},
	"write all": func(t *testing.T, c *Cache, p []byte) {
		copy(p, bytes.Repeat([]byte{9}, 4096))
		try(t, c.Write(context.Background(), p, 3*4096))
	},
	"write a part": func(t *testing.T, c *Cache, p []byte) {
		copy(p[50:], "some bytes")
		try(t, c.Write(context.Background(), []byte("some bytes"), 3*4096+50))
	},
	"zero all and write a part": func(t *testing.T, c *Cache, p []byte) {
		clear(p)
		try(t, c.Zero(context.Background(), 3*4096, 4096))
		copy(p[50:], "some bytes")
		try(t, c.Write(context.Background(), []byte("some bytes"), 3*4096+50))
	},
	"write a part and zero all": func(t *testing.T, c *Cache, p []byte) {
		try(t, c.Write(context.Background(), []byte("some bytes"), 3*4096+50))
		clear(p)
		try(t, c.Zero(context.Background(), 3*4096, 4096))
	},
}

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// TestChangeDuring changes a chunk while a request for it is at each point of
// its way: a fetch that has its bytes; an upload, or a delete, that waits for
// its turn, has not taken effect, or has and is not answered; with the request
// then succeeding and failing. What was changed last is what is read, and what
// a flush brings to Swift.
func TestChangeDuring(t *testing.T) {
	for _, at := range []string{"a fetch", "an upload that waits", "an upload before", "an upload after", "a delete that waits", "a delete before", "a delete after"} {
		for name, change := range changes {
			for _, fails := range []bool{false, true} {
				for _, blank := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s,%s,fails=%t,blank=%t", at, name, fails, blank), func(t *testing.T) {
						changeDuring(t, at, change, fails, blank)
					})
				}
			}
		}
	}
}

func changeDuring(t *testing.T, at string, change func(*testing.T, *Cache, []byte), fails, blank bool) {
	ctx := context.Background()
	geo, err := geometry.New(4096, 10)
	if err != nil {
		t.Fatal(err)
	}
	v := newFakeVolume(t, 4096, 1)
	v.blank = blank
	c, err := New(v, geo, Options{Size: 1 << 20, Connections: 1, Age: time.Hour, Pause: time.Hour, Readahead: -1, Check: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := bytes.Repeat([]byte{7}, 4096)
	ended := make(chan error, 2)
	go1 := func(f func() error) { go func() { ended <- f() }() }
	waiting := 1
	var g *gate
	switch at {
	case "a fetch":
		v.objects[3] = bytes.Clone(want)
		v.unknown[3] = false
		g = v.gate("read", 3)
		go1(func() error { return c.Read(ctx, make([]byte, 10), 3*4096) })
	case "an upload that waits", "a delete that waits":
		g = v.gate("before", 5)
		try(t, c.Write(ctx, want, 5*4096))
		go1(func() error { return c.FlushRange(ctx, 5*4096, 1) })
		<-g.reached
		fallthrough
	default:
		if at[:3] == "a d" {
			v.objects[3] = bytes.Repeat([]byte{6}, 4096)
			clear(want)
			try(t, c.Zero(ctx, 3*4096, 4096))
		} else {
			try(t, c.Write(ctx, want, 3*4096))
		}
		if g != nil {
			waiting = 2
		} else {
			g = v.gate(at[len(at)-len("after"):], 3)
			if at[len(at)-6:] == "before" {
				g.stage = "before"
			}
		}
		go1(func() error { return c.FlushRange(ctx, 3*4096, 1) })
	}
	within(t, "the request", func() { <-g.reached })
	if waiting == 2 { // the second has been announced, or will be
		within(t, "the second upload", func() {
			for ch := c.find(3); ; time.Sleep(time.Millisecond) {
				ch.mu.RLock()
				announced := ch.up != nil
				ch.mu.RUnlock()
				if announced {
					return
				}
			}
		})
	}
	change(t, c, want)
	read := func(when string) {
		t.Helper()
		got := make([]byte, 4096)
		within(t, "a read", func() { try(t, c.Read(ctx, got, 3*4096)) })
		if !bytes.Equal(got, want) {
			t.Errorf("read %s: got %x…%x…, want %x…%x…", when, got[:4], got[50:60], want[:4], want[50:60])
		}
	}
	if at != "a fetch" {
		read("meanwhile")
	}
	v.refuse.Store(fails)
	close(g.opened)
	for range waiting {
		within(t, "the request's end", func() {
			if err := <-ended; err != nil && !fails {
				t.Error(err)
			}
		})
	}
	v.refuse.Store(false)
	read("afterwards")
	within(t, "a flush", func() { try(t, c.Flush(ctx)) })
	if got := v.at(geo, 3*4096, 4096); !bytes.Equal(got, want) {
		t.Errorf("Swift holds %x…%x…, want %x…%x…", got[:4], got[50:60], want[:4], want[50:60])
	}
	c.reclaim(1<<62, false)
	if n := c.Used(); n != 0 {
		t.Errorf("%d bytes are counted when nothing is left", n)
	}
	read("when it was evicted")
}
