// SPDX-License-Identifier: MIT

package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExports(t *testing.T) {
	s := start(t, probe)
	r := command(t, "nbdinfo", "--list", s.uri())
	expect(t, "status", r.status, 0)
	for _, part := range []string{"export=\"one\":\n\tdescription: the first\n", "export=\"two\":\n\texport-size: 1048576"} {
		expectIn(t, "list", r.stdout, part)
	}
	expectIn(t, "default", command(t, "nbdinfo", s.uri()).stdout, "export=\"one\":\n\tdescription: export one\n")

	r = command(t, "nbdinfo", "--list", start(t, probe, "can=UseDefault").uri())
	expect(t, "exports", strings.Count(r.stdout, "export="), 1)
	expectIn(t, "default alone", r.stdout, "export=\"one\":\n")

	s = start(t, probe, "can=twice")
	r = command(t, "nbdinfo", "--list", s.uri())
	expectIn(t, "NUL", s.read(), "an export's name or description holds a NUL")
	s = start(t, probe, "fail=ListExports=plain")
	command(t, "nbdinfo", "--list", s.uri())
	expectIn(t, "error", s.read(), "a plain error; of two lines")
	s = start(t, probe, "fail=DefaultExport=plain")
	if r = command(t, "nbdinfo", s.uri()); r.status == 0 {
		t.Errorf("let in without a default export: %s", r.stdout)
	}
	expect(t, "named", command(t, "nbdinfo", "--size", "nbd+unix:///x?socket="+s.socket).stdout, "1048576\n")
}

func TestBlockSize(t *testing.T) {
	s := start(t, probe)
	expect(t, "sizes", s.nbdsh(`print(h.get_block_size(nbd.SIZE_MINIMUM), h.get_block_size(nbd.SIZE_PREFERRED), h.get_block_size(nbd.SIZE_MAXIMUM))`), "512 65536 4294967295")
}

// TestExtents compares with what was written, and copies the disk with
// nbdcopy, which leaves out holes.
func TestExtents(t *testing.T) {
	s := start(t, probe, "can=Write,Flush,Extents,MultiConn")
	s.nbdsh(`h.pwrite(b"x" * 4096, 8192); h.pwrite(b"y" * 512, 1 << 19)`)
	code := `
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(%q)
def f(context, offset, entries, err):
  at = offset
  for i in range(0, len(entries), 2):
    print(at, entries[i], entries[i+1]); at += entries[i]
h.block_status(1 << 20, 0, f)
h.block_status(1024, 8192 - 512, f)
h.block_status(1 << 20, 0, f, nbd.CMD_FLAG_REQ_ONE)`
	r := command(t, "nbdsh", "-c", fmt.Sprintf(code, s.uri()))
	expect(t, "extents", r.stdout+r.stderr, `0 8192 3
8192 4096 0
12288 512000 3
524288 4096 0
528384 520192 3
7680 512 3
8192 4096 0
0 8192 3
`)
	file := filepath.Join(t.TempDir(), "copy")
	if r := command(t, "nbdcopy", s.uri(), file); r.status != 0 {
		t.Fatal(r.stderr)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 1<<20)
	copy(want[8192:], strings.Repeat("x", 4096))
	copy(want[1<<19:], strings.Repeat("y", 512))
	if string(b) != string(want) {
		t.Error("the copy differs")
	}

	for can, log := range map[string]string{"Extents,gap": "extent", "Extents": "chunk 7: write /x: input/output error"} {
		args := []string{probe, "can=" + can}
		if can == "Extents" {
			args = append(args, "fail=Extents=os:5")
		}
		s := start(t, args...)
		r := command(t, "nbdsh", "-c", fmt.Sprintf(code, s.uri()))
		if r.status == 0 {
			t.Errorf("%s: no error: %s", can, r.stdout)
		}
		expectIn(t, can, s.read(), log)
		expect(t, can+" lines", strings.Count(s.read(), "\n"), 1)
	}
}

// TestExtentsKept: a list used after its callback is an error, and no crash.
func TestExtentsKept(t *testing.T) {
	s := start(t, probe, "can=Extents,answer")
	command(t, "nbdinfo", "--map", s.uri())
	expect(t, "answer", s.ask(3584), "adding an extent: invalid argument")
}

// requests does one of each, prints what the client may do, and returns what
// arrived at the plugin.
func requests(t *testing.T, args ...string) (said string, calls []string) {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	s := start(t, append([]string{probe, "trace=" + trace}, args...)...)
	said = s.nbdsh(`
print("fua", h.can_fua(), "cache", h.can_cache(), "fast", h.can_fast_zero())
F = nbd.CMD_FLAG_FUA if h.can_fua() else 0
h.pwrite(b"x" * 512, 0, F)
if h.can_trim(): h.trim(512, 512, F)
h.zero(512, 1024, F)
h.zero(512, 1024, nbd.CMD_FLAG_NO_HOLE)
if h.can_fast_zero():
  try:
    h.zero(512, 1536, nbd.CMD_FLAG_FAST_ZERO); print("zeroed fast")
  except nbd.Error as e: print(e.errno)
if h.can_cache(): h.cache(512, 2048)
`)
	s.stop()
	all := traced(t, trace)
	for _, call := range all[len(all)-1] {
		if strings.Contains(call, " ") && !strings.HasPrefix(call, "Config ") && !strings.HasPrefix(call, "Open") && !strings.HasPrefix(call, "AfterFork") {
			calls = append(calls, call)
		}
	}
	return said, calls
}

