// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/volume"
)

// oldAtOnce lets objects that nothing needs be deleted whatever their age.
func (b *bench) oldAtOnce() {
	b.pace.youngest = -time.Hour // of any age: the clock that Swift shows has whole seconds
}

// verify runs verify --json, which has to end with the exit status, and returns
// what it says.
func (b *bench) verify(code int, args ...string) (out verified) {
	b.Helper()
	r := b.run(append([]string{"verify", "disk", "--json"}, args...)...)
	if r.code != code || r.err != "" {
		b.Errorf("verify %q: exit status %d, want %d: %s%s", args, r.code, code, r.out, r.err)
	}
	if err := json.Unmarshal([]byte(r.out), &out); err != nil {
		b.Fatalf("%v: %s%s", err, r.out, r.err)
	}
	return out
}

// last returns the last object with the prefix.
func (b *bench) last(prefix string) string {
	b.Helper()
	names := b.names("disk", prefix)
	if len(names) == 0 {
		b.Fatalf("nothing begins with %s", prefix)
	}
	return names[len(names)-1]
}

// del deletes an object.
func (b *bench) del(name string) {
	b.Helper()
	if err := b.store("disk").Delete(b.Context(), name); err != nil {
		b.Fatal(err)
	}
}

// TestVerifyLog damages a disk of version 2 in every way that has a name.
func TestVerifyLog(t *testing.T) {
	t.Parallel()
	all := func(b *bench, prefix string, do func(name string)) {
		for _, name := range b.names("disk", prefix) {
			do(name)
		}
	}
	for _, c := range []struct {
		name   string
		damage func(b *bench)
		why    string // "": no damage
		object string // what is damaged
		lost   bool
		quick  bool // the quick form finds it
		parts  bool // it says which part of the disk has it
	}{
		{name: "nothing", damage: func(b *bench) {}},
		{"a flipped bit in a frame", func(b *bench) {
			all(b, layout.LogPrefix, func(n string) {
				if len(b.object("disk", n)) > layout.TailSize { // it begins with frames
					b.flip("disk", n, 100)
				}
			})
		},
			"wrong checksum", layout.LogPrefix, false, false, true},
		{"a flipped bit in the footer", func(b *bench) { all(b, layout.LogPrefix, func(n string) { b.flip("disk", n, -20) }) },
			"damaged", layout.LogPrefix, false, true, true},
		{"a flipped bit in the records", func(b *bench) { all(b, layout.LogPrefix, func(n string) { b.flip("disk", n, -layout.FooterSize-10) }) },
			"damaged", layout.LogPrefix, false, true, true},
		{"truncated objects", func(b *bench) {
			all(b, layout.LogPrefix, func(n string) { p := b.object("disk", n); b.put("disk", n, p[:len(p)-1]) })
		}, "damaged", layout.LogPrefix, false, true, true},
		{"empty objects", func(b *bench) { all(b, layout.LogPrefix, func(n string) { b.put("disk", n, nil) }) },
			"", layout.LogPrefix, false, true, true},
		{"deleted objects", func(b *bench) { all(b, layout.LogPrefix, b.del) },
			"it is not there", layout.LogPrefix, true, true, true},
		{"objects of another place", func(b *bench) {
			names := b.names("disk", layout.LogPrefix)
			first := b.object("disk", names[0])
			for _, n := range names[1:] {
				b.put("disk", n, first)
			}
		}, "damaged", layout.LogPrefix, false, true, true},
		{"a flipped bit in a run", func(b *bench) { b.flip("disk", b.last(layout.RunPrefix), 3) }, "damaged", layout.RunPrefix, false, true, false},
		{"a flipped bit in a run's footer", func(b *bench) { b.flip("disk", b.last(layout.RunPrefix), -30) }, "damaged", layout.RunPrefix, false, true, false},
		{"a truncated run", func(b *bench) {
			n := b.last(layout.RunPrefix)
			p := b.object("disk", n)
			b.put("disk", n, p[:len(p)-1])
		}, "damaged", layout.RunPrefix, false, true, false},
		{"a deleted run", func(b *bench) { b.del(b.last(layout.RunPrefix)) }, "it is not there", layout.RunPrefix, true, true, false},
		{"a flipped bit in the root", func(b *bench) { b.flip("disk", b.last(layout.RootPrefix), 60) }, "damaged", layout.RootPrefix, false, true, false},
		{"a deleted root", func(b *bench) { b.del(b.last(layout.RootPrefix)) }, "it is not there", layout.RootPrefix, true, true, false},
		{"no root", func(b *bench) { all(b, layout.RootPrefix, b.del); b.setItem("disk", volume.KeyRoot, "") }, "no root", layout.RootPrefix, false, true, false},
		{"the last session's roots and the hint", func(b *bench) {
			epoch := b.last(layout.RootPrefix)[:len(layout.RootPrefix)+8]
			all(b, epoch, b.del)
			b.setItem("disk", volume.KeyRoot, "")
		}, "it is not there", layout.RootPrefix, true, true, false},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			b.fillLog("disk", 2<<20, 3)
			c.damage(b)
			before := b.items("disk")
			for _, quick := range []bool{false, true} {
				var args []string
				if quick {
					args = append(args, "--quick")
				}
				wrong := c.object != "" && (!quick || c.quick)
				if !wrong {
					out := b.verify(0, args...)
					if len(out.Damage) > 0 || out.Verdict != verdictClean || out.Objects == 0 || out.Root == nil || !out.Judged {
						t.Errorf("quick %v: %+v", quick, out)
					}
					continue
				}
				out := b.verify(exitDamage, args...)
				if len(out.Damage) == 0 {
					continue
				}
				var bytes int64
				for _, d := range out.Damage {
					if !strings.HasPrefix(d.Object, c.object) || d.Lost != c.lost || !strings.Contains(d.Why, c.why) {
						t.Errorf("quick %v: %+v", quick, d)
					}
					bytes += d.Bytes
					if (d.Bytes > 0) != (len(d.Ranges) > 0) {
						t.Errorf("%+v", d)
					}
				}
				if (bytes > 0) != c.parts {
					t.Errorf("quick %v: %d bytes of the disk: %+v", quick, bytes, out.Damage)
				}
				if out.Verdict != verdictDamaged {
					t.Errorf("the verdict is %s", out.Verdict)
				}
				if r := b.run(append([]string{"verify", "disk"}, args...)...); r.code != exitDamage || r.err != "" || !strings.Contains(r.out, "DAMAGED") || !strings.Contains(r.out, c.object) {
					t.Errorf("%+v", r)
				}
				// A repair deletes nothing where something is damaged.
				was, names := b.pace, len(b.names("disk", ""))
				b.oldAtOnce()
				b.verify(exitDamage, append(args, "--repair")...)
				b.pace = was
				if got := len(b.names("disk", "")); got != names {
					t.Errorf("of %d objects, %d are left", names, got)
				}
			}
			if after := b.items("disk"); after[volume.KeyClient] != "" || after[volume.KeyLast] != before[volume.KeyLast] {
				t.Errorf("was %v, is %v", before, after)
			}
		})
	}
}

