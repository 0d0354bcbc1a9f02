// SPDX-License-Identifier: MIT

package nbdkit

/*
#include "shim.h"
*/
import "C"

import (
	"strings"
	"sync"
	"syscall"
)

// passwordCache keeps the results of ReadPassword by its argument.
type passwordCache struct {
	mu      sync.Mutex
	answers map[string]string
}

var passwords passwordCache

func (p *passwordCache) get(value string) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.answers[value]
	return s, ok
}

func (p *passwordCache) put(value, password string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answers == nil {
		p.answers = make(map[string]string)
	}
	p.answers[value] = password
}

// all returns the answers in the form that carry takes. A value comes from a
// command line and so holds no NUL.
func (p *passwordCache) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []string
	for value, password := range p.answers {
		list = append(list, value+"\x00"+password)
	}
	return list
}

func (p *passwordCache) carry(s string) {
	value, password, _ := strings.Cut(s, "\x00")
	p.put(value, password)
}

// ReadPassword returns the password that a parameter means, by nbdkit's rules:
// "+FILE" is read from a file, "-FD" from a file descriptor, "-" from the
// terminal, and anything else is the password.
//
// Each value is read once. With the late start the preflight process reads it,
// with the privileges and the directory with which nbdkit was started. If
// standard input is a terminal, it has that too. It hands the answer to the
// process that serves.
func ReadPassword(value string) (string, error) {
	if value == "" || value[0] != '-' && value[0] != '+' {
		return value, nil
	}
	if s, ok := passwords.get(value); ok {
		return s, nil
	}
	if !inNbdkit {
		return "", PluginError{Errmsg: "a password can be read from a file or terminal only inside nbdkit", Errno: syscall.ENOSYS}
	}
	c := C.nbdkitgo_read_password(withNUL(value))
	if c == nil {
		return "", &reported{what: "reading the password", errno: syscall.EINVAL}
	}
	defer C.nbdkitgo_free_secret(c)
	s := C.GoString(c)
	passwords.put(value, s)
	return s, nil
}
