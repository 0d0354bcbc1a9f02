// SPDX-License-Identifier: MIT

// Package clouds reads clouds.yaml, the file in which OpenStack's tools keep
// their clouds, with secure.yaml and clouds-public.yaml beside it. It finds the
// files, merges them, and picks a cloud and a region. It makes no request, and
// knows nothing of a login: internal/config makes one of a Cloud.
//
// openstacksdk is the measure: what it takes from the files, this package takes
// too (openstack/config/loader.py; a test holds the two against each other). It
// differs in four things, on purpose:
//
//   - A file that exists and cannot be read is an error, and is not passed over.
//     So is a file that OS_CLIENT_CONFIG_FILE or OS_CLIENT_SECURE_FILE names and
//     that does not exist.
//   - secure.yaml is also looked for beside the clouds.yaml that was found.
//   - The profiles that openstacksdk has built in are not known. A profile that
//     clouds-public.yaml does not have is an error.
//   - A value is the text that stands in the file: 0123 and no are not taken for
//     a number and a truth value where a password is meant.
package clouds

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
)

// Fault is something wrong in the files: where, and what.
type Fault struct {
	Path  string
	Line  int    // from 1; 0 if the fault is in no line
	Cloud string // empty if the fault is in no cloud
	Key   string // "auth.password"; empty if the fault is in no key
	Err   error
}

// Error returns "PATH:LINE: cloud NAME: KEY: what", without the parts that are
// not known.
func (f *Fault) Error() string {
	var b strings.Builder
	b.WriteString(f.Path)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d", f.Line)
	}
	if f.Cloud != "" {
		b.WriteString(": cloud " + printable(f.Cloud))
	}
	if f.Key != "" {
		b.WriteString(": " + printable(f.Key))
	}
	b.WriteString(": " + f.Err.Error())
	return b.String()
}

// Unwrap returns what was wrong.
func (f *Fault) Unwrap() error { return f.Err }

// Set is the clouds of the files that were found. It is immutable, and may be
// used by many goroutines. The files are parsed when the first cloud is asked
// for: a fault in them concerns nobody who names no cloud.
type Set struct {
	files  Files
	once   sync.Once
	err    error
	clouds map[string]*node
	public map[string]*node
}

// New returns the clouds of the files.
func New(files Files) *Set { return &Set{files: files} }

// Again reads the files once more, from the places where they were looked for. If one
// of them is a pipe, which can be read only once, they count as they were.
func (s *Set) Again() *Set {
	if s == nil || s.files.Places.Directory == "" {
		return s
	}
	for _, f := range []*File{s.files.Clouds, s.files.Secure, s.files.Public} {
		if f == nil {
			continue
		}
		if info, err := os.Stat(f.Path); err == nil && !info.Mode().IsRegular() {
			return s
		}
	}
	files, err := s.files.Places.Read()
	if err != nil {
		files = Files{Places: s.files.Places, Trouble: err.Error()}
	}
	return New(files)
}

// Format implements fmt.Formatter: no verb prints what the files hold.
func (s *Set) Format(f fmt.State, _ rune) {
	if s == nil || s.files.Clouds == nil {
		_, _ = io.WriteString(f, "clouds(none)")
		return
	}
	_, _ = io.WriteString(f, "clouds("+s.files.Clouds.Path+")")
}

// parse reads the files and merges secure.yaml into clouds.yaml.
func (s *Set) parse() error {
	s.once.Do(func() {
		tree := newMapping()
		for _, file := range []*File{s.files.Clouds, s.files.Secure} {
			if file == nil {
				continue
			}
			more, err := parse(file)
			if err != nil {
				s.err = err
				return
			}
			tree = merged(tree, more)
		}
		if s.clouds, s.err = children(tree, "clouds"); s.err != nil || s.files.Public == nil {
			return
		}
		public, err := parse(s.files.Public)
		if err != nil {
			s.err = err
			return
		}
		s.public, s.err = children(public, "public-clouds")
	})
	return s.err
}

// children returns the clouds under a key of a file.
func children(tree *node, key string) (map[string]*node, error) {
	all := tree.fields[key]
	if all.absent() {
		return nil, nil
	}
	if all.fields == nil {
		return nil, &Fault{Path: all.path, Line: all.line, Key: key, Err: errors.New("must hold the clouds by their names")}
	}
	return all.fields, nil
}

