// SPDX-License-Identifier: MIT

package clouds

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// maxDepth and maxNodes bound a file whose aliases would become a tree
	// without an end, or one that fills the memory.
	maxDepth = 64
	maxNodes = 100_000
)

// node is a value of a file, with its place. Exactly one of fields, items and
// text is in use. It is never changed once it is parsed.
type node struct {
	path   string
	line   int
	text   string           // of a scalar
	null   bool             // the scalar is null
	fields map[string]*node // not nil: a mapping
	items  []*node          // not nil: a sequence
}

func newMapping() *node { return &node{fields: map[string]*node{}} }

// absent says whether there is no value. A null is none.
func (n *node) absent() bool { return n == nil || n.null }

// field returns a field of a mapping, or nil.
func (n *node) field(name string) *node {
	if n == nil {
		return nil
	}
	return n.fields[name]
}

// normal returns n with "_" for each "-" in the keys, which mean the same in the
// settings of a cloud.
func (n *node) normal() *node {
	if n.absent() || n.fields == nil {
		return n
	}
	out := &node{path: n.path, line: n.line, fields: make(map[string]*node, len(n.fields))}
	for key, f := range n.fields {
		if name := strings.ReplaceAll(key, "-", "_"); name == key || n.fields[name] == nil {
			out.fields[name] = f.normal()
		}
	}
	return out
}

// scalar returns the text of a scalar.
func (n *node) scalar() (string, error) {
	if n.fields != nil || n.items != nil {
		return "", errors.New("must be a single value")
	}
	return n.text, nil
}

// merged returns old with what more has: a mapping is merged, at any depth, and
// everything else is replaced. So is secure.yaml merged into clouds.yaml.
func merged(old, more *node) *node {
	if old.absent() || old.fields == nil || more.fields == nil {
		return more
	}
	out := &node{path: old.path, line: old.line, fields: make(map[string]*node, len(old.fields))}
	for key, f := range old.fields {
		out.fields[key] = f
	}
	for key, f := range more.fields {
		out.fields[key] = merged(out.fields[key], f)
	}
	return out
}

// updated is merged for auth only: other mappings are replaced as a whole. So is
// a cloud put over its profile, and a region over its cloud.
func updated(old, more *node) *node {
	if more.absent() {
		return old
	}
	out := &node{path: more.path, line: more.line, fields: make(map[string]*node)}
	for key, f := range old.fields {
		out.fields[key] = f
	}
	for key, f := range more.fields {
		if key == "auth" {
			f = merged(out.fields[key], f)
		}
		out.fields[key] = f
	}
	return out
}

// parse returns what a file holds. An error is a *Fault.
func parse(file *File) (*node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(file.Data, &doc); err != nil {
		return nil, syntax(file.Path, err)
	}
	if doc.Kind == 0 { // an empty file
		return newMapping(), nil
	}
	t := &builder{path: file.Path}
	root, err := t.build(&doc, 0)
	switch {
	case err != nil:
		return nil, err
	case root.null:
		return newMapping(), nil
	case root.fields == nil:
		return nil, &Fault{Path: file.Path, Line: root.line, Err: errors.New("not a file of clouds: it must begin with `clouds:`")}
	}
	return root, nil
}

// syntax returns the error of the YAML library as a Fault. The library's syntax
// errors quote nothing of the file.
func syntax(path string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	f := &Fault{Path: path}
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if number, what, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				f.Line, text = n, what
			}
		}
	}
	f.Err = fmt.Errorf("not YAML: %s", text)
	return f
}

// builder makes nodes of a file's YAML: it follows aliases, and merges what "<<"
// names.
type builder struct {
	path  string
	count int
}

func (t *builder) fault(at *yaml.Node, key string, format string, a ...any) error {
	return &Fault{Path: t.path, Line: at.Line, Key: key, Err: fmt.Errorf(format, a...)}
}

func (t *builder) build(y *yaml.Node, depth int) (*node, error) {
	if t.count++; t.count > maxNodes || depth > maxDepth {
		return nil, t.fault(y, "", "too many values, or too deep")
	}
	n := &node{path: t.path, line: y.Line}
	switch y.Kind {
	case yaml.DocumentNode:
		return t.build(y.Content[0], depth+1)
	case yaml.AliasNode:
		return t.build(y.Alias, depth+1)
	case yaml.ScalarNode:
		n.text, n.null = y.Value, y.ShortTag() == "!!null"
	case yaml.SequenceNode:
		n.items = make([]*node, 0, len(y.Content))
		for _, item := range y.Content {
			one, err := t.build(item, depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, one)
		}
	case yaml.MappingNode:
		return n, t.mapping(n, y, depth)
	}
	return n, nil
}

// mapping fills in a mapping's fields.
func (t *builder) mapping(n *node, y *yaml.Node, depth int) error {
	n.fields = make(map[string]*node, len(y.Content)/2)
	var below []*node // what "<<" names; a field of its own counts more
	for i := 0; i+1 < len(y.Content); i += 2 {
		key, value := y.Content[i], y.Content[i+1]
		f, err := t.build(value, depth+1)
		if err != nil {
			return err
		}
		if key.ShortTag() == "!!merge" {
			if f.items == nil {
				f.items = []*node{f}
			}
			below = append(below, f.items...)
			continue
		}
		if key.Kind != yaml.ScalarNode {
			return t.fault(key, "", "a key must be a single word")
		}
		if first := n.fields[key.Value]; first != nil {
			return t.fault(key, key.Value, "given twice, first in line %d", first.line)
		}
		n.fields[key.Value] = f
	}
	for _, b := range below {
		if b.fields == nil {
			return t.fault(y, "<<", "must name settings")
		}
		for key, f := range b.fields {
			if n.fields[key] == nil {
				n.fields[key] = f
			}
		}
	}
	return nil
}
