// SPDX-License-Identifier: MIT

package layout

import (
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"slices"
)

// What a root has in itself, so that a snapshot costs fewer requests: the end of
// the table of objects, and the end of the list of what pins need.

const (
	// MaxTable is how many bytes Root.Table has at most, and MaxKeptMore how many
	// Root.KeptMore.
	MaxTable    = 64 << 10
	MaxKeptMore = 32 << 10
)

// inlineText is bytes in base64. There is one way only to write them.
type inlineText []byte

func (b inlineText) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, b), nil
}

func (b *inlineText) UnmarshalText(text []byte) error {
	out, err := base64.StdEncoding.Strict().AppendDecode([]byte{}, text)
	if err != nil {
		return err
	}
	if base64.StdEncoding.EncodedLen(len(out)) != len(text) {
		return errors.New("base64 with line breaks")
	}
	*b = out
	return nil
}

// checkInline says what is wrong with what the root has in itself.
func (r Root) checkInline() error {
	if (r.Table != nil || r.KeptMore != nil) && !slices.Contains(r.Requires, FeatureInline) {
		return fmt.Errorf("it has a Table or KeptMore, and does not require %q", FeatureInline)
	}
	if len(r.Table) > MaxTable {
		return fmt.Errorf("its table has %d bytes, and may have %d", len(r.Table), MaxTable)
	}
	if len(r.KeptMore) > MaxKeptMore {
		return fmt.Errorf("its list of what snapshots need has %d bytes, and may have %d", len(r.KeptMore), MaxKeptMore)
	}
	for _, err := range r.TableEntries() {
		if err != nil {
			return err
		}
	}
	_, err := r.MoreKept()
	return err
}

// TableEntries returns what the root has in Table, in order. It ends with the first
// error; a root that was parsed has none.
func (r Root) TableEntries() iter.Seq2[ObjectEntry, error] {
	return func(yield func(ObjectEntry, error) bool) {
		if r.Table == nil {
			return
		}
		t, err := ParseRun(r.Table, r.UUID)
		if err == nil && t.Name != r.Name {
			err = damaged(run, "it is of root %s, and lies in another", RootText(t.Name))
		}
		if err != nil {
			yield(ObjectEntry{}, err)
			return
		}
		t.Objects()(yield)
	}
}

// MoreKept returns what the root has in KeptMore.
func (r Root) MoreKept() (Kept, error) {
	if r.KeptMore == nil {
		return Kept{}, nil
	}
	return ParseKept(r.KeptMore, r.UUID, r.Name)
}

// With returns the list with the entries of another. Both are in order. What is in
// both is damage.
func (k Kept) With(more Kept) (all Kept, err error) {
	if all.Objects, err = joinKept(k.Objects, more.Objects); err != nil {
		return Kept{}, err
	}
	if all.Runs, err = joinKept(k.Runs, more.Runs); err != nil {
		return Kept{}, err
	}
	return all, nil
}

func joinKept(a, b []KeptObject) ([]KeptObject, error) {
	if len(b) == 0 {
		return a, nil
	}
	both := make([]KeptObject, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		switch c := a[0].At.Compare(b[0].At); {
		case c == 0:
			return nil, damaged(kept, "object %v is there twice", a[0].At)
		case c < 0:
			both, a = append(both, a[0]), a[1:]
		default:
			both, b = append(both, b[0]), b[1:]
		}
	}
	return append(append(both, a...), b...), nil
}
