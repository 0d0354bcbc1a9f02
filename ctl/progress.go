// SPDX-License-Identifier: MIT

package main

import (
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

const (
	// minColumns is the narrowest terminal on which a bar is shown.
	minColumns = 20
	// barPatience is how long end waits for the last drawing of the bar.
	barPatience = 2 * time.Second
)

// progress shows how far a long operation is. Its methods may be called by
// many goroutines. The zero value shows nothing.
type progress struct {
	container *mpb.Progress
	bar       *mpb.Bar
	console   *console
}

// newProgress shows a bar on standard error, if that is a terminal and quiet is
// false. total is in bytes if bytes is true, and otherwise a number of objects.
func (t *tool) newProgress(title string, total int64, bytes, quiet bool) *progress {
	out, ok := terminal(t.stderr.out)
	if !ok || quiet {
		return &progress{}
	}
	// A terminal may have no size: a serial console, script(1) from cron. mpb
	// never finishes a bar for which there is no room.
	if columns, rows, err := term.GetSize(int(out.Fd())); err != nil || columns < minColumns || rows < 2 {
		return &progress{}
	}
	counters, speed := decor.CountersNoUnit("%d / %d"), decor.AverageSpeed(0, "%.0f/s", decor.WC{W: 12})
	if bytes {
		counters = decor.CountersKibiByte("% .1f / % .1f")
		speed = decor.AverageSpeed(decor.SizeB1024(0), "% .1f", decor.WC{W: 14})
	}
	p := &progress{container: mpb.New(mpb.WithOutput(out), mpb.WithWidth(64)), console: t.stderr}
	p.bar = p.container.AddBar(total,
		mpb.BarFillerTrim(),
		mpb.PrependDecorators(decor.Name(title+" "), decor.Percentage(decor.WC{W: 5}), decor.Name(" ")),
		mpb.AppendDecorators(decor.Name(" "), counters, speed, decor.Name("  "), decor.AverageETA(decor.ET_STYLE_GO)),
	)
	t.stderr.over(p.container)
	return p
}

// add notes that n more are done.
func (p *progress) add(n int64) {
	if p.bar != nil {
		p.bar.IncrInt64(n)
	}
}

// grow makes the total at least n.
func (p *progress) grow(n int64) {
	if p.bar != nil && p.bar.Current() <= n {
		p.bar.SetTotal(n, false)
	}
}

// end stops the bar, at its end or where it is, and leaves the cursor on a
// line of its own. It may be called twice.
func (p *progress) end(done bool) {
	if p.bar == nil {
		return
	}
	if done {
		p.bar.SetTotal(-1, true)
	} else {
		p.bar.Abort(false)
	}
	p.bar = nil
	p.console.over(nil)
	// The last drawing must not delay an unlock: a terminal can be stopped
	// (Ctrl-S), or shrink to nothing.
	drawn := make(chan struct{})
	go func() {
		p.container.Wait()
		close(drawn)
	}()
	select {
	case <-drawn:
	case <-time.After(barPatience):
	}
}
