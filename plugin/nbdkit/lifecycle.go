// SPDX-License-Identifier: MIT

package nbdkit

/*
#include "shim.h"
*/
import "C"

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"
)

var (
	// preflightState is what Preflight returned.
	preflightState []byte
	// inPreflight is set in the process that ends after Preflight.
	inPreflight atomic.Bool
	// replaying is set while the process that serves repeats calls that the
	// preflight has made and reported on already.
	replaying atomic.Bool
)

// PreflightState returns what Preflight returned, in the process that serves,
// from Load on (late start) or from AfterFork on (early start). It is nil if
// there is none.
func PreflightState() []byte { return preflightState }

// InPreflight tells whether this process only checks, and ends once Preflight
// has returned.
func InPreflight() bool { return inPreflight.Load() }

// passed are the files that Preflight passes on.
var passed []*os.File

// PassFile hands an open file, such as a listening socket, from Preflight to
// the process that serves, where PassedFiles returns it. It is for files that
// the command of nbdkit --run may need as soon as it starts, which is before
// AfterFork. The file stays the caller's, who may close it after Preflight has
// returned. At most 16 files can be passed.
func PassFile(f *os.File) error {
	if len(passed) == C.NBDKITGO_PASSED {
		return fmt.Errorf("PassFile: more than %d files", C.NBDKITGO_PASSED)
	}
	passed = append(passed, f)
	return nil
}

// PassedFiles returns the files that Preflight has passed, in their order, in
// the process that serves, from AfterFork on. They are the caller's then: each
// call after the first returns none.
func PassedFiles() []*os.File {
	files := passed
	passed = nil
	if passedOnce || !bool(C.nbdkitgo_is_late()) {
		return files // with the early start there is one process only
	}
	passedOnce = true
	for i := C.size_t(0); ; i++ {
		fd := C.nbdkitgo_passed(i)
		if fd == -1 {
			return files
		}
		files = append(files, os.NewFile(uintptr(fd), "passed"))
	}
}

// passedOnce says that PassedFiles has taken the descriptors from C.
var passedOnce bool

// step runs one callback of the plugin, reports its error or panic, and
// returns what to tell C.
func step(callback string, f func() error) (rc int32) {
	defer guard(callback, &rc)
	if err := f(); err != nil {
		return failed(err)
	}
	return 0
}

func load() int32 {
	return step("Load", func() error { pluginImpl.Load(); return nil })
}

func config(key, value string) int32 {
	return step("Config", func() error { return pluginImpl.Config(key, value) })
}

func configComplete() int32 { return step("ConfigComplete", pluginImpl.ConfigComplete) }

func getReady() int32 { return step("GetReady", pluginImpl.GetReady) }

func preflight() int32 {
	p, ok := pluginImpl.(PreflightInterface)
	if !ok {
		return 0
	}
	return step("Preflight", func() (err error) {
		preflightState, err = p.Preflight()
		return err
	})
}

func afterFork() int32 {
	p, ok := pluginImpl.(AfterForkInterface)
	if !ok {
		return 0
	}
	return step("AfterFork", p.AfterFork)
}

// replay calls Load and Config as nbdkit would have called them, and, unless
// for dump_plugin, ConfigComplete and GetReady.
func replay(forDump bool) int32 {
	if rc := load(); rc != 0 {
		return rc
	}
	for i := C.size_t(0); i < C.nbdkitgo_param_count(); i++ {
		p := C.nbdkitgo_param_at(i)
		if rc := config(C.GoString(p.key), C.GoString(p.value)); rc != 0 {
			return rc
		}
	}
	if forDump {
		return 0
	}
	if rc := configComplete(); rc != 0 {
		return rc
	}
	return getReady()
}

