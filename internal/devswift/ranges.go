// SPDX-License-Identifier: MIT

package devswift

import (
	"fmt"
	"strconv"
	"strings"
)

// byteRange is a run of an object's bytes, start included and end not.
type byteRange struct{ start, end int64 }

func (r byteRange) contentRange(size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", r.start, r.end-1, size)
}

// Swift's limits on the ranges of one request, after RFC 7233, section 6.1.
// Beyond them no range can be satisfied.
const (
	maxRanges         = 50
	maxRangeOverlaps  = 2
	maxUnsortedRanges = 8 // this many are too many if one of them is out of order
)

// parseRange reads a Range header for an object of size bytes. It returns false
// if the header must be ignored: there is none, or one of its ranges cannot be
// read. No range and true means that none can be satisfied.
func parseRange(header string, size int64) ([]byteRange, bool) {
	header = strings.ReplaceAll(header, " ", "")
	if len(header) < len("bytes=") || !strings.EqualFold(header[:len("bytes=")], "bytes=") {
		return nil, false
	}
	var ranges []byteRange
	for spec := range strings.SplitSeq(header[len("bytes="):], ",") {
		first, last, ok := strings.Cut(spec, "-")
		if !ok || !digits(first) || !digits(last) || first == "" && last == "" {
			return nil, false
		}
		start, startOK := parseOffset(first)
		end, endOK := parseOffset(last)
		switch {
		case first == "":
			// The last bytes of the object. A suffix of no bytes asks for
			// nothing. A suffix of an empty object is the whole object.
			if end > 0 {
				ranges = append(ranges, byteRange{max(0, size-end), size})
			}
		case startOK && endOK && last != "" && end < start:
			return nil, false
		case last == "" || end >= size:
			if start < size {
				ranges = append(ranges, byteRange{start, size})
			}
		case start < size:
			ranges = append(ranges, byteRange{start, end + 1})
		}
	}
	if len(ranges) > maxRanges || excessive(ranges) {
		return nil, true
	}
	return ranges, true
}

// excessive says whether ranges overlap or are out of order more than Swift
// allows. Ranges that are alike, or end together, do not overlap here.
func excessive(ranges []byteRange) bool {
	overlaps, sorted := 0, true
	for i, r := range ranges {
		for _, o := range ranges[:i] {
			if o.start < r.start && r.start < o.end || o.start < r.end && r.end < o.end ||
				r.start < o.start && o.start < r.end || r.start < o.end && o.end < r.end {
				overlaps++
			}
		}
		if i > 0 && (r.start < ranges[i-1].start || r.start == ranges[i-1].start && r.end < ranges[i-1].end) {
			sorted = false
		}
	}
	return overlaps > maxRangeOverlaps || !sorted && len(ranges) >= maxUnsortedRanges
}

func digits(s string) bool { return strings.Trim(s, "0123456789") == "" }

// parseOffset returns the largest offset for a number that is larger.
func parseOffset(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 1<<63 - 1, false
	}
	return int64(n), true
}
