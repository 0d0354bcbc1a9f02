// SPDX-License-Identifier: MIT

// Package devswift owns an OpenStack Swift that lives inside one process, for
// trying the plugin out and for tests.
//
// Server is an http.Handler which answers as Swift 2.30 does behind tempauth:
// status codes, headers and bodies were taken from a running Swift, and the
// package conformance holds the two together, since it runs the same table
// against either. On top of that a test may inject faults (Action), move the
// clock of the proxy (Action.Skew), revoke tokens and count requests.
//
// Objects live in memory, or under Options.Dir, where they survive the process
// being killed. A machine that loses power may lose what was not yet written
// back by its kernel: nothing here calls fsync.
//
// # What differs from the real one
//
// There is one replica, so nothing is ever stale: X-Newest is accepted and
// changes nothing. Listings and counts are up to date at once. Tombstones are
// forgotten when the server ends. Container ACLs are stored
// and not enforced. Large-object manifests, versioning, symlinks and the S3
// API are absent. Responses without a body carry no Content-Length and a 304
// carries no Content-Type, since net/http removes both. An Expect header other
// than 100-continue is refused with 417 by net/http, where Swift ignores it.
//
// # LOCK ORDER
//
//	stripe (one of Server.stripes)  serialises the changes of one object
//	  account.mu                    containers of an account, its metadata
//	    container.mu                objects of a container, its metadata
//
// Locks are taken downwards only. No lock is held while a body travels. A
// stripe is held for the rename that makes an object visible, and the locks of
// account and container for writing their few bytes of metadata, so that memory
// and directory change in the same order. The mutexes of tokens, journal, rules
// and throttle are leaves.
package devswift
