// SPDX-License-Identifier: MIT

package tests

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// read returns a file of the project as text.
func read(t testing.TB, path ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(append([]string{harness.Root(t)}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// get returns what a server on loopback answers.
func get(t testing.TB, address string) string {
	t.Helper()
	text, err := tryGet(address)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func tryGet(address string) (string, error) {
	resp, err := http.Get(address)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", address, resp.Status, body)
	}
	return string(body), err
}

// TestAlertRules has Prometheus's own tool check the alert rules and run their
// tests. Each rule has one in which it fires, and is in the manual's table.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(harness.Root(t), "docs", "monitoring")
	harness.Must(t, "promtool", "check", "rules", filepath.Join(dir, "alerts.yml"))
	harness.Must(t, "promtool", "check", "config", filepath.Join(dir, "prometheus.yml"))
	harness.Must(t, "promtool", "test", "rules", filepath.Join(dir, "alerts_test.yml"))
	tests := read(t, "docs", "monitoring", "alerts_test.yml")
	rows := table(t, filepath.Join(harness.Root(t), "docs", "MONITORING.md"), "The alerts")
	alerts := regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(read(t, "docs", "monitoring", "alerts.yml"), -1)
	if len(alerts) != len(rows) || len(alerts) == 0 {
		t.Errorf("there are %d alerts, and docs/MONITORING.md has %d", len(alerts), len(rows))
	}
	for _, a := range alerts {
		if !regexp.MustCompile(`alertname: ` + a[1] + `\n +exp_alerts:\n +- exp_labels`).MatchString(tests) {
			t.Errorf("no test has %s fire", a[1])
		}
		if !slices.ContainsFunc(rows, func(row string) bool { return strings.HasPrefix(row, "| "+a[1]+" |") }) {
			t.Errorf("docs/MONITORING.md lacks %s", a[1])
		}
	}
}

// prometheusAnswer is an answer of Prometheus's HTTP interface.
type prometheusAnswer[T any] struct {
	Status string
	Data   T
}

// ask asks Prometheus.
func ask[T any](t testing.TB, server, path string) (data T) {
	t.Helper()
	var a prometheusAnswer[T]
	if err := json.Unmarshal([]byte(get(t, server+path)), &a); err != nil || a.Status != "success" {
		t.Fatalf("%s: %s %v", path, a.Status, err)
	}
	return a.Data
}

// gauge reads a metric of the disk from what nbdkit serves.
func gauge(t testing.TB, counters, name, container string) float64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + name + `\{container="` + container + `"\} (\S+)$`).FindStringSubmatch(get(t, counters))
	if m == nil {
		t.Fatalf("%s lacks %s of %s", counters, name, container)
	}
	value, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// TestPrometheus lets a real Prometheus ask a real nbdkit that serves a disk of
// each version: every metric that the dashboard and the rules name is there, and
// each panel of the dashboard shows something. The age of the oldest dirty byte
// grows until a flush, and is 0 after it.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	cloud := harness.Dev(t)
	account := cloud.Account(t)
	names := []string{harness.Name(t) + "-1", harness.Name(t) + "-2"}
	account.Setup(t, names[0], objects, objectSize)
	account.SetupLog(t, names[1], 1<<20)
	address := "127.0.0.1:" + strconv.Itoa(harness.FreePort(t))
	counters := "http://" + address + "/metrics"
	n := serve(t, "secrets="+harness.Secrets(t, cloud.Section(names[0]), cloud.Section(names[1])), "metrics="+address, "writeback-age=3600")

	dir := harness.TempDir(t)
	config := strings.NewReplacer("127.0.0.1:9810", address, "scrape_interval: 15s", "scrape_interval: 1s",
		"alerts.yml", filepath.Join(harness.Root(t), "docs", "monitoring", "alerts.yml")).Replace(read(t, "docs", "monitoring", "prometheus.yml"))
	server := "http://127.0.0.1:" + strconv.Itoa(harness.FreePort(t))
	harness.Start(t, harness.Command(t, harness.Tool(t, "prometheus"), "--config.file="+harness.WriteFile(t, filepath.Join(dir, "prometheus.yml"), config),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+strings.TrimPrefix(server, "http://"), "--log.level=warn"))

	stop := filepath.Join(dir, "stop")
	for _, name := range names {
		client := harness.StartNbdsh(t, n.Export(name), fmt.Sprintf(`
import os, time
h.pwrite(b"x" * 4096, 8192)
while not os.path.exists(%q):
    time.sleep(0.01)
h.pread(4096, 8192)
h.flush()
open(%q, "w")
while not os.path.exists(%q):
    time.sleep(0.01)
`, filepath.Join(dir, "flush"), filepath.Join(dir, "flushed-"+name), stop))
		defer client.Wait(t)
	}
	defer harness.WriteFile(t, stop, "")
	for _, name := range names {
		age := func() float64 { return gauge(t, counters, "swiftnbd_cache_dirty_age_seconds", name) }
		harness.Eventually(t, "the byte is dirty", func() bool {
			text, err := tryGet(counters)
			return err == nil && strings.Contains(text, `swiftnbd_cache_dirty_age_seconds{container="`+name+`"}`) && age() > 0
		})
		first := age()
		harness.Eventually(t, "the byte grows old", func() bool { return age() > first })
	}
	harness.WriteFile(t, filepath.Join(dir, "flush"), "")
	for _, name := range names {
		harness.Eventually(t, "the flush", func() bool { _, err := os.Stat(filepath.Join(dir, "flushed-"+name)); return err == nil })
		if age := gauge(t, counters, "swiftnbd_cache_dirty_age_seconds", name); age != 0 {
			t.Errorf("after a flush of %s the oldest dirty byte is %v s old", name, age)
		}
	}

	// A rate needs two values.
	harness.Eventually(t, "Prometheus has asked three times", func() bool {
		text, err := tryGet(server + "/api/v1/query?query=" + url.QueryEscape(`count_over_time(up{job="swiftnbd"}[5m]) > 3`))
		return err == nil && strings.Contains(text, `"instance":"`+address+`"`)
	})
	known := ask[[]string](t, server, "/api/v1/label/__name__/values")
	dashboard := read(t, "docs", "monitoring", "grafana-dashboard.json")
	used := regexp.MustCompile(`\bswiftnbd_\w+`).FindAllString(dashboard+read(t, "docs", "monitoring", "alerts.yml")+read(t, "docs", "MONITORING.md"), -1)
	if len(used) < 20 {
		t.Fatalf("the dashboard and the rules use %q only", used)
	}
	for _, name := range used {
		if !slices.Contains(known, name) {
			t.Errorf("Prometheus has no %s", name)
		}
	}
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(dashboard), &d); err != nil {
		t.Fatal(err)
	}
	for _, panel := range d.Panels {
		for _, target := range panel.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$container", ".*", "$instance", ".*").Replace(target.Expr)
			got := ask[struct{ Result []any }](t, server, "/api/v1/query?query="+url.QueryEscape(expr))
			if len(got.Result) == 0 {
				t.Errorf("the panel %q shows nothing for %s", panel.Title, expr)
			}
		}
	}
	type rule struct{ Name, Health, LastError string }
	rules := ask[struct{ Groups []struct{ Rules []rule } }](t, server, "/api/v1/rules")
	if len(rules.Groups) != 1 || len(rules.Groups[0].Rules) == 0 {
		t.Fatalf("Prometheus has the rules %v", rules)
	}
	for _, r := range rules.Groups[0].Rules {
		if r.Health == "err" {
			t.Errorf("%s: %s", r.Name, r.LastError)
		}
	}
}
