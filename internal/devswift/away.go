// SPDX-License-Identifier: MIT

package devswift

import "net/http"

// SetAccountAway takes the account servers away, or brings them back. It is what Swift
// does once its proxies have forgotten what they knew of the account, which takes a
// minute at most (recheck_account_existence). No account server is asked for anything
// else, so this outage looks like none: a proxy that does not find out whether the
// account exists takes neither the account nor any container of it for there
// (swift/proxy/controllers/base.py, account_info and get_container_info), and answers
// 404. It has no key for a signature. And it takes every object for one of the first
// storage policy: those of another policy are 404, too. tests/replicas holds this to
// the real Swift.
func (s *Server) SetAccountAway(away bool) { s.accountAway.Store(away) }

// away answers a call while no account server does, and says whether it has
// answered.
func (c *call) away() bool {
	if !c.s.accountAway.Load() {
		return false
	}
	reads := c.method == http.MethodGet || c.method == http.MethodHead
	switch {
	case c.objectName != "" && reads && c.s.policy == firstPolicy:
		return false
	case c.containerName == "", c.objectName == "" && c.method == http.MethodPut:
		c.answer(http.StatusServiceUnavailable)
	default:
		c.answer(http.StatusNotFound)
	}
	return true
}
