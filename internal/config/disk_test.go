// SPDX-License-Identifier: MIT

package config

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDiskParameters takes each setting of a disk from the section, from
// [DEFAULT], from the command line and from nowhere: the first that has it
// counts, also where it says what the default is.
func TestDiskParameters(t *testing.T) {
	values := map[string][3]string{ // in the section, in [DEFAULT], on the command line
		"cache":         {"1M", "2M", "3M"},
		"cache-mode":    {"writeback", "writethrough", "writethrough"},
		"clients":       {"1", "2", "65536"},
		"compression":   {"none", "zstd", "zstd"},
		"connections":   {"1", "2", "3"},
		"flush-time":    {"0", "1.5", "3"},
		"follow":        {"0", "1.5", "3"},
		"gc":            {"0", "20", "95%"},
		"lease":         {"0", "20", "30"},
		"readahead":     {"0", "2M", "3M"},
		"removed":       {"keep", "end", "end"},
		"snapshot":      {"one", "before the upgrade", "three"},
		"timeout":       {"1", "2.5", "3"},
		"writeback-age": {"1", "2", "3"},
	}
	for _, p := range DiskParameters {
		v, ok := values[p.Key]
		if !ok {
			t.Errorf("this test lacks %s", p.Key)
			continue
		}
		for from := range 4 {
			var file [2]string
			var d Defaults
			want := Disk{}.complete()
			for i := 2; i >= from; i-- { // the last to be set is the first to count
				if err := p.Set(&want, v[i]); err != nil {
					t.Fatalf("%s=%s: %v", p.Key, v[i], err)
				}
				if i == 2 {
					_ = p.Set(&d.Disk, v[i])
				} else {
					file[i] = strings.ToUpper(p.Key) + " = " + v[i] + "\n"
				}
			}
			text := "[DEFAULT]\nauthurl = http://h/v1.0\n" + file[1] + "[a]\nusername = u\npassword = p\n" + file[0] + "[b]\ncache = 9M\n"
			s, err := ParseSecrets("f", []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			x, err := s.Export("a", d, nil)
			if err != nil {
				t.Fatal(err)
			}
			if x.Disk != want {
				t.Errorf("%s from %d: %+v, want %+v\n%s", p.Key, from, x.Disk, want, text)
			}
			overridden := s.Overridden("a", []string{"authurl", p.Key})
			if inFile := from < 2; inFile != slices.Equal(overridden, []string{p.Key}) {
				t.Errorf("%s from %d: of the command line %q has no effect", p.Key, from, overridden)
			}
		}
	}
	if !slices.IsSortedFunc(DiskParameters, func(a, b DiskParameter) int { return strings.Compare(a.Key, b.Key) }) {
		t.Error("DiskParameters are not in alphabetical order")
	}
}

// TestDiskEnvironment gives a container without a section what the command line
// says.
func TestDiskEnvironment(t *testing.T) {
	s, err := ParseSecrets("f", []byte("[DEFAULT]\ntimeout = 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	x, err := s.Export("a", Defaults{Disk: Disk{Timeout: time.Hour}}, environ("ST_USER=u", "ST_KEY=k", "ST_AUTH="+v1))
	if err != nil {
		t.Fatal(err)
	}
	if want := (Disk{Timeout: time.Hour, Connections: DefaultConnections, Lease: DefaultLease}); x.Disk != want {
		t.Errorf("%+v, want %+v", x.Disk, want)
	}
}

// TestDiskBad gives each setting of a disk values that it does not take: one
// line names the file, the line, the section, the key and the value.
func TestDiskBad(t *testing.T) {
	bad := map[string][]string{
		"cache":         {"0", "x", "-1", "64MB", "99999999999G", ""},
		"cache-mode":    {"writearound", "", "Writeback"},
		"clients":       {"0", "-1", "65537", "many", "1.5", ""},
		"compression":   {"", "lz4", "Zstd", "1"},
		"connections":   {"0", "-1", "4097", "many", "1.5", ""},
		"flush-time":    {"0.09", "-1", "x", "86401", ""},
		"follow":        {"1e-12", "-1", "x", "86401", ""},
		"gc":            {"19", "96", "-1", "70.5", "half", ""},
		"lease":         {"4", "-1", "x", "86401", ""},
		"readahead":     {"-1", "x", ""},
		"removed":       {"yes", "End", ""},
		"snapshot":      {""},
		"timeout":       {"0", "1e-12", "-1", "x", "NaN", "86401", ""},
		"writeback-age": {"0", "1e-12", "-1", "x", "Inf", ""},
	}
	for _, p := range DiskParameters {
		if len(bad[p.Key]) == 0 {
			t.Errorf("this test lacks %s", p.Key)
		}
		for _, v := range bad[p.Key] {
			_, err := ParseSecrets("f", []byte("[DEFAULT]\n"+p.Key+" = "+v+"\n[a]\n"))
			if err == nil {
				t.Errorf("%s = %s is taken", p.Key, v)
				continue
			}
			place, what, _ := strings.Cut(err.Error(), "[DEFAULT] "+p.Key+": ")
			if place != "f:2: " || what == "" || !strings.Contains(what, v) || strings.Contains(what, "\n") {
				t.Errorf("%s = %s: the error is %q", p.Key, v, err)
			}
		}
	}
}