// settings returns an error if n, which is under key in a cloud, or the cloud itself,
// is no mapping. Another cloud that is none concerns nobody.
func (n *node) settings(cloud, key string) error {
	if n.absent() || n.fields != nil {
		return nil
	}
	return &Fault{n.path, n.line, cloud, key, errors.New("must be settings of the form `key: value`")}
}

// Names returns the names of all clouds, sorted.
func (s *Set) Names() ([]string, error) {
	if s == nil {
		return nil, nil
	}
	err := s.parse()
	return slices.Sorted(maps.Keys(s.clouds)), err
}

// ErrNoRegion says that a cloud lists its regions, and has not the one that was
// asked for.
var ErrNoRegion = errors.New("there is no such region")

// Cloud is one cloud in one region: its settings, merged from all files.
type Cloud struct {
	Name   string
	Region string // empty: the cloud names none
	path   string // of clouds.yaml, or of the only file that has the cloud
	root   *node
	files  *Files
}

// Cloud returns a cloud in a region. If the region is empty, it is the cloud's
// own, or the first of its list; otherwise, if the cloud lists its regions, it
// must be one of them. An error says what there is to choose from.
func (s *Set) Cloud(name, region string) (*Cloud, error) {
	if s != nil && s.files.Trouble != "" {
		return nil, fmt.Errorf("cloud %s: %s", printable(name), s.files.Trouble)
	}
	if s == nil || s.files.Clouds == nil && s.files.Secure == nil {
		var looked []string
		if s != nil {
			looked = s.files.Places.Config
		}
		return nil, fmt.Errorf("cloud %s: there is no clouds.yaml (looked for %s)", printable(name), strings.Join(looked, ", "))
	}
	if err := s.parse(); err != nil {
		return nil, err
	}
	path := s.files.Clouds.orNone(s.files.Secure)
	own, ok := s.clouds[name]
	if !ok {
		there := "it has none"
		if names, _ := s.Names(); len(names) > 0 {
			there = "there are: " + list(names)
		}
		return nil, &Fault{Path: path, Cloud: name, Err: fmt.Errorf("no such cloud (%s)", there)}
	}
	if err := own.settings(name, ""); err != nil {
		return nil, err
	}
	c := &Cloud{Name: name, path: path, files: &s.files, root: newMapping()}
	profile, err := s.profile(c, own)
	if err != nil {
		return nil, err
	}
	c.root = updated(updated(c.root, profile.normal()), own.normal())
	if err := c.root.field("auth").settings(name, "auth"); err != nil {
		return nil, err
	}
	return c, c.pick(region)
}

// profile returns the settings of the cloud's profile in clouds-public.yaml. It
// returns nil if the cloud names none.
func (s *Set) profile(c *Cloud, own *node) (*node, error) {
	key := "profile"
	named := own.field(key)
	if named.absent() {
		key, named = "cloud", own.field("cloud") // the key's old name
	}
	if named.absent() {
		return nil, nil
	}
	name, err := named.scalar()
	if err != nil {
		return nil, &Fault{named.path, named.line, c.Name, key, err}
	}
	if p, ok := s.public[name]; ok {
		return p, p.settings(name, "")
	}
	there := "there is no clouds-public.yaml"
	if s.files.Public != nil {
		there = s.files.Public.Path + " has: " + cmpOr(list(slices.Sorted(maps.Keys(s.public))), "none")
	}
	return nil, &Fault{named.path, named.line, c.Name, key, fmt.Errorf(
		"%s is not in clouds-public.yaml (%s; those that openstacksdk has built in are not known here: write their settings into the cloud)", printable(name), there)}
}

// pick chooses the region, and puts its own settings over the cloud's.
func (c *Cloud) pick(region string) error {
	known, err := c.regions()
	if err != nil {
		return err
	}
	c.Region = region
	if region == "" && len(known) > 0 {
		c.Region = known[0].name
	}
	if len(known) == 0 || len(known) == 1 && c.root.field("regions").absent() {
		return nil // the catalogue has the regions
	}
	var names []string
	for _, r := range known {
		if r.name == c.Region {
			c.root = updated(c.root, r.values.normal())
			return nil
		}
		names = append(names, r.name)
	}
	return c.Fault("regions", fmt.Errorf("%w, %s (there are: %s)", ErrNoRegion, printable(c.Region), list(names)))
}