// TestVerifyLogTail has the tail of a killed session's log damaged.
func TestVerifyLogTail(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(b *bench, tail []string){
		"flipped": func(b *bench, tail []string) { b.flip("disk", tail[1], -20) },
		"deleted": func(b *bench, tail []string) { b.del(tail[1]) },
		"whole":   nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			want := b.fillLog("disk", 2<<20, 1)
			d, _ := b.open("disk")
			for range 2 {
				b.scribble(d, want)
			}
			tail := b.names("disk", layout.LogPrefix+"00000002")
			d.Abandon()
			b.ok("unlock", "disk")
			if len(tail) < 4 {
				t.Fatalf("a log of %q", tail)
			}
			if damage == nil {
				if out := b.verify(0); out.Objects < int64(len(tail)) {
					t.Errorf("%+v", out)
				}
				return
			}
			damage(b, tail)
			out := b.verify(exitDamage)
			if len(out.Damage) != 1 || out.Damage[0].Object != tail[1] || out.Judged {
				t.Errorf("%+v", out)
			}
		})
	}
}

// TestVerifyLogRepair deletes what nothing needs, and nothing else, and notes the
// newest root.
func TestVerifyLogRepair(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	want := b.fillLog("disk", 2<<20, 4)
	stray := layout.LogName(layout.Position{Epoch: 1, N: layout.FirstCollected + 7})
	b.put("disk", stray, []byte("what a dead process left"))
	b.put("disk", "holiday.jpg", []byte("x"))
	b.setItem("disk", volume.KeyRoot, "00000001-00000001")
	young := b.verify(0)
	if young.Waiting < 3 || young.Strays != 0 || len(young.Foreign) != 1 {
		t.Errorf("all is young: %+v", young)
	}
	if out := b.verify(0, "--repair"); out.Deleted != 0 || !out.RootNoted {
		t.Errorf("a repair while all is young: %+v", out)
	}
	if got, last := b.items("disk")[volume.KeyRoot], b.last(layout.RootPrefix); layout.RootPrefix+got != last {
		t.Errorf("the container names root %s, the newest is %s", got, last)
	}
	b.oldAtOnce()
	before := len(b.names("disk", ""))
	if out := b.verify(exitStrays); out.Strays != young.Waiting || out.Verdict != verdictStrays {
		t.Errorf("%+v", out)
	}
	if got := len(b.names("disk", "")); got != before {
		t.Errorf("without --repair %d objects have become %d", before, got)
	}
	if r := b.run("verify", "disk"); r.code != exitStrays || !strings.Contains(r.out, "stray objects, ") || !strings.Contains(r.out, "holiday.jpg") {
		t.Errorf("%+v", r)
	}
	if out := b.verify(0, "--repair", "--quick"); out.Deleted != young.Waiting || int(out.Deleted) != before-len(b.names("disk", "")) {
		t.Errorf("%+v of %d objects, and %d are left", out, before, len(b.names("disk", "")))
	}
	if out := b.verify(0); out.Strays+out.Waiting != 0 {
		t.Errorf("after the repair: %+v", out)
	}
	b.object("disk", "holiday.jpg")
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", "disk", path)
	checkImage(t, path, want)
	b.serve("disk", func(d *device.Device) { b.scribble(d, want) })
	b.verify(exitStrays)
}

