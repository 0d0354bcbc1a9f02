// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/cmdline"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// listAtOnce is how many containers list looks at at once.
const listAtOnce = 8

func (t *tool) listCommand() *cobra.Command {
	var simple bool
	cmd := &cobra.Command{
		Use:   "list [CONTAINER…]",
		Short: "List the containers and who uses them",
		Long: `List the containers of the secrets file, or only those that you name. The list
shows the size, the objects, the version of the format, whether the export is
read-only, who holds the lock, and since when. If the command cannot look at a
container, it prints an error, lists the others, and ends with exit status 1.`,
		RunE: t.verb(func(ctx context.Context, args []string) error {
			if simple && t.json {
				return usagef("--simple-output and --json exclude each other")
			}
			entries, err := t.look(ctx, args)
			if err != nil {
				return err
			}
			switch {
			case t.json:
				err = t.printJSON(entries)
			case simple:
				err = t.printSimple(entries)
			default:
				err = t.printTable(entries)
			}
			if err != nil {
				return err
			}
			for _, e := range entries {
				if e.err != nil {
					t.fault(e.err)
					err = errReported
				}
			}
			return err
		}),
		ValidArgsFunction: func(_ *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return t.containersWith(prefix), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVarP(&simple, "simple-output", "s", false, "print one line for each container, as swiftnbd 0.11 did")
	cmdline.Old(cmd.Flags(), "simple-output")
	t.jsonArrayFlag(cmd)
	return cmd
}

// entry is what list has found out about a container.
type entry struct {
	name     string
	readOnly bool
	items    map[string]string // the raw metadata; nil if it could not be read
	meta     volume.Meta       // valid if setUp
	setUp    bool
	stored   store.Metadata // what Swift counts in it
	err      error          // why there is nothing to print, or not all of it
}

// look asks for the metadata of the named containers, or of all in the secrets
// file, several at once. The result is in their order.
func (t *tool) look(ctx context.Context, names []string) ([]*entry, error) {
	if err := t.load(); err != nil {
		return nil, err
	}
	if len(names) == 0 {
		if t.noFile != nil {
			return nil, fmt.Errorf("%w: without it, say which containers, as in %s list CONTAINER", t.noFile, program)
		}
		names = t.secrets.Containers()
	}
	entries := make([]*entry, len(names))
	var g errgroup.Group
	g.SetLimit(listAtOnce)
	for i, name := range names {
		e := &entry{name: name}
		entries[i] = e
		c, err := t.open(name) // not in the goroutine, since open is not safe for several
		if err != nil {
			e.err = err
			continue
		}
		e.readOnly = c.export.ReadOnly
		g.Go(func() error {
			md, err := c.contact.MetadataHint(ctx)
			if err != nil {
				e.err = c.explain(ctx, err)
				return nil
			}
			e.items, e.stored = md.Items, md
			e.meta, err = volume.FromMetadata(md)
			e.setUp = err == nil
			if err != nil && !errors.Is(err, volume.ErrNotSetUp) {
				e.err = c.explain(ctx, err)
			}
			return nil
		})
	}
	return entries, g.Wait()
}

// printSimple prints exactly the lines of swiftnbd 0.11's `list -s`: the raw
// metadata of the container, even if it makes no sense.
func (t *tool) printSimple(entries []*entry) error {
	for _, e := range entries {
		if e.items == nil {
			continue
		}
		version, objects, size := e.items[volume.KeyVersion], e.items[volume.KeyObjects], e.items[volume.KeyObjectSize]
		line := e.name + " is not a swiftnbd container"
		if version != "" && objects != "" && size != "" {
			lock := "unlocked"
			if client := e.items[volume.KeyClient]; client != "" {
				lock = "locked by " + client
			}
			line = fmt.Sprintf("%s objects=%s size=%s (version=%s, %s)", e.name, objects, size, version, lock)
		}
		if _, err := fmt.Fprintln(t.stdout, line); err != nil {
			return err
		}
	}
	return nil
}

// printTable prints aligned columns for people.
func (t *tool) printTable(entries []*entry) error {
	w := tabwriter.NewWriter(t.stdout, 0, 0, 2, ' ', 0)
	header := false
	for _, e := range entries {
		if e.err != nil || e.items == nil {
			continue
		}
		if !header {
			fmt.Fprintln(w, "CONTAINER\tSIZE\tOBJECTS\tVERSION\tACCESS\tLOCK")
			header = true
		}
		if !e.setUp {
			fmt.Fprintf(w, "%s\t-\t-\t-\t-\tnot a swiftnbd container\n", e.name)
			continue
		}
		access := "read-write"
		if e.readOnly {
			access = "read-only"
		}
		lock := "unlocked"
		if e.meta.Client != "" {
			holder, at := lease.ParseMark(e.meta.Client)
			lock = holder + since(at)
		}
		objects := "-"
		if g := e.meta.Geometry; e.meta.Version == volume.Version1 {
			objects = fmt.Sprintf("%d x %s", g.Objects(), humanSize(g.ObjectSize()))
		} else {
			objects = fmt.Sprintf("about %d, %s", e.stored.Objects, humanSize(e.stored.Bytes))
			if e.meta.Parent != "" {
				parent, snap := volume.ParseParent(e.meta.Parent)
				if objects += ", clone"; parent != "" {
					objects += " of " + store.OneLine(parent) + "@" + store.OneLine(snap)
				}
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", e.name, humanSize(e.meta.Size), objects, e.meta.Version, access, lock)
	}
	return w.Flush()
}

// listed is an entry in JSON. Every key is always there; what does not apply
// is null.
type listed struct {
	Container  string     `json:"container"`
	SetUp      bool       `json:"set_up"`
	Version    *int       `json:"version"`
	Size       *int64     `json:"size"`
	Objects    *int64     `json:"objects"`
	ObjectSize *int64     `json:"object_size"`
	Stored     *int64     `json:"stored_objects"` // as Swift counts them, about
	Bytes      *int64     `json:"stored_bytes"`
	ReadOnly   bool       `json:"read_only"`
	Locked     bool       `json:"locked"`
	Holder     *string    `json:"holder"`
	Since      *time.Time `json:"since"`
	Last       *string    `json:"last"`
	Parent     *string    `json:"parent"` // of a clone: its container
	ParentSnap *string    `json:"parent_snapshot"`
	versioned
	Error *string `json:"error"`
}

func (t *tool) printJSON(entries []*entry) error {
	out := make([]listed, 0, len(entries))
	for _, e := range entries {
		l := listed{Container: e.name, SetUp: e.setUp, ReadOnly: e.readOnly}
		if e.err != nil {
			text := e.err.Error()
			l.Error = &text
		}
		if e.setUp {
			g := e.meta.Geometry
			l.versioned = versionsOf(e.meta.Versions)
			l.Version, l.Size = &e.meta.Version, &e.meta.Size
			l.Stored, l.Bytes = &e.stored.Objects, &e.stored.Bytes
			if objects, objectSize := g.Objects(), g.ObjectSize(); e.meta.Version == volume.Version1 {
				l.Objects, l.ObjectSize = &objects, &objectSize
			}
			if e.meta.Parent != "" {
				parent, snap := volume.ParseParent(e.meta.Parent)
				l.Parent, l.ParentSnap = &parent, &snap
			}
			if e.meta.Last != "" {
				l.Last = &e.meta.Last
			}
		}
		if e.meta.Client != "" {
			holder, at := lease.ParseMark(e.meta.Client)
			l.Locked, l.Holder = true, &holder
			if !at.IsZero() {
				at = at.UTC()
				l.Since = &at
			}
		}
		out = append(out, l)
	}
	return t.encode(out)
}