// writeAll writes to the pipe that a child has to its parent.
func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := syscall.Write(fd, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("handing over to nbdkit: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// pass hands f to nbdkit with a record of its own.
func pass(fd int, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("handing over %s: %w", f.Name(), err)
	}
	mark := record(nil, 'f', "")
	var sent error
	err = raw.Control(func(own uintptr) {
		if r, errno := C.nbdkitgo_pass(C.int(fd), C.int(own), unsafe.Pointer(&mark[0]), C.size_t(len(mark))); r != 0 {
			sent = errno
		}
	})
	if err == nil {
		err = sent
	}
	if err != nil {
		return fmt.Errorf("handing over %s: %w", f.Name(), err)
	}
	return nil
}

// takeCarried takes what the preflight left: its state and the passwords read.
func takeCarried(b []byte) error {
	for len(b) > 0 {
		if len(b) < 5 {
			return fmt.Errorf("what the preflight left is cut off")
		}
		tag, n := b[0], binary.NativeEndian.Uint32(b[1:])
		b = b[5:]
		if uint64(n) > uint64(len(b)) {
			return fmt.Errorf("what the preflight left is cut off")
		}
		switch tag {
		case 's':
			preflightState = append([]byte(nil), b[:n]...)
		case 'p':
			passwords.carry(string(b[:n]))
		}
		b = b[n:]
	}
	return nil
}

//export nbdkitgoRegistered
func nbdkitgoRegistered() *C.struct_nbdkit_plugin {
	return (*C.struct_nbdkit_plugin)(makePlugin())
}

//export nbdkitgoDescribe
func nbdkitgoDescribe(fd C.int) C.int {
	return C.int(step("the description of the plugin", func() error {
		d, err := describe()
		if err != nil {
			return err
		}
		return writeAll(int(fd), d)
	}))
}

//export nbdkitgoPreflight
func nbdkitgoPreflight(fd C.int) C.int {
	inPreflight.Store(true)
	Debugf("checking in process %d before serving", syscall.Getpid())
	if rc := replay(false); rc != 0 {
		return C.int(rc)
	}
	if rc := preflight(); rc != 0 {
		return C.int(rc)
	}
	return C.int(step("Preflight", func() error {
		if uint64(len(preflightState)) > 1<<31 {
			return fmt.Errorf("the state that Preflight returned is too large (%d bytes)", len(preflightState))
		}
		var b []byte
		if preflightState != nil {
			b = record(b, 's', string(preflightState))
		}
		for _, p := range passwords.all() {
			b = record(b, 'p', p)
		}
		for _, f := range passed {
			if err := pass(int(fd), f); err != nil {
				return err
			}
		}
		return writeAll(int(fd), b)
	}))
}

//export nbdkitgoStart
func nbdkitgoStart(carried unsafe.Pointer, n C.size_t) C.int {
	rc := step("the start in the server", func() error {
		return takeCarried(unsafe.Slice((*byte)(carried), int(n)))
	})
	if rc == 0 {
		replaying.Store(true)
		rc = replay(false)
		replaying.Store(false)
	}
	if rc == 0 {
		rc = afterFork()
	}
	if rc != 0 {
		return -1
	}
	return 0
}

//export nbdkitgoLoad
func nbdkitgoLoad() C.int { return C.int(load()) }

//export nbdkitgoUnload
func nbdkitgoUnload() {
	step("Unload", func() error { pluginImpl.Unload(); return nil })
}

//export nbdkitgoDumpPlugin
func nbdkitgoDumpPlugin(withReplay C.bool) C.int {
	if withReplay {
		if rc := replay(true); rc != 0 {
			return C.int(rc)
		}
	}
	return C.int(step("DumpPlugin", func() error { pluginImpl.DumpPlugin(); return nil }))
}

//export nbdkitgoConfig
func nbdkitgoConfig(key, value *C.char) C.int {
	return C.int(config(C.GoString(key), C.GoString(value)))
}

//export nbdkitgoConfigComplete
func nbdkitgoConfigComplete() C.int { return C.int(configComplete()) }

//export nbdkitgoGetReady
func nbdkitgoGetReady() C.int {
	if rc := getReady(); rc != 0 {
		return C.int(rc)
	}
	return C.int(preflight())
}

//export nbdkitgoAfterFork
func nbdkitgoAfterFork() C.int { return C.int(afterFork()) }

//export nbdkitgoCleanup
func nbdkitgoCleanup() {
	if p, ok := pluginImpl.(CleanupInterface); ok {
		step("Cleanup", func() error { p.Cleanup(); return nil })
	}
}
