// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/cache"
	"swiftnbd/internal/chunked"
	"swiftnbd/internal/cloud"
	"swiftnbd/internal/device"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

const (
	// uploadUnit is how much of an image is read at once at least, bytes. Of a
	// disk of version 1 a unit is a whole number of objects.
	uploadUnit = 1 << 20
	// uploadMemory bounds the units that an upload holds, bytes, as long as two
	// of them fit. The disk's cache comes on top.
	uploadMemory = 256 << 20
	// uploadLag is how long what is not in Swift yet may take to get there: so long
	// the end of an upload takes that is interrupted.
	uploadLag = 4 * time.Second
	// uploadHole is the longest hole that is one piece, in units: the piece that is
	// begun comes to its end, also after an interrupt.
	uploadHole = 1024
	// logGrain is the shortest run of zeroes that becomes a hole of a disk of
	// version 2, bytes. A shorter one would cost more in the map than in the log.
	logGrain = 32 << 10
)

// uploadOptions are the options of upload.
type uploadOptions struct {
	size, format, objectSize string // of a disk that is to be set up
	imageFormat              string
	force, quiet             bool
	connections              int
}

func (t *tool) uploadCommand() *cobra.Command {
	var o uploadOptions
	var onto string
	cmd := &cobra.Command{
		Use:   "upload FILE {CONTAINER | --onto CONTAINER}",
		Short: "Upload an image to a disk",
		Long: `Upload an image to a disk. FILE is a file, a block device, or "-" for standard
input. A file may be a raw, qcow2, vmdk, vdi or vhdx image; qemu's programs read all
but the first. What the image does not fill reads as zeroes afterwards. Holes and zeroes are
not sent.

If the container is not set up, the command sets it up as a disk of the image's
size, or of --size bytes. It refuses a disk that has data, unless you give --force.
It refuses a locked container, and holds the lock while it uploads.

After an interrupted upload, run the same command again: it compares what it has
uploaded with the image, and goes on from there.

With --onto, FILE is an increment, which "download --image-format increment" has made:
what has changed on a disk since a snapshot. It goes onto a copy of that snapshot, which
becomes a copy of the newer one.`,
		Example: `  swiftnbd-ctl upload debian.raw mydisk
  zcat debian.raw.gz | swiftnbd-ctl upload - mydisk --size 10G
  swiftnbd-ctl upload tuesday.increment --onto mybackup`,
		Args: func(cmd *cobra.Command, args []string) error {
			if onto != "" {
				return needs("FILE")(cmd, args)
			}
			return needs("FILE", "CONTAINER")(cmd, args)
		},
		RunE: t.verb(func(ctx context.Context, args []string) error {
			if onto == "" {
				return t.upload(ctx, args[0], args[1], o)
			}
			if o.size != "" || o.format != "" || o.objectSize != "" || o.imageFormat != "" || o.force {
				return usagef("--onto and --size, --format, --object-size, --image-format and --force exclude each other: the increment says what it is")
			}
			return t.onto(ctx, args[0], onto, o)
		}),
		ValidArgsFunction: func(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			switch {
			case len(args) == 0:
				return nil, cobra.ShellCompDirectiveDefault
			case len(args) == 1 && onto == "":
				return t.containersWith(prefix), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.objectSize, "object-size", "", "size of an object in `bytes`, for a disk that is set up. If not given: 1M")
	f.StringVar(&o.size, "size", "", "size of the disk in `bytes`, for a disk that is set up. If not given: that of the image")
	f.StringVar(&o.format, "format", "", "`version` of the format, 1 or 2, for a disk that is set up. If not given: 1")
	values(cmd, "format", "1", "2")
	t.policyFlag(cmd)
	f.StringVarP(&o.imageFormat, "image-format", "O", "", "`format` of FILE: raw, qcow2, vmdk, vdi or vhdx. If not given: by its content")
	values(cmd, "image-format", readFormats...)
	f.BoolVarP(&o.force, "force", "f", false, "replace the disk's data")
	f.StringVar(&onto, "onto", "", "write FILE, an increment, onto the disk in `CONTAINER`, which is a copy of the snapshot that it begins with")
	t.jsonFlag(cmd)
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress bar")
	connectionsFlag(cmd, &o.connections)
	_ = cmd.RegisterFlagCompletionFunc("onto", func(_ *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return t.containersWith(prefix), cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

// uploaded is what upload prints as JSON.
type uploaded struct {
	Container string  `json:"container"`
	Version   int     `json:"version"`
	Size      int64   `json:"size"`       // of the disk
	Image     int64   `json:"image"`      // bytes of the image
	Resumed   int64   `json:"resumed_at"` // where an earlier upload was gone on from
	Sent      int64   `json:"sent"`       // bytes of data that were written to the disk
	Seconds   float64 `json:"seconds"`
	Since     *string `json:"since"`    // with --onto: the snapshot before, if there is one
	Snapshot  *string `json:"snapshot"` // with --onto: the snapshot that the disk has now
}

// upload copies the image path to the disk, under the container's lock.
func (t *tool) upload(ctx context.Context, path, name string, o uploadOptions) error {
	begun := time.Now()
	if err := checkFormat(o.imageFormat, readFormats); err != nil {
		return err
	}
	if o.format != "" && o.format != "1" && o.format != "2" {
		return usagef("--format: must be 1 or 2, not %q", o.format)
	}
	c, err := t.open(name)
	if err != nil {
		return err
	}
	if err := c.writable(); err != nil {
		return err
	}
	// Whoever fills a pipe is not waited for after the disk's first error either.
	reading, stop := context.WithCancel(ctx)
	defer stop()
	in, err := openInput(reading, path, o.imageFormat, t.stdin)
	if err != nil {
		return c.cut(ctx, err)
	}
	defer func() { _ = in.close() }()
	state, err := t.ready(ctx, c, in, path, o)
	if err != nil {
		return err
	}

	u, err := t.openUpload(ctx, c, state, in, path, o)
	if err != nil {
		return err
	}
	context.AfterFunc(u.broken, stop)
	err = u.run(ctx)
	if err = u.end(ctx, err); err != nil {
		return err
	}
	return t.done(uploaded{
		Container: name, Version: state.Meta.Version, Size: u.device.Size(), Image: u.at, Resumed: u.begun,
		Sent: u.sent.Load(), Seconds: time.Since(begun).Seconds(),
	}, "Done, %d bytes uploaded, %d of them data that was sent", u.at, u.sent.Load())
}

// upload is one run of an upload, with the disk open.
type upload struct {
	tool      *tool
	container *container
	in        input
	path      string
	o         uploadOptions
	device    *device.Device
	store     store.Store // the container, for the record
	unit      int64       // bytes of a piece
	grain     int64       // bytes of the smallest hole

	was   uploadRecord // of an earlier upload, if there is one
	fresh bool         // the disk is all holes
	begun int64        // where this run goes on

	// broken ends with the first error of the disk, and fail ends it.
	broken context.Context
	fail   context.CancelCauseFunc

	digest digest
	at     int64 // the bytes of the image that were read
	sent   atomic.Int64
	bar    *progress

	record uploadRecord // what was noted last
}

// openUpload takes the disk, unless it has data that must stay.
func (t *tool) openUpload(ctx context.Context, c *container, state lease.State, in input, path string, o uploadOptions) (*upload, error) {
	meta := state.Meta
	u := &upload{tool: t, container: c, in: in, path: path, o: o, unit: uploadUnit, grain: logGrain, digest: newDigest(), bar: &progress{}}
	u.broken, u.fail = context.WithCancelCause(context.WithoutCancel(ctx))
	cacheSize := logdisk.MinCache()
	if meta.Version == volume.Version1 {
		each := meta.Geometry.ObjectSize()
		u.grain, u.unit = each, each*max(1, uploadUnit/each)
		cacheSize = max(min(2*int64(o.connections)*each, device.MaxDefaultCache), cache.MinSize(each))
	}
	d, s, err := t.openToWrite(ctx, c, o, cacheSize)
	if err != nil {
		return nil, err
	}
	u.store = s
	u.device = d
	if err := u.look(ctx); err != nil {
		if cerr := d.Close(); cerr != nil {
			t.fault(fmt.Errorf("%s: %w", c.name, oneLine{cerr}))
		}
		return nil, err
	}
	return u, nil
}

// openToWrite takes a disk for an upload, with a cache of so many bytes at least. It
// returns the container, too, for the records of how far it is.
func (t *tool) openToWrite(ctx context.Context, c *container, o uploadOptions, least int64) (*device.Device, store.Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, c.explain(ctx, err)
	}
	account := cloud.New(c.client, cloud.Options{Connections: o.connections, Policy: t.telling(c.name, t.pace.work), Watch: c.watch})
	opts := device.Options{
		Holder: holderUpload, Bases: c.bases, Connections: o.connections, Readahead: -1, FlushTime: uploadLag, Timeout: t.pace.work.Timeout,
		Compress: c.export.Disk.Compress,
		Cache:    max(t.pace.uploadCache, least),
		Log:      t.warner(c.name),
	}
	opts.Store, opts.Lease = account.Writer(c.name, t.pace.uploadTerm)
	// An interrupt must not leave the lock behind.
	d, err := device.Open(context.WithoutCancel(ctx), opts)
	if err != nil {
		return nil, nil, c.explain(ctx, err)
	}
	return d, account.Unlimited(c.name), nil
}

// look finds out whether the disk has data, and whether that is of an earlier
// upload.
func (u *upload) look(ctx context.Context) error {
	c, meta := u.container, u.device.Meta()
	meta.Size = u.device.Size() // with version 2, the container's may be old
	if err := u.o.fits(c.name, meta, u.in, u.path); err != nil {
		return err
	}
	// An interrupt is for later: the record would be that of a session before this
	// one, and count for nothing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
	defer cancel()
	md, err := u.store.Metadata(ctx)
	if err != nil {
		return c.explain(ctx, err)
	}
	u.record = uploadRecord{unit: u.unit, mark: md.Items[volume.KeyClient]}
	u.was, _ = unfinishedUpload(md.Items, meta.Last)
	if u.was.at > 0 && u.was.unit != u.unit {
		u.was = uploadRecord{}
	}
	if !u.was.there() && md.Items[volume.KeyUpload] != "" {
		// It is void: the disk was changed after it. Marks have whole seconds, so
		// that of this session may be the same as the record's, and the next
		// session must not take the record for good.
		if err := (uploadRecord{}).write(ctx, u.store); err != nil {
			return c.explain(ctx, err)
		}
	}
	switch {
	case u.was.there():
		// From now on it is this session's.
		u.record.at, u.record.sum = u.was.at, u.was.sum
	case meta.Blank:
		u.fresh = true
	case u.o.force:
		return nil
	case meta.Version == volume.Version1:
		err = c.empty(ctx, u.store, meta)
	default:
		u.fresh = true
		err = u.extents(0, u.device.Size(), func(_, _ int64) error {
			u.fresh = false
			return errFull(c.name)
		})
	}
	if err != nil {
		return err
	}
	// If this upload is killed before it has noted how far it is, the next one knows
	// whose the data is.
	return c.explain(ctx, u.record.write(ctx, u.store))
}

func errFull(name string) error { return fmt.Errorf("%s has data: --force replaces it", name) }

// empty returns an error if there are objects of a disk of version 1. A listing is
// late, so the map of the last session is asked, too.
func (c *container) empty(ctx context.Context, s store.Store, meta volume.Meta) error {
	page, err := s.List(ctx, store.ListOptions{Prefix: chunked.Prefix, Limit: 1})
	if err != nil {
		return c.explain(ctx, err)
	}
	if len(page) > 0 {
		return errFull(c.name)
	}
	known, err := chunked.KnownFrom(ctx, s, meta, 0, 1)
	if err != nil {
		return c.explain(ctx, err)
	}
	if len(known) > 0 {
		return errFull(c.name)
	}
	return nil
}

// extents calls data for each run of the range that is not a hole.
func (u *upload) extents(off, n int64, data func(off, n int64) error) error {
	for end := off + n; off < end; {
		var found [][2]int64
		err := u.device.Extents(off, end-off, func(at, n int64, hole bool) bool {
			if !hole {
				found = append(found, [2]int64{at, n})
			}
			off = at + n
			return len(found) < 1024
		})
		if err != nil {
			return err
		}
		for _, r := range found {
			if err := data(r[0], r[1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// errOtherImage says that the disk has the beginning of another image.
var errOtherImage = errors.New("the disk has a part of another image")

// compare reads as much of the image as an earlier upload had uploaded, and finds
// out whether it is the same. Only then is the upload where that one was: what was
// read of another image is not in the disk, and end would note it as uploaded.
func (u *upload) compare(ctx context.Context) error {
	u.bar = u.tool.newProgress("Comparing "+u.container.name, u.was.at, true, u.o.quiet)
	defer func() { u.bar.end(false) }()
	p, at, d := make([]byte, u.unit), int64(0), newDigest()
	for at < u.was.at {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, hole, err := u.in.next(p, u.was.at-at)
		if errors.Is(err, io.EOF) {
			return errOtherImage
		}
		if err != nil {
			return err
		}
		if !hole && !zero(p[:n]) {
			d.add(at, p[:n])
		}
		at += n
		u.bar.add(n)
	}
	if at != u.was.at || d.sum() != u.was.sum {
		return errOtherImage
	}
	u.at, u.digest = at, d
	u.bar.end(true)
	return nil
}

// zero says whether p is all zeroes.
func zero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeroes))
		if !bytes.Equal(p[:n], zeroes[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// run uploads the image, from where an earlier upload was. All that was begun is
// in the disk when it returns, unless broken says why it is not.
func (u *upload) run(ctx context.Context) error {
	if u.was.at > 0 {
		if err := u.goOn(ctx); err != nil {
			return err
		}
	}
	total := u.in.data(u.at)
	weighed := total >= 0
	if !weighed {
		total = u.device.Size() - u.at
	}
	u.bar = u.tool.newProgress("Uploading "+u.container.name, max(total, 1), true, u.o.quiet)
	defer func() { u.bar.end(false) }()
	if err := u.copy(ctx, weighed); err != nil {
		return err
	}
	if err := u.finish(ctx); err != nil {
		return err
	}
	u.bar.end(true)
	return nil
}

// finish clears the disk behind the image, and makes all of it durable.
func (u *upload) finish(ctx context.Context) error {
	for at := u.at; ; at += uploadHole * u.unit {
		if err := ctx.Err(); err != nil {
			return err
		}
		left := u.device.Size() - at
		if left <= 0 {
			break
		}
		if err := u.clear(at, min(left, uploadHole*u.unit)); err != nil {
			u.fail(err)
			return err
		}
	}
	if err := u.device.Sync(); err != nil {
		u.fail(err)
		return err
	}
	return nil
}

// goOn brings the image to where an earlier upload was, or to its beginning if
// that was of another image.
func (u *upload) goOn(ctx context.Context) error {
	err := u.compare(ctx)
	switch {
	case err == nil:
		u.begun = u.at
		return nil
	case !errors.Is(err, errOtherImage):
		return err
	case !u.o.force:
		return fmt.Errorf("%w: %s of it, from an upload that was interrupted: --force replaces it", err, humanSize(u.was.at))
	}
	if err := (uploadRecord{}).write(ctx, u.store); err != nil {
		return err
	}
	u.record.at, u.was.at = 0, 0
	in, err := u.again(ctx)
	if err == nil {
		u.in = in
	}
	return err
}

// again opens the image anew, to be read from its beginning.
func (u *upload) again(ctx context.Context) (input, error) {
	if u.in.size() < 0 {
		return nil, fmt.Errorf("%w, and a pipe cannot be read from its beginning again: run the command again, it begins anew then", errOtherImage)
	}
	_ = u.in.close()
	if f, ok := u.tool.stdin.(*os.File); ok && u.path == "-" {
		// The search for holes has moved it, and from there on it would be a pipe.
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
	}
	return openInput(ctx, u.path, u.o.imageFormat, u.tool.stdin)
}

// end gives the disk back, after run has returned err. The error that it returns
// says how to go on.
func (u *upload) end(ctx context.Context, err error) error {
	c := u.container
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
	defer cancel()
	// Also a complete upload has its record until the disk is given back.
	if nerr := u.note(within, u.at, u.digest.sum()); nerr != nil && !errors.Is(err, nerr) {
		u.tool.log.DebugContext(ctx, "no note of how far the upload is", "error", nerr)
	}
	lost, err := u.tool.giveBack(ctx, within, c, u.device, context.Cause(u.broken) != nil, err)
	if lost {
		return fmt.Errorf("%s was unlocked while it was uploaded: it is not complete", c.name)
	}
	if err == nil {
		if nerr := (uploadRecord{}).write(within, u.store); nerr != nil {
			u.tool.log.DebugContext(ctx, "the record of the upload stays", "error", nerr)
		}
		return nil
	}
	u.settle(within)
	err = c.explain(ctx, err)
	if errors.Is(err, errOtherImage) {
		return err
	}
	if u.record.at == 0 {
		return fmt.Errorf("%w; nothing is uploaded yet: to begin anew, run the same command again", err)
	}
	of := ""
	if n := u.in.size(); n >= 0 {
		of = " of " + humanSize(n)
	}
	return fmt.Errorf("%w; %s%s is uploaded: to go on from there, run the same command again", err, humanSize(u.record.at), of)
}

// giveBack gives a disk back to which was written, after err. broken says that a
// write has failed. It returns whether somebody has taken the disk, and the error
// that is to be told.
func (t *tool) giveBack(ctx, within context.Context, c *container, d *device.Device, broken bool, err error) (lost bool, _ error) {
	lost = d.Lost() != nil
	if !lost && !broken {
		cerr := d.Close()
		var le *device.LostError
		lost = errors.As(cerr, &le)
		if cerr != nil && (err == nil || ctx.Err() == nil) {
			err = cerr
		}
	}
	if lost {
		d.Abandon()
		return true, err
	}
	if d.Open() {
		t.letGo(within, c, d) // what was not written yet is of no account
	}
	return false, err
}

// letGo gives a disk back that cannot be closed, since Swift does not take what is left
// to be written. Whoever comes next gets another key, so that a late request of ours does
// no harm.
func (t *tool) letGo(ctx context.Context, c *container, d *device.Device) {
	d.Abandon()
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
	defer cancel()
	if _, err := lease.Unlock(within, c.lease("", 0)); err != nil && !errors.Is(err, lease.ErrNotLocked) {
		t.fault(fmt.Errorf("%s stays locked: %w", c.name, oneLine{err}))
	}
}

// settle binds the record to the session before, if the disk was given back as it
// was.
func (u *upload) settle(ctx context.Context) {
	if !u.was.there() || u.record.at != u.was.at {
		return
	}
	if md, err := u.store.Metadata(ctx); err == nil && md.Items[volume.KeyLast] == u.was.mark {
		_ = u.was.write(ctx, u.store)
	}
}
