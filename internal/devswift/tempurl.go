// SPDX-License-Identifier: MIT

package devswift

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tempURLMethods may be signed.
var tempURLMethods = []string{"GET", "HEAD", "PUT", "POST", "DELETE"}

// handledByTempURL looks for a signature in the query. If it refuses the
// signature, it answers and returns true. With a valid signature the call needs
// no token.
func (c *call) handledByTempURL() bool {
	sig, hasSig := c.query["temp_url_sig"]
	expires, hasExpires := c.query["temp_url_expires"]
	if !hasSig && !hasExpires || c.method == http.MethodOptions || c.s.without["tempurl"] {
		return false
	}
	if !hasSig || !hasExpires || !c.signed(sig[0], expires[0]) {
		c.header("Www-Authenticate", `Swift realm="unknown"`)
		c.answerText(http.StatusUnauthorized, typeHTML, "401 Unauthorized: Temp URL invalid\n")
		return true
	}
	if c.method != http.MethodGet && c.method != http.MethodHead {
		for _, key := range []string{"X-Object-Manifest", "X-Symlink-Target"} {
			if c.r.Header.Get(key) != "" {
				c.answerText(http.StatusBadRequest, typeHTML, "The header '"+key+"' is not allowed in this tempurl")
				return true
			}
		}
	}
	c.tempURL = true
	return false
}

// signed checks a signature of the method, the end time and the path with the
// keys of the account and the container. One key must match.
func (c *call) signed(sig, expiresText string) bool {
	if !slices.Contains(tempURLMethods, c.method) || c.version != "v1" || c.accountName == "" ||
		c.containerName == "" || strings.Trim(c.objectName, "/") == "" {
		return false
	}
	newHash, mac := parseSignature(sig)
	expires := parseExpires(expiresText)
	if mac == nil || expires == 0 || time.Unix(expires, 0).Before(c.s.clock()) {
		return false
	}
	ipRange := c.query.Get("temp_url_ip_range")
	if ipRange != "" && !inRange(c.r.RemoteAddr, ipRange) {
		return false
	}
	signedPath := "/v1/" + c.accountName + "/" + c.containerName + "/" + c.objectName
	if c.query.Has("temp_url_prefix") {
		prefix := c.query.Get("temp_url_prefix")
		if !strings.HasPrefix(c.objectName, prefix) {
			return false
		}
		signedPath = "prefix:/v1/" + c.accountName + "/" + c.containerName + "/" + prefix
	}
	methods := []string{c.method}
	if c.method == http.MethodHead {
		methods = []string{"HEAD", "GET", "POST", "PUT"}
	}
	for _, method := range methods {
		text := fmt.Sprintf("%s\n%d\n%s", method, expires, signedPath)
		if ipRange != "" {
			text = "ip=" + ipRange + "\n" + text
		}
		for _, key := range c.tempURLKeys() {
			h := hmac.New(newHash, []byte(key))
			h.Write([]byte(text))
			if hmac.Equal(h.Sum(nil), mac) {
				return true
			}
		}
	}
	return false
}

// tempURLKeys returns up to two keys of the account and two of the container.
func (c *call) tempURLKeys() []string {
	a := c.s.accounts[c.accountName]
	if a == nil || c.s.accountAway.Load() {
		return nil
	}
	var keys []string
	pick := func(meta map[string]string, prefix string) {
		for _, name := range []string{"Temp-Url-Key", "Temp-Url-Key-2"} {
			if key := meta[prefix+name]; key != "" {
				keys = append(keys, key)
			}
		}
	}
	a.mu.RLock()
	pick(a.meta, accountMeta)
	t := a.containers[c.containerName]
	a.mu.RUnlock()
	if t != nil {
		t.mu.RLock()
		pick(t.meta, containerMeta)
		t.mu.RUnlock()
	}
	return keys
}

// parseSignature reads a signature in hexadecimal, whose length determines the
// digest, or in base64 with the digest's name in front. It returns nil if the
// signature cannot be read.
func parseSignature(sig string) (func() hash.Hash, []byte) {
	digests := map[string]func() hash.Hash{"sha1": sha1.New, "sha256": sha256.New, "sha512": sha512.New}
	if name, text, ok := strings.Cut(sig, ":"); ok {
		newHash := digests[name]
		// Either alphabet of base64, padding optional.
		text = strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(text), "=")
		mac, err := base64.RawStdEncoding.DecodeString(text)
		if err != nil || newHash == nil {
			return nil, nil
		}
		return newHash, mac
	}
	mac, err := hex.DecodeString(sig)
	if err != nil || sig != strings.ToLower(sig) {
		return nil, nil
	}
	switch len(mac) {
	case sha1.Size:
		return sha1.New, mac
	case sha256.Size:
		return sha256.New, mac
	case sha512.Size:
		return sha512.New, mac
	}
	return nil, nil
}

// parseExpires reads unix seconds or 2006-01-02T15:04:05Z; 0 means neither.
func parseExpires(text string) int64 {
	if n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64); err == nil {
		return n
	}
	if t, err := time.Parse("2006-01-02T15:04:05Z", text); err == nil {
		return t.Unix()
	}
	return 0
}

// inRange says whether an address with a port lies in a network.
func inRange(remote, network string) bool {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	if single, err := netip.ParseAddr(network); err == nil {
		return single == addr
	}
	prefix, err := netip.ParsePrefix(network)
	return err == nil && prefix.Masked() == prefix && prefix.Contains(addr)
}

// tempURLHeaders changes the headers of the answer to a signed request. It
// removes private metadata, and adds a file name and the end of the signature.
func (c *call) tempURLHeaders(status int) {
	h := c.w.Header()
	for key := range h {
		if strings.HasPrefix(key, objectMeta) && !strings.HasPrefix(key, objectMeta+"Public-") {
			delete(h, key)
		}
	}
	if c.method != http.MethodGet && c.method != http.MethodHead || status < 200 || status > 299 {
		return
	}
	name := c.query.Get("filename")
	switch {
	case c.query.Has("inline") && name != "":
		h.Set("Content-Disposition", disposition("inline", name))
	case c.query.Has("inline"):
		h.Set("Content-Disposition", "inline")
	case name != "":
		h.Set("Content-Disposition", disposition("attachment", name))
	case h.Get("Content-Disposition") == "":
		h.Set("Content-Disposition", disposition("attachment", path.Base(strings.TrimRight(c.objectName, "/"))))
	}
	h.Add("Expires", time.Unix(parseExpires(c.query.Get("temp_url_expires")), 0).UTC().Format(http.TimeFormat))
}

func disposition(kind, name string) string {
	quoted := quote(name)
	return kind + `; filename="` + strings.ReplaceAll(quoted, "%20", " ") + `"; filename*=UTF-8''` + url.PathEscape(name)
}