func TestFlags(t *testing.T) {
	for _, test := range []struct {
		name, can, plain, fail, said, calls string
	}{
		{"native", "Write,Flush,Trim,Zero,FastZero,FUANative,CacheNative", "0", "", "fua True cache True fast True\nzeroed fast",
			"PWrite 512 0 2,Trim 512 512 2,Zero 512 1024 3,Zero 512 1024 0,Zero 512 1536 9,Cache 512 2048 0"},
		{"emulated", "Write,Flush,Trim,Zero,FUAEmulate,CacheEmulate", "0", "", "fua True cache True fast False",
			"PWrite 512 0 0,Flush 0,Trim 512 512 0,Flush 0,Zero 512 1024 1,Flush 0,Zero 512 1024 0,PRead 512 2048 0"},
		{"none", "Write,Flush,Trim,Zero", "0", "", "fua False cache False fast False",
			"PWrite 512 0 0,Trim 512 512 0,Zero 512 1024 1,Zero 512 1024 0"},
		{"no methods, flush", "Write,Flush,Trim,Zero", "1", "", "fua True cache False fast False",
			"PWrite 512 0 0,Flush 0,Trim 512 512 0,Flush 0,Zero 512 1024 1,Flush 0,Zero 512 1024 0"},
		{"no methods, no flush", "Write", "1", "", "fua False cache False fast True\nENOTSUP",
			"PWrite 512 0 0,PWrite 512 1024 0,PWrite 512 1024 0"},
		{"zero not supported", "Write,Flush,Zero,FastZero,FUANative", "0", "Zero=os:95", "fua True cache False fast True\nENOTSUP",
			"PWrite 512 0 2,Zero 512 1024 3,PWrite 512 1024 2,Zero 512 1024 0,PWrite 512 1024 0,Zero 512 1536 9"},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := []string{"can=" + test.can, "plain=" + test.plain}
			if test.fail != "" {
				args = append(args, "fail="+test.fail)
			}
			said, calls := requests(t, args...)
			expect(t, "client", said, test.said)
			expect(t, "plugin", strings.Join(calls, ","), test.calls)
		})
	}
}

// TestNotSupportedIsQuiet: it is an answer, and not an error to be logged.
func TestNotSupportedIsQuiet(t *testing.T) {
	s := start(t, probe, "can=Write,Zero,FastZero", "fail=Zero=os:95")
	s.nbdsh(`h.zero(512, 0)`)
	expect(t, "log", s.read(), "")
}

func TestReadOnly(t *testing.T) {
	expect(t, "can't", start(t, probe).nbdsh(`print(h.is_read_only())`), "True")
	expect(t, "-r", start(t, "-r", probe, "can=Write").nbdsh(`print(h.is_read_only())`), "True")
	expect(t, "can", start(t, probe, "can=Write").nbdsh(`print(h.is_read_only())`), "False")
}

func TestAboutTheClient(t *testing.T) {
	s := start(t, probe, "can=answer")
	expect(t, "answer", s.ask(1536), fmt.Sprintf("false <nil>unix<nil> %d <nil>", os.Getuid()))
}

func TestShutdownByPlugin(t *testing.T) {
	s := start(t, probe, "can=answer")
	expect(t, "answer", s.ask(2560), "shutting down")
	s.wait()
}

// TestSameAsC holds a connection without optional methods against a plugin in
// C without the callbacks.
func TestSameAsC(t *testing.T) {
	for _, test := range []struct{ can, cflags string }{
		{"Write,Flush,Trim,Zero", "-DFLUSH -DTRIM -DZERO"},
		{"Write,Flush,Zero", "-DFLUSH -DZERO"},
		{"Write,Flush", "-DFLUSH"},
		{"Write,Zero", "-DZERO"},
		{"Write", ""},
	} {
		so := filepath.Join(t.TempDir(), "plain.so")
		args := append(strings.Fields(test.cflags), "-shared", "-fPIC", "-o", so, "testdata/plain.c")
		if r := command(t, "cc", args...); r.status != 0 {
			t.Fatal(r.stderr)
		}
		code := `
h.set_full_info(True)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri("nbd+unix:///x?socket=%s")
print([f() for f in (h.can_flush, h.can_fua, h.can_trim, h.can_zero, h.can_fast_zero, h.can_cache, h.can_df,
  h.can_multi_conn, h.is_rotational, h.is_read_only)])
print([h.get_block_size(i) for i in range(3)])
try: print(h.get_export_description())
except nbd.Error as e: print(e.errno)
h.block_status(1 << 20, 0, lambda *a: print(a))
`
		ask := func(s *server) string {
			r := command(t, "nbdsh", "-c", fmt.Sprintf(code, s.socket))
			if r.status != 0 {
				t.Fatalf("nbdsh: %s\n%s", r.stderr, s.read())
			}
			return r.stdout
		}
		expect(t, test.can, ask(start(t, probe, "plain=1", "can="+test.can)), ask(start(t, so)))
	}
}