// TestVerifyHeld has a disk in use refused, and the verdict withheld of one that
// was unlocked meanwhile.
func TestVerifyHeld(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.fillLog("disk", 2<<20, 1)
	_, end := b.open("disk")
	b.fails(1, []string{"disk is locked by server:1", "not verified"}, "verify", "disk")
	end()
	first := b.names("disk", layout.LogPrefix)[0]
	reached, goOn := make(chan bool, 100), make(chan bool)
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == http.MethodGet && r.Object == first {
			reached <- true
			<-goOn
		}
		return nil
	})
	done := make(chan result)
	go func() { done <- b.run("verify", "disk") }()
	<-reached
	if r := b.run("unlock", "disk"); r.code != 0 {
		t.Errorf("unlock: %+v", r)
	}
	close(goOn)
	if r := <-done; r.code != 1 || !strings.Contains(r.err, "disk was unlocked while it was verified") || r.out != "" {
		t.Errorf("%+v", r)
	}
}

// TestVerifyInterrupted leaves no lock.
func TestVerifyInterrupted(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.fillLog("disk", 2<<20, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == http.MethodGet && strings.HasPrefix(r.Object, layout.LogPrefix) {
			cancel()
			return &devswift.Action{Hang: true}
		}
		return nil
	})
	if r := b.runContext(ctx, "verify", "disk"); r.code != 1 || r.err != "swiftnbd-ctl: disk: interrupted\n" {
		t.Errorf("%+v", r)
	}
	b.swift.SetFault(nil)
	if items := b.items("disk"); items[volume.KeyClient] != "" {
		t.Errorf("%v", items)
	}
}

