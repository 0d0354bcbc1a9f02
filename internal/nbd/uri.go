// SPDX-License-Identifier: MIT

// Package nbd is the client's side of the NBD protocol, as far as somebody needs
// it who hands the connection over to the kernel: URIs, the handshake, and the
// headers of requests and replies. The protocol is in doc/proto.md and
// doc/uri.md of the Network Block Device project.
package nbd

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// DefaultPort is the port of a URI without one.
const DefaultPort = "10809"

// Target is an export of a server.
type Target struct {
	Network string // "tcp" or "unix"
	Address string // HOST:PORT, or the path of a socket
	Export  string
}

// ParseURI reads an NBD URI: nbd://HOST[:PORT]/EXPORT or
// nbd+unix:///EXPORT?socket=PATH. The kernel's client has no TLS, so that the
// other schemes are errors.
func ParseURI(s string) (Target, error) {
	u, err := url.Parse(s)
	if err != nil {
		return Target{}, errors.Unwrap(err)
	}
	t := Target{Export: strings.TrimPrefix(u.Path, "/")}
	switch u.Scheme {
	case "nbd", "nbd+tcp":
		t.Network = "tcp"
		if u.Hostname() == "" {
			return t, errors.New("there is no host in it")
		}
		port := u.Port()
		if port == "" {
			port = DefaultPort
		}
		t.Address = net.JoinHostPort(u.Hostname(), port)
	case "nbd+unix":
		t.Network, t.Address = "unix", u.Query().Get("socket")
		if t.Address == "" {
			return t, errors.New("there is no socket= in it")
		}
		if u.Host != "" {
			return t, errors.New("a Unix socket has no host: write three slashes before the export")
		}
	case "nbds", "nbds+tcp", "nbds+unix":
		return t, errors.New("the kernel's client has no TLS")
	default:
		return t, fmt.Errorf("%q is no scheme of NBD: nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH", u.Scheme)
	}
	return t, nil
}

// URI is ParseURI's inverse.
func (t Target) URI() string {
	if t.Network == "unix" {
		return "nbd+unix:///" + url.PathEscape(t.Export) + "?socket=" + url.QueryEscape(t.Address)
	}
	return "nbd://" + t.Address + "/" + url.PathEscape(t.Export)
}
