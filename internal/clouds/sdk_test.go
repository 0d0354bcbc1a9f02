// SPDX-License-Identifier: MIT

package clouds

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sdk has openstacksdk merge the files of a folder, and prints the settings of a
// cloud, or the kind of error.
const sdk = `
import json, sys, warnings
warnings.simplefilter("ignore")
from openstack.config import loader
out = []
for folder, cloud, region in json.load(sys.stdin):
    files = lambda name: [folder + "/" + name + ".yaml"]
    try:
        c = loader.OpenStackConfig(config_files=files("clouds"), secure_files=files("secure"), vendor_files=files("clouds-public"), load_envvars=False)
        r = c.get_one(cloud, validate=False, region_name=region)
        found = dict(r.config)
        for k, v in found.pop("auth").items():
            found["auth." + k] = v
        out.append({k: str(v) for k, v in found.items() if v is not None})
    except Exception as e:
        out.append({"error": type(e).__name__})
json.dump(out, sys.stdout)
`

// compared are the keys that TestLikeOpenStackSDK compares, each with the keys
// that mean the same in the files.
var compared = map[string][]string{
	"auth.auth_url": nil, "auth.username": nil, "auth.password": nil, "auth.trust_id": nil, "region_name": nil,
	"cacert": nil, "verify": nil, "insecure": nil, "object_store_endpoint_override": nil,
	"auth.project_name": {"auth.tenant_name"}, "auth.user_domain_name": {"auth.domain_name"}, "interface": {"endpoint_type"},
}

// TestLikeOpenStackSDK has openstacksdk and this package merge the same files.
func TestLikeOpenStackSDK(t *testing.T) {
	const base = "clouds:\n  a:\n    auth: {auth_url: 'http://k/v3', username: u, project_name: p, user_domain_name: D}\n"
	const regions = base + "    regions: [R, {name: S, values: {cacert: /s.pem, auth: {password: inS}}}]\n"
	cases := []struct{ clouds, secure, public, cloud, region string }{
		{clouds: base, cloud: "a"},
		{clouds: base, secure: "clouds: {a: {auth: {password: s, username: other}}}", cloud: "a"},
		{clouds: base, secure: "clouds: {b: {auth: {password: s}}}", cloud: "b"},
		{clouds: base, cloud: "none"},
		{clouds: base + "    profile: v\n", cloud: "a",
			public: "public-clouds: {v: {auth: {auth_url: 'http://v', project_domain_name: x, password: y}, region_name: R, interface: internal, verify: false}}"},
		{clouds: "clouds: {a: {cloud: v, auth: {username: u}}}", public: "public-clouds: {v: {auth: {auth_url: 'http://v/v3'}, cacert: /v.pem}}", cloud: "a"},
		{clouds: regions, cloud: "a"},
		{clouds: regions, cloud: "a", region: "S"},
		{clouds: regions, cloud: "a", region: "T"},
		{clouds: base + "    regions: [R, S]\n    region_name: S\n", cloud: "a"},
		{clouds: base + "    region_name: 'R,S'\n", cloud: "a", region: "S"},
		{clouds: base + "    region-name: R\n    endpoint_type: admin\n    object-store-endpoint-override: 'http://s/v1/A'\n", cloud: "a"},
		{clouds: base + "    verify: off\n    insecure: true\n", cloud: "a"},
		{clouds: "x: &auth {auth_url: 'http://k/v3', username: u}\nclouds: {a: {auth: {<<: *auth, username: own, trust_id: t}}}", cloud: "a"},
		{clouds: "clouds: {a: {auth: {auth_url: 'https://{region_name}.k/v3', username: u}, region_name: R}}", cloud: "a"},
		{clouds: "clouds: {a: {auth: {auth_url: 'http://k', username: u, tenant_name: old}}}", cloud: "a"},
		{clouds: "clouds: {a: {auth: {auth_url: 'http://k', username: u, project_name: p, domain_name: D}}}", cloud: "a"},
		{clouds: "clouds: {a: {username: u, auth: {auth_url: 'http://k'}, project_name: p}}", cloud: "a"},
		{clouds: `{"clouds": {"a": {"auth": {"auth_url": "http://k", "username": "u", "password": "\u00e4"}}}}`, cloud: "a"},
	}
	const python = "/usr/bin/python3" // Debian's, which has Debian's packages
	if exec.Command(python, "-c", "import openstack.config").Run() != nil {
		if os.Getenv("SWIFTNBD_TEST_REQUIRE") != "" {
			t.Fatal("SWIFTNBD_TEST_REQUIRE is set, and there is no python3-openstacksdk here to compare with")
		}
		t.Skip("no python3-openstacksdk here to compare with")
	}
	var ask [][3]string
	for _, c := range cases {
		folder := t.TempDir()
		for name, text := range map[string]string{"clouds": c.clouds, "secure": c.secure, "clouds-public": c.public} {
			if text == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(folder, name+".yaml"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		ask = append(ask, [3]string{folder, c.cloud, c.region})
	}
	in, err := json.Marshal(ask)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, "-c", sdk)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var answers []map[string]string
	if err := json.Unmarshal(out, &answers); err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		want := answers[i]
		got, err := of(c.clouds, c.secure, c.public).Cloud(c.cloud, c.region)
		if (err != nil) != (want["error"] != "") {
			t.Errorf("%+v: %v; openstacksdk: %s", c, err, want["error"])
		}
		if err != nil || want["error"] != "" {
			continue
		}
		for key, older := range compared {
			v := text(t, got, append([]string{key}, older...)...)
			wanted := want[key]
			switch key {
			case "region_name":
				v = got.Region
			case "interface":
				if v == "" {
					v = "public" // openstacksdk's default
				}
			case "auth.username":
				if wanted == "" {
					wanted = want["username"] // it is moved when the login is made
				}
			case "auth.auth_url":
				v = strings.ReplaceAll(v, "{region_name}", got.Region) // internal/config does
			case "verify":
				if v = map[string]string{"off": "False", "false": "False"}[v]; v == "" {
					v = "True" // openstacksdk's default
				}
			case "insecure":
				v = map[string]string{"": "", "true": "True"}[v]
			}
			if v != wanted {
				t.Errorf("%+v: %s is %q; openstacksdk: %q", c, key, v, wanted)
			}
		}
	}
}
