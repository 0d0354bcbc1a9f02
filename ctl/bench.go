// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/config"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/words"
)

// bench
//
// bench measures in a container of its own, NAME.swiftnbd-bench, with the storage
// policy of the disk's container. It touches the disk in no way, and needs no disk
// that is set up. The item keyBench of its metadata says who measures, and until
// when that one is at work at the latest, by Swift's clock. If the time is over, the
// container is a stray of a run that was killed, and the next run empties it.

// keyBench is the item. Its value is "HOLDER UNIX-TIME".
const keyBench = "Swiftnbd-Bench"

const (
	// benchHold is for how long a run says that it is at work, beside the time of a
	// measurement. It says so again between measurements, before that is over.
	benchHold = 60 * time.Second
	// benchClean bounds the removal of what was written.
	benchClean = 2 * time.Minute
	// benchBuffers is how many different objects of a size there are.
	benchBuffers = 4
	// defaultBenchTime is the default of --time, seconds.
	defaultBenchTime = 60
)

// benchOptions are the options of bench.
type benchOptions struct {
	seconds float64
	bytes   string
	quiet   bool
}

func (t *tool) benchCommand() *cobra.Command {
	var o benchOptions
	cmd := &cobra.Command{
		Use:   "bench CONTAINER",
		Short: "Measure which objects and how many connections this cloud likes",
		Long: `Measure how fast Swift takes and gives objects of 64 KiB to 4 MiB, with 1 to 64 requests
at once, and recommend a size for the objects of a disk and a number of connections.

The command writes to a container of its own, CONTAINER.swiftnbd-bench, and deletes it
in the end, also after an interrupt. It does not touch the disk, which may be in use, or
not set up yet. Before it begins it says what it costs.`,
		Example: `  swiftnbd-ctl bench mydisk
  swiftnbd-ctl bench mydisk --time 20 --bytes 200M`,
		Args: needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			if !(o.seconds >= 1 && o.seconds <= 86400) {
				return usagef("--time: must be from 1 to 86400 seconds")
			}
			n, err := config.ParseSize(o.bytes)
			if err != nil {
				return usagef("--bytes: %w", err)
			}
			if least := benchSizes[0] * int64(benchConnections[0]); n < least {
				return usagef("--bytes: must be at least %s", humanSize(least))
			}
			return t.bench(ctx, args[0], n, o)
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	f := cmd.Flags()
	f.Float64Var(&o.seconds, "time", defaultBenchTime, "measure for about `SECONDS` in all")
	f.StringVar(&o.bytes, "bytes", "1G", "write no more than `BYTES` in all, and read no more")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress bar")
	t.policyFlag(cmd)
	t.jsonFlag(cmd)
	return cmd
}

// benched is what bench prints as JSON.
type benched struct {
	Container   string        `json:"container"`
	Policy      *string       `json:"policy"` // the storage policy; null where Swift does not say
	Seconds     float64       `json:"seconds"`
	Written     int64         `json:"written_bytes"`
	Read        int64         `json:"read_bytes"`
	Requests    int64         `json:"requests"` // PUT, GET and DELETE of objects
	Results     []benchResult `json:"results"`
	ObjectSize  *int64        `json:"recommended_object_size"`
	Connections *int          `json:"recommended_connections"`
	Log         *int          `json:"recommended_connections_version2"`
}

// benching is one run.
type benching struct {
	tool    *tool
	scratch *container  // its container, with retries
	plain   store.Store // the same, without: a failure is a result
	holder  string
	each    time.Duration // that writing or reading may take in a measurement
	renewed time.Time
	ahead   time.Duration // Swift's clock is, of ours
	bar     *progress
	out     benched
	ours    bool            // the container is, or is about to be
	left    map[string]bool // objects that may be there
	mu      sync.Mutex      // guards left and out.Requests
}

// bench measures.
func (t *tool) bench(ctx context.Context, name string, most int64, o benchOptions) (err error) {
	begun := time.Now()
	c, err := t.open(name)
	if err != nil {
		return err
	}
	if err := c.writable(); err != nil {
		return err
	}
	policy, err := c.policyForBench(ctx, t.policy)
	if err != nil {
		return err
	}
	info, err := c.client.Info(ctx)
	if err != nil {
		return c.explain(ctx, err)
	}
	plan := planBench(most, info.MaxFileSize)
	if len(plan) == 0 {
		return fmt.Errorf("%s: this Swift takes objects of at most %s", name, humanSize(info.MaxFileSize))
	}
	b := &benching{tool: t, holder: lease.Holder(), left: make(map[string]bool), out: benched{Container: name}}
	b.each = time.Duration(o.seconds / float64(2*len(plan)) * float64(time.Second))
	if policy != "" {
		b.out.Policy = &policy
	}
	b.scratch = c.scratch(policy)
	b.plain = c.watch(b.scratch.name, c.client.ContainerIn(b.scratch.name, policy))
	var objects, bytes int64
	for _, cell := range plan {
		objects += int64(cell.objects)
		bytes += int64(cell.objects) * cell.size
	}
	fmt.Fprintf(t.stderr, "This writes up to %s to %s, reads it, and deletes it: up to %s, in about %.0f seconds.\n",
		humanSize(bytes), b.scratch.name, words.Count(3*objects, "request"), o.seconds)

	switch err = b.take(ctx); {
	case err == nil:
		b.bar = t.newProgress("Measuring "+name, int64(2*len(plan)), false, o.quiet)
		err = b.measure(ctx, plan)
		b.bar.end(err == nil)
	case !b.ours || ctx.Err() == nil:
		return err
	}
	if cerr := b.clean(ctx); cerr != nil {
		t.warn("%s stays: %v: the next bench of %s deletes it", b.scratch.name, oneLine{cerr}, name)
		if err == nil {
			err = errReported
		}
	} else if ctx.Err() != nil {
		return fmt.Errorf("%s: interrupted; what was written is deleted again", name)
	}
	if err != nil {
		if errors.Is(err, errReported) {
			return err
		}
		return c.explain(ctx, err)
	}
	b.out.Seconds = time.Since(begun).Seconds()
	return b.print()
}

// policyForBench returns the storage policy of the disk's container, or the one that is
// asked for. It is empty for the cluster's default.
func (c *container) policyForBench(ctx context.Context, asked string) (string, error) {
	if asked != "" {
		return asked, c.checkPolicy(ctx, asked, false)
	}
	u, err := c.client.Usage(ctx, c.name)
	if err != nil && !errors.Is(err, store.ErrContainerNotFound) {
		return "", c.explain(ctx, err)
	}
	return u.Policy, nil
}

// scratch is the container that bench writes to.
func (c *container) scratch(policy string) *container {
	const suffix = ".swiftnbd-bench"
	s := *c
	if s.name += suffix; len(s.name) > store.MaxContainerName {
		sum := md5.Sum([]byte(c.name))
		s.name = hex.EncodeToString(sum[:]) + suffix
	}
	bare := c.watch(s.name, c.client.ContainerIn(s.name, policy))
	s.Store, s.contact = store.Retry(bare, c.pace.work), store.Retry(bare, c.pace.contact)
	return &s
}

// take makes the scratch container, or empties one that was left. It is an error if
// somebody else measures, or if it is no scratch container of ours.
func (b *benching) take(ctx context.Context) error {
	s := b.scratch
	md, err := s.contact.Metadata(ctx)
	switch {
	case errors.Is(err, store.ErrContainerNotFound):
		created, err := s.contact.CreateContainer(ctx, nil)
		switch {
		case errors.Is(err, store.ErrForbidden):
			return fmt.Errorf("%s: bench needs a container of its own, as a lease does, and these credentials may not create one: %w", s.name, oneLine{err})
		case err != nil:
			return s.explain(ctx, err)
		case !created:
			return fmt.Errorf("%s: another bench has just begun", s.name)
		}
		b.ours = true
		return s.explain(ctx, b.hold(ctx))
	case err != nil:
		return s.explain(ctx, err)
	}
	now := time.Now()
	if !md.Date.IsZero() {
		b.ahead = md.Date.Sub(now)
		now = md.Date
	}
	item := md.Items[keyBench]
	if item == "" {
		page, err := s.contact.List(ctx, store.ListOptions{Limit: 1})
		if err != nil {
			return s.explain(ctx, err)
		}
		if len(page) > 0 || md.Objects > 0 {
			return fmt.Errorf("%s holds objects, and no bench of ours has made it: it is left alone", s.name)
		}
	}
	holder, until := parseBenchItem(item)
	if now.Before(until) {
		return fmt.Errorf("%s: %s measures, or was killed: try again after %s", s.name, holder, humanTime(until))
	}
	if item != "" {
		b.tool.warn("%s was left by a bench that was killed (%s): it is emptied", s.name, holder)
	}
	b.ours = true
	if err := b.hold(ctx); err != nil {
		return s.explain(ctx, err)
	}
	d := &deletion{container: s, store: s, connections: defaultConnections, bar: &progress{}}
	return s.explain(ctx, d.empty(ctx))
}

// parseBenchItem reads the item. The time of one that makes no sense is over.
func parseBenchItem(item string) (holder string, until time.Time) {
	holder, at, _ := strings.Cut(item, " ")
	var seconds int64
	if _, err := fmt.Sscanf(at, "%d", &seconds); err != nil {
		return holder, time.Time{}
	}
	return holder, time.Unix(seconds, 0)
}

// hold says that we are at work.
func (b *benching) hold(ctx context.Context) error {
	b.renewed = time.Now()
	return b.scratch.contact.SetMetadata(ctx, map[string]string{keyBench: fmt.Sprintf("%s %d", b.holder, time.Now().Add(b.ahead+benchHold+2*b.each).Unix())})
}

// measure makes the measurements, one after the other.
func (b *benching) measure(ctx context.Context, plan []benchCell) error {
	source := make([]byte, benchSizes[len(benchSizes)-1])
	random := rand.NewChaCha8([32]byte{1}) // which nobody can compress
	_, _ = random.Read(source)
	for _, cell := range plan {
		if time.Since(b.renewed) > benchHold/3 {
			if err := b.hold(ctx); err != nil {
				return err
			}
		}
		r, names, err := b.cell(ctx, cell, source)
		if err == nil {
			b.out.Results = append(b.out.Results, r)
			err = b.drop(ctx, names)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// cell makes one measurement, and returns the names of the objects. Its errors are
// those after which no other one makes sense.
func (b *benching) cell(ctx context.Context, cell benchCell, source []byte) (r benchResult, names []string, err error) {
	r = benchResult{Size: cell.size, Connections: cell.connections}
	var data [benchBuffers][]byte
	var tags [benchBuffers]store.ETag
	for i := range data {
		// Each begins with a byte of its own.
		data[i] = append([]byte{byte(i)}, source[1:cell.size]...)
		sum := md5.Sum(data[i])
		tags[i] = store.ETag(hex.EncodeToString(sum[:]))
	}
	names = make([]string, cell.objects)
	for i := range names {
		names[i] = fmt.Sprintf("%d/%d/%d", cell.size, cell.connections, i)
	}
	written := make([]bool, cell.objects)
	w, err := b.phase(ctx, cell, func(ctx context.Context, i int, _ []byte) error {
		b.mu.Lock()
		b.left[names[i]] = true
		b.mu.Unlock()
		err := b.plain.Put(ctx, names[i], data[i%benchBuffers], tags[i%benchBuffers])
		written[i] = err == nil
		return err
	})
	r.take(w, &r.Write, &r.WriteMean)
	r.Objects = w.done
	b.out.Written += int64(w.done) * cell.size
	b.bar.add(1)
	if err != nil {
		return r, names, err
	}
	there := names[:0:0]
	which := []int{}
	for i, name := range names {
		if written[i] {
			there, which = append(there, name), append(which, i)
		}
	}
	cell.objects = len(there)
	g, err := b.phase(ctx, cell, func(ctx context.Context, i int, p []byte) error {
		_, err := b.plain.Get(ctx, there[i], p, store.GetOptions{Whole: true})
		if err == nil && !bytes.Equal(p, data[which[i]%benchBuffers]) {
			err = errors.New("read object: it has other bytes than were written")
		}
		return err
	})
	r.take(g, &r.Read, &r.ReadMean)
	b.out.Read += int64(g.done) * cell.size
	b.bar.add(1)
	return r, names, err
}

// phaseResult is what writing or reading has come to.
type phaseResult struct {
	size   int64
	done   int           // requests that succeeded
	sum    time.Duration // of their times
	took   time.Duration // from the first beginning to the last end
	failed int
	err    error // the first failure
}

// take notes a phase.
func (r *benchResult) take(p phaseResult, rate, mean **float64) {
	r.Errors += p.failed
	if p.err != nil && r.Error == nil {
		r.Error = ptr(oneLine{p.err}.Error())
	}
	if p.done > 0 && p.took > 0 {
		*rate = ptr(float64(int64(p.done)*p.size) / p.took.Seconds())
		*mean = ptr(p.sum.Seconds() / float64(p.done))
	}
}

// phase makes the requests of all objects of a cell, as many at once as it has
// connections, until all are made or the time is over. Its error is one after which
// there is no sense in going on.
func (b *benching) phase(ctx context.Context, cell benchCell, do func(ctx context.Context, i int, p []byte) error) (r phaseResult, fatal error) {
	r.size = cell.size
	begun := time.Now()
	next := 0
	var mu sync.Mutex // guards next, r and fatal
	var workers sync.WaitGroup
	for range min(cell.connections, cell.objects) {
		workers.Go(func() {
			p := make([]byte, cell.size)
			for {
				mu.Lock()
				i := next
				if i >= cell.objects || fatal != nil || ctx.Err() != nil || time.Since(begun) >= b.each {
					mu.Unlock()
					return
				}
				next++
				mu.Unlock()
				at := time.Now()
				within, cancel := context.WithTimeout(ctx, b.scratch.pace.work.Attempt)
				err := do(within, i, p)
				cancel()
				took := time.Since(at)
				mu.Lock()
				if err == nil {
					r.done++
					r.sum += took
				} else if ctx.Err() == nil {
					r.failed++
					if r.err == nil {
						r.err = err
					}
					if !store.Transient(err) && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, context.DeadlineExceeded) {
						fatal = err
					}
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	r.took = time.Since(begun)
	b.mu.Lock()
	b.out.Requests += int64(next)
	b.mu.Unlock()
	if fatal == nil {
		fatal = ctx.Err()
	}
	return r, fatal
}

// drop deletes objects.
func (b *benching) drop(ctx context.Context, names []string) error {
	b.mu.Lock()
	var there []string
	for _, name := range names {
		if b.left[name] {
			there = append(there, name)
		}
	}
	b.mu.Unlock()
	err := store.DeleteAll(ctx, b.scratch, there, store.DeleteOptions{Batch: bulkNames, Batches: bulkAtOnce, Singly: defaultConnections})
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.out.Requests += int64(len(there))
	for _, name := range there {
		delete(b.left, name)
	}
	return nil
}

// clean deletes what is left, and the container. It does so after an interrupt, too.
func (b *benching) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), benchClean)
	defer cancel()
	var names []string
	for name := range b.left { // the listing may not have them yet
		names = append(names, name)
	}
	err := b.drop(ctx, names)
	if err == nil {
		d := &deletion{container: b.scratch, store: b.scratch, connections: defaultConnections, bar: &progress{}}
		err = d.run(ctx)
	}
	if err != nil {
		// It is over: who comes next need not wait.
		_ = b.scratch.contact.SetMetadata(ctx, map[string]string{keyBench: b.holder + " 0"})
	}
	return err
}

// print prints the results, and what they recommend.
func (b *benching) print() error {
	out := &b.out
	best, log := recommend(out.Results), recommend(largestOf(out.Results))
	if best != nil {
		out.ObjectSize, out.Connections = &best.Size, &best.Connections
	}
	if log != nil {
		out.Log = &log.Connections
	}
	if b.tool.json {
		return b.tool.encode(out)
	}
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "OBJECT\tCONNECTIONS\tWRITE MiB/s\tMEAN\tREAD MiB/s\tMEAN\tERRORS\t")
	rate := func(v *float64) string {
		if v == nil {
			return "-"
		}
		return fmt.Sprintf("%.1f", *v/(1<<20))
	}
	trouble := ""
	for _, r := range out.Results {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%d\t\n", humanSize(r.Size), r.Connections, rate(r.Write), topTime(r.WriteMean), rate(r.Read), topTime(r.ReadMean), r.Errors)
		if r.Error != nil && trouble == "" {
			trouble = fmt.Sprintf("The first error, with %s and %s: %s\n", humanSize(r.Size), words.Count(int64(r.Connections), "connection"), *r.Error)
		}
	}
	_ = w.Flush()
	text.WriteString(trouble)
	switch {
	case best == nil:
		text.WriteString("Nothing is recommended: there was no measurement without errors\n")
	default:
		fmt.Fprintf(&text, "Recommended: setup --object-size %d (%s), connections=%d\n", best.Size, humanSize(best.Size), best.Connections)
	}
	if log != nil {
		fmt.Fprintf(&text, "Recommended for version 2, which has large objects: connections=%d\n", log.Connections)
	}
	_, err := b.tool.stdout.Write([]byte(text.String()))
	return err
}
