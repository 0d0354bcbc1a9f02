// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"

	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/words"
)

// Of a quota, this part in percent may be used before info warns. slowWrites is
// the number of writes in a second below which a limit is worth a word: a disk in
// use easily makes as many.
const (
	quotaNear  = 90
	slowWrites = 1000
)

// hurts finds out what about the cloud, and about the container's settings, will
// hurt the disk, and notes the storage policy.
func (c *container) hurts(ctx context.Context, versions store.Versions, in *info) error {
	in.Warnings = []string{}
	warn := func(format string, a ...any) { in.Warnings = append(in.Warnings, fmt.Sprintf(format, a...)) }
	u, err := c.client.Usage(ctx, c.name)
	if err != nil {
		return err
	}
	if u.Policy != "" {
		in.Policy = &u.Policy
	}
	info, err := c.client.Info(ctx)
	if err != nil {
		return err
	}
	if kept := versions.Kept(); kept != "" {
		warn("%s", kept)
	}
	for _, q := range u.Quotas {
		if text := quotaHurts(q, in); text != "" {
			warn("%s", text)
		}
	}
	if info.Known && !info.TempURL {
		warn("this Swift has no TempURL: it cannot refuse writes that a former holder of the lease sends late")
	}
	// The disk's objects, once all of it is written: the more there are, the
	// slower a limited container gets.
	objects := in.Stored
	if in.Objects != nil {
		objects = max(objects, *in.Objects)
	}
	if writes, ok := info.WriteRate(objects); ok && writes < slowWrites {
		warn("this Swift takes at most %g writes in a second to a container of %s (ratelimit): larger objects, or version 2 of the format, make fewer writes",
			writes, words.Count(objects, "object"))
	}
	return nil
}

// quotaHurts says why a quota is too small for the disk, or "".
func quotaHurts(q swiftstore.Quota, in *info) string {
	show := func(n int64) string {
		if q.What == "bytes" {
			return humanSize(n)
		}
		return words.Count(n, "object")
	}
	left := max(0, q.Limit-q.Used)
	grows := max(0, in.Size-in.Bytes) // what the disk has not stored yet
	if q.What == "objects" {
		grows = 0
		if in.Objects != nil {
			grows = max(0, *in.Objects-in.Stored)
		}
	}
	switch {
	case left == 0:
		return fmt.Sprintf("the quota of %s is used up: %s of %s (%s); writes fail", q.Of, show(q.Used), show(q.Limit), q.Header)
	case grows > left:
		return fmt.Sprintf("the quota of %s has room for %s more (%s of %s are used, %s), and the disk may grow by %s: writes fail then", q.Of, show(left), show(q.Used), show(q.Limit), q.Header, show(grows))
	case float64(q.Used) >= float64(q.Limit)*quotaNear/100:
		return fmt.Sprintf("the quota of %s is nearly used up: %s of %s (%s); writes fail at its end", q.Of, show(q.Used), show(q.Limit), q.Header)
	}
	return ""
}
