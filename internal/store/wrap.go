// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"strconv"
	"strings"
	"unicode"
)

// Kind is one of Store's methods.
type Kind string

// The kinds of operations, by Store's methods.
const (
	OpGet             Kind = "GET"
	OpHead            Kind = "HEAD"
	OpPut             Kind = "PUT"
	OpDelete          Kind = "DELETE"
	OpList            Kind = "LIST"
	OpBulkDelete      Kind = "BULK DELETE"
	OpMetadata        Kind = "METADATA"
	OpSetMetadata     Kind = "SET METADATA"
	OpCreateContainer Kind = "CREATE CONTAINER"
	OpDeleteContainer Kind = "DELETE CONTAINER"
)

// Writes says whether operations of this kind change the store.
func (k Kind) Writes() bool {
	switch k {
	case OpGet, OpHead, OpList, OpMetadata:
		return false
	}
	return true
}

// Op is one operation as a decorator sees it.
type Op struct {
	Kind Kind
	Name string // the object's, or "" for operations on the container
	// Bytes is the length of the data of a Get or Put; 0 for the rest.
	Bytes int
	// Fresh says that a read cannot be stale. This is true of a Get with Newest
	// or IfMatch, of Head and of Metadata, and not of MetadataHint.
	Fresh bool
}

// String returns the operation as errors name it: "GET disk.part/00000003".
func (o Op) String() string {
	if o.Name == "" {
		return string(o.Kind)
	}
	return OneLine(string(o.Kind) + " " + o.Name)
}

// OneLine returns s, quoted where it has a control character: a name may have
// one, and an error is one line.
func OneLine(s string) string {
	if strings.ContainsFunc(s, unicode.IsControl) {
		return strconv.Quote(s)
	}
	return s
}

// Around is what Wrap puts around every operation. It calls call once, several
// times or not at all. Its error is the operation's error.
type Around func(ctx context.Context, op Op, call func(context.Context) error) error

// Wrap returns s with around put around each of its operations.
func Wrap(s Store, around Around) Store { return wrapped{s, around} }

type wrapped struct {
	s      Store
	around Around
}

func (w wrapped) Get(ctx context.Context, name string, p []byte, o GetOptions) (info ObjectInfo, err error) {
	op := Op{Kind: OpGet, Name: name, Bytes: len(p), Fresh: o.Newest || o.IfMatch != ""}
	err = w.around(ctx, op, func(ctx context.Context) (err error) {
		info, err = w.s.Get(ctx, name, p, o)
		return err
	})
	return info, err
}

func (w wrapped) Head(ctx context.Context, name string) (info ObjectInfo, err error) {
	err = w.around(ctx, Op{Kind: OpHead, Name: name, Fresh: true}, func(ctx context.Context) (err error) {
		info, err = w.s.Head(ctx, name)
		return err
	})
	return info, err
}

func (w wrapped) Put(ctx context.Context, name string, data []byte, etag ETag) error {
	return w.around(ctx, Op{Kind: OpPut, Name: name, Bytes: len(data)}, func(ctx context.Context) error {
		return w.s.Put(ctx, name, data, etag)
	})
}

func (w wrapped) Delete(ctx context.Context, name string) error {
	return w.around(ctx, Op{Kind: OpDelete, Name: name}, func(ctx context.Context) error {
		return w.s.Delete(ctx, name)
	})
}

func (w wrapped) List(ctx context.Context, o ListOptions) (page []ObjectInfo, err error) {
	err = w.around(ctx, Op{Kind: OpList}, func(ctx context.Context) (err error) {
		page, err = w.s.List(ctx, o)
		return err
	})
	return page, err
}

func (w wrapped) BulkDelete(ctx context.Context, names []string) error {
	return w.around(ctx, Op{Kind: OpBulkDelete}, func(ctx context.Context) error {
		return w.s.BulkDelete(ctx, names)
	})
}

func (w wrapped) Metadata(ctx context.Context) (m Metadata, err error) {
	err = w.around(ctx, Op{Kind: OpMetadata, Fresh: true}, func(ctx context.Context) (err error) {
		m, err = w.s.Metadata(ctx)
		return err
	})
	return m, err
}

func (w wrapped) MetadataHint(ctx context.Context) (m Metadata, err error) {
	err = w.around(ctx, Op{Kind: OpMetadata}, func(ctx context.Context) (err error) {
		m, err = w.s.MetadataHint(ctx)
		return err
	})
	return m, err
}

func (w wrapped) SetMetadata(ctx context.Context, items map[string]string) error {
	return w.around(ctx, Op{Kind: OpSetMetadata}, func(ctx context.Context) error {
		return w.s.SetMetadata(ctx, items)
	})
}

func (w wrapped) CreateContainer(ctx context.Context, items map[string]string) (created bool, err error) {
	err = w.around(ctx, Op{Kind: OpCreateContainer}, func(ctx context.Context) (err error) {
		created, err = w.s.CreateContainer(ctx, items)
		return err
	})
	return created, err
}

func (w wrapped) DeleteContainer(ctx context.Context) error {
	return w.around(ctx, Op{Kind: OpDeleteContainer}, func(ctx context.Context) error {
		return w.s.DeleteContainer(ctx)
	})
}