// Chooses says whether the cloud leaves it to its user which region it is.
func (c *Cloud) Chooses() bool {
	known, err := c.regions()
	return err == nil && len(known) != 1
}

// region is one region of a cloud's list.
type region struct {
	name   string
	values *node // nil: it has no settings of its own
}

// regions returns the regions that the cloud names, in its order. A cloud that
// has only region_name has that as its default, and no list.
func (c *Cloud) regions() (known []region, err error) {
	all := c.root.field("regions")
	if all.absent() {
		name, err := c.Get("region_name")
		if err != nil || name == "" {
			return nil, err
		}
		for _, one := range strings.Split(name, ",") { // the old form of a list
			known = append(known, region{name: strings.TrimSpace(one)})
		}
		return known, nil
	}
	if all.items == nil {
		return nil, c.Fault("regions", errors.New("must be a list"))
	}
	for _, item := range all.items {
		r := region{}
		at := item
		if item.fields != nil {
			at, r.values = item.field("name"), item.field("values")
		}
		if at.absent() {
			return nil, &Fault{item.path, item.line, c.Name, "regions", errors.New("a region has no name")}
		}
		if r.name, err = at.scalar(); err != nil {
			return nil, &Fault{item.path, item.line, c.Name, "regions", err}
		}
		if !r.values.absent() && r.values.fields == nil {
			return nil, &Fault{r.values.path, r.values.line, c.Name, "regions", fmt.Errorf("the values of region %s must be settings", printable(r.name))}
		}
		known = append(known, r)
	}
	return known, nil
}

// find returns the node of the first key that is set. A key of the form
// "auth.KEY" may also stand outside of auth, as for openstacksdk.
func (c *Cloud) find(keys ...string) (*node, string) {
	for _, key := range keys {
		name, inAuth := strings.CutPrefix(key, "auth.")
		if inAuth {
			if n := c.root.field("auth").field(name); !n.absent() && (n.text != "" || n.fields != nil || n.items != nil) {
				return n, key
			}
		}
		if n := c.root.field(name); !n.absent() {
			return n, name
		}
	}
	return nil, ""
}

// Get returns the text of the first of these keys that is set, or "". A key in
// auth is written "auth.KEY"..
func (c *Cloud) Get(keys ...string) (string, error) {
	n, key := c.find(keys...)
	if n == nil {
		return "", nil
	}
	text, err := n.scalar()
	if err != nil {
		return "", &Fault{n.path, n.line, c.Name, key, err}
	}
	return text, nil
}

// Where returns the path of the file that has the first of these keys that is set,
// or else of the file that has the cloud.
func (c *Cloud) Where(keys ...string) string {
	if n, _ := c.find(keys...); n != nil {
		return n.path
	}
	return c.path
}

// Fault returns an error about the first of these keys that is set, or about the
// first of them.
func (c *Cloud) Fault(key string, err error, more ...string) error {
	if n, at := c.find(append([]string{key}, more...)...); n != nil {
		return &Fault{n.path, n.line, c.Name, at, err}
	}
	return &Fault{Path: c.path, Cloud: c.Name, Key: key, Err: err}
}

// File returns the absolute path of a file that the cloud names. As for
// openstacksdk, "~/" is the home directory, and a relative path begins at the
// working directory.
func (c *Cloud) File(key string) (string, error) {
	text, err := c.Get(key)
	if err != nil || text == "" {
		return "", err
	}
	return c.files.Places.absolute(text), nil
}

// list returns the names for a message, on one line.
func list(names []string) string {
	shown := make([]string, len(names))
	for i, n := range names {
		shown[i] = printable(n)
	}
	return strings.Join(shown, ", ")
}

// printable makes s safe for an error of one line.
func printable(s string) string {
	q := fmt.Sprintf("%q", s)
	if s != "" && q[1:len(q)-1] == s {
		return s
	}
	return q
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
