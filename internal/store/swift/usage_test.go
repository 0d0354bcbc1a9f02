// SPDX-License-Identifier: MIT

package swiftstore

import (
	"net/http"
	"strings"
	"testing"
)

// TestWriteRate reads the limits of /info as Swift's ratelimit does
// (interpret_conf_limits in swift/common/middleware/ratelimit.py).
func TestWriteRate(t *testing.T) {
	const limits = `{"swift": {}, "ratelimit": {"account_ratelimit": 20.0, "container_ratelimits": [[100, 100.0], [200, 50.0], [500, 20.0]]}}`
	info := parseInfo([]byte(limits))
	for objects, want := range map[int64]float64{0: -1, 99: -1, 100: 100, 150: 75, 200: 50, 350: 35, 500: 20, 1 << 30: 20} {
		writes, ok := info.WriteRate(objects)
		if ok != (want >= 0) || ok && writes != want {
			t.Errorf("%d objects: %v, %v; want %v", objects, writes, ok, want)
		}
	}
	if _, ok := parseInfo([]byte(`{"swift": {}}`)).WriteRate(1000); ok {
		t.Error("a limit where there is none")
	}
}

// TestFindPolicy knows names and aliases, and lists what there is.
func TestFindPolicy(t *testing.T) {
	info := parseInfo([]byte(`{"swift": {"policies": [{"name": "gold", "aliases": "gold, au", "default": true}, {"name": "ec", "aliases": "ec"}]}}`))
	for name, want := range map[string]string{"gold": "gold", "AU": "gold", "Ec": "ec"} {
		if got, err := info.FindPolicy(name); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	if _, err := info.FindPolicy("tin"); err == nil || err.Error() != "this Swift has no storage policy tin (there are: gold (the default), ec)" {
		t.Error(err)
	}
	if got, err := (Info{}).FindPolicy("tin"); err != nil || got != "tin" {
		t.Errorf("a cluster that does not tell: %s, %v", got, err)
	}
}

// TestQuotaHeaders reads quotas as the middleware writes them.
func TestQuotaHeaders(t *testing.T) {
	h := http.Header{}
	h.Set("X-Container-Meta-Quota-Bytes", "100")
	h.Set("X-Container-Bytes-Used", "40")
	h.Set("X-Container-Meta-Quota-Count", "no number")
	var u Usage
	u.add(h, "the container", "bytes", "X-Container-Meta-Quota-Bytes", "X-Container-Bytes-Used")
	u.add(h, "the container", "objects", "X-Container-Meta-Quota-Count", "X-Container-Object-Count")
	if len(u.Quotas) != 1 || u.Quotas[0].Used != 40 || u.Quotas[0].Limit != 100 || !strings.Contains(u.Quotas[0].Header, "Bytes") {
		t.Errorf("%+v", u)
	}
}
