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

// With returns the list with the entries of another, in order. One that is in both
// is damage.
func (k Kept) With(more Kept) (Kept, error) {
	join := func(a, b []KeptObject) ([]KeptObject, error) {
		if len(b) == 0 {
			return a, nil
		}
		both := slices.Concat(a, b)
		slices.SortFunc(both, func(a, b KeptObject) int { return a.At.Compare(b.At) })
		for i := range both[1:] {
			if both[i].At == both[i+1].At {
				return nil, damaged(kept, "object %v is there twice", both[i].At)
			}
		}
		return both, nil
	}
	var all Kept
	var err error
	if all.Objects, err = join(k.Objects, more.Objects); err != nil {
		return Kept{}, err
	}
	if all.Runs, err = join(k.Runs, more.Runs); err != nil {
		return Kept{}, err
	}
	return all, nil
}