// TestVerifyChunks damages a disk of version 1, with the map of a session and
// without.
func TestVerifyChunks(t *testing.T) {
	t.Parallel()
	for _, mapped := range []bool{false, true} {
		for _, c := range []struct {
			name   string
			damage func(b *bench)
			why    string
			full   bool // only the full check finds it
			mapped bool // only with a map
		}{
			{name: "nothing", damage: func(b *bench) {}},
			{name: "a short object", damage: func(b *bench) { b.put("disk", "disk.part/00000001", make([]byte, 100)) }, why: "100"},
			{name: "a deleted object", damage: func(b *bench) { b.del("disk.part/00000001") }, why: "not there", mapped: true},
			{name: "another content", damage: func(b *bench) { b.put("disk", "disk.part/00000001", make([]byte, 65536)) }, why: "chunk 1", full: true, mapped: true},
			{name: "an object in a hole", damage: func(b *bench) { b.put("disk", "disk.part/00000005", make([]byte, 65536)) }, why: "hole", mapped: true},
		} {
			b := newBench(t, devswift.Options{}, "disk")
			if mapped {
				b.ok("setup", "disk", "16")
				b.serve("disk", func(d *device.Device) {
					if _, err := d.WriteAt(noise(3*65536), 0); err != nil {
						t.Fatal(err)
					}
				})
			} else {
				b.fill("disk", 16, 65536, map[int][]byte{0: noise(65536), 1: noise(65536), 2: noise(65536)})
			}
			c.damage(b)
			for _, quick := range []bool{false, true} {
				code, args := 0, []string{}
				if c.why != "" && (mapped || !c.mapped) && !(quick && c.full) {
					code = exitDamage
				}
				if quick {
					args = append(args, "--quick")
				}
				out := b.verify(code, args...)
				if code == 0 && out.Objects < 2 || code != 0 && (len(out.Damage) != 1 || !strings.Contains(out.Damage[0].Why, c.why)) {
					t.Errorf("%s, mapped %v, quick %v: %+v", c.name, mapped, quick, out)
				}
			}
			checkUnlocked(b, "disk")
		}
	}
	// What a server or a dead disk does not damage: bytes that changed in place.
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "16")
	b.serve("disk", func(d *device.Device) {
		if _, err := d.WriteAt(noise(65536), 0); err != nil {
			t.Fatal(err)
		}
	})
	b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodGet, Prefix: "/v1/AUTH_test/disk/disk.part", Action: devswift.Action{Corrupt: true}}))
	if out := b.verify(exitDamage); len(out.Damage) != 1 {
		t.Errorf("%+v", out)
	}
	b.verify(0, "--quick")
}

// TestVerifyChunksRepair: a disk of version 1 is never repaired, and whoever asks for it is
// told so.
func TestVerifyChunksRepair(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.fill("disk", 16, 65536, map[int][]byte{0: noise(65536)})
	b.put("disk", "disk.part/00000001", make([]byte, 100))
	before := b.names("disk", "")
	const said = "nothing is repaired: --repair is for disks of version 2\n"
	if r := b.run("verify", "disk", "--repair"); r.code != exitDamage || !strings.Contains(r.out, said) {
		t.Errorf("%+v", r)
	}
	if r := b.run("verify", "disk"); r.code != exitDamage || strings.Contains(r.out, said) {
		t.Errorf("without --repair: %+v", r)
	}
	if after := b.names("disk", ""); len(after) != len(before) {
		t.Errorf("of %d objects, %d are left", len(before), len(after))
	}
}

// TestVerifyNoMap: without a map a missing object cannot be told from a hole, and verify
// says so.
func TestVerifyNoMap(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	path, _ := sparse(t, 1<<20, map[int][]byte{0: noise(1 << 20)})
	b.ok("upload", path, "disk", "--object-size", "64K")
	const said = "no map says which objects there were: one that is missing reads as zeroes, and is not noticed\n"
	check := func(known bool) {
		t.Helper()
		if out := b.ok("verify", "disk"); strings.Contains(out, said) == known {
			t.Errorf("%q", out)
		}
		if v := b.asked("verify", "disk"); v["losses_known"] != known {
			t.Errorf("%v", v)
		}
	}
	check(true)
	b.ok("resize", "disk", "2M") // which has no use for the map
	check(false)
	b.ok("convert", "disk")
	check(false)
	b.ok("flatten", "disk")
	check(true)
}
