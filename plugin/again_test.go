// SPDX-License-Identifier: MIT

package main

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"swiftnbd/internal/clouds"
)

// TestReadBesideResolve has a refused login looked up again in clouds.yaml while clients
// come. The race detector sees what is shared without the lock.
func TestReadBesideResolve(t *testing.T) {
	e := ready(t, &disk{name: "v"})
	dir := t.TempDir()
	path := filepath.Join(dir, "clouds.yaml")
	text := "clouds: {a: {auth: {auth_url: 'https://k/v3', username: u, password: former, project_name: p}}}\n"
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(text)
	files, err := clouds.Places{Config: []string{path}, Directory: dir}.Read()
	if err != nil {
		t.Fatal(err)
	}
	e.params.authURL, e.params.cloud, e.inCloud = "", "a", clouds.New(files)
	x, err := e.resolve("v")
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{e: e, secrets: e.secrets, key: cloudKey{login: x.Login}, containers: []string{"v"}}
	write(strings.Replace(text, "former", "present", 1))
	var both sync.WaitGroup
	both.Go(func() {
		if now, _, err := o.read(); err != nil || now.Password != "present" {
			t.Errorf("the login that is read again is not the present one: %v", err)
		}
	})
	both.Go(func() {
		for range 100 {
			if _, err := e.resolve("v"); err != nil {
				t.Error(err)
			}
		}
	})
	both.Wait()
	if x, err = e.resolve("v"); err != nil || x.Login.Password != "present" {
		t.Errorf("a client that comes afterwards does not get the present login: %v", err)
	}
}
