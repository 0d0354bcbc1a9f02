// SPDX-License-Identifier: MIT

// Package devswift owns an OpenStack Swift that lives inside one process. It is
// for tests and for trying the plugin out.
//
// Server is an http.Handler that answers as Swift 2.30 does behind tempauth. Its
// status codes, headers and bodies were taken from a running Swift. The package
// conformance runs the same table against both, so that they stay alike. A test
// may also inject faults (Action), move the clock of the proxy (Action.Skew),
// revoke tokens and count requests.
//
// Objects are kept in memory or under Options.Dir. There they survive when the
// process is killed. If the machine loses power, what its kernel has not yet
// written back may be lost: nothing here calls fsync.
//
// # What differs from the real one
//
// There is one replica, so nothing is ever stale: X-Newest is accepted and
// changes nothing. Listings and counts are up to date at once. Tombstones are
// forgotten when the server ends. Of container ACLs only reading by a user or an
// account is enforced; the rest is stored.
// Large-object manifests, symlinks and the S3 API are absent. Responses without a
// body carry no Content-Length, and a 304 carries no Content-Type, since net/http
// removes both. net/http refuses an Expect header other than 100-continue with
// 417; Swift ignores it.
//
// # LOCK ORDER
//
//	stripe (one of Server.stripes)  serialises the changes of one object
//	  account.mu                    containers of an account, its metadata
//	    container.mu                objects of a container, its metadata
//
// Mutexes are taken downwards only. None is held while a body travels. A stripe
// is held for the rename that makes an object visible. The mutexes of account and
// container are held while their few bytes of metadata are written. Memory and
// directory therefore change in the same order. The mutexes of tokens, journal,
// rules and throttle are leaves.
package devswift
