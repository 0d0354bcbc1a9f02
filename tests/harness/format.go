// SPDX-License-Identifier: MIT

package harness

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"hash/crc32"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"swiftnbd/internal/words"
)

// formatFlag is the version of the format of the disks that Setup makes. All that
// a client sees is the same in both, so most tests prove either.
var formatFlag = flag.Int("format", 1, "version of the volume format, 1 or 2, of the disks that most tests use")

// Format returns the version of the format of the disks that Setup makes.
func Format() int { return *formatFlag }

// Dirty returns how the plugin counts dirty data of so many bytes in so many
// chunks that came in one cut: "12288 bytes in 1 object". Version 2 counts whole
// blocks. Version 1 counts a chunk that is being uploaded as a whole, so the
// bytes are not said here.
func Dirty(bytes, chunks int) string {
	if Format() == 2 { // they are one object of the log
		bytes = (bytes + blockSize - 1) / blockSize * blockSize
		return words.Count(bytes, "byte") + " in 1 object"
	}
	return " bytes in " + words.Count(chunks, "chunk")
}

// The rest is version 2 of the format, written from docs/FORMAT-V2.md and from
// nothing else. It holds the document and swiftnbd against each other.

const (
	blockSize = 4096
	frameSize = blockSize + 4
)

var (
	le    = binary.LittleEndian
	table = crc32.MakeTable(crc32.Castagnoli)
)

// firstRoot is the name of the root that a setup writes, without its prefix.
const firstRoot = "00000000-00000001"

// SetupLog makes a disk of version 2 of the format, of size bytes: a root that
// says that there is no log yet, and the container's metadata. The container
// goes when the test ends.
func (a *Account) SetupLog(t testing.TB, container string, size int64) {
	t.Helper()
	var id [16]byte
	_, _ = rand.Read(id[:]) // crypto/rand's never fails
	uuid := hex.EncodeToString(id[:])
	root := fmt.Sprintf(`{"Form":1,"Requires":[],"Name":"%s","Uuid":"%s","Size":%d,"At":"00000000-000000000000","Ended":[],`+
		`"Runs":{"Blocks":[],"Objects":[]},"Pins":[],"Bases":[],"Children":[]}`, firstRoot, uuid, size)
	sum := sha256.Sum256([]byte(root))
	a.Create(t, container, nil)
	a.Put(t, container, "swiftnbd/root/"+firstRoot, []byte(root+"\n"+hex.EncodeToString(sum[:])+"\n"))
	a.must(t, "POST", "/"+url.PathEscape(container), map[string]string{
		MetaPrefix + "Version": "2",
		MetaPrefix + "Uuid":    uuid,
		MetaPrefix + "Size":    strconv.FormatInt(size, 10),
		MetaPrefix + "Root":    firstRoot,
	}, nil)
}

// logged is a disk of version 2 that is read or written without swiftnbd.
type logged struct {
	t         testing.TB
	a         *Account
	container string
	uuid      []byte
	size      int64
	blocks    map[uint64]place // without an entry: zeroes
	objects   map[string][]byte
	unpacked  map[place][]byte // what compressed records have, by where they begin
}

type place struct {
	kind   uint64 // 0 data, 1 zeroes, 2 trimmed, 3 compressed
	object string
	at     int64
	bytes  int64  // of a compressed record
	first  uint64 // its first block
}

func (a *Account) logged(t testing.TB, container string) *logged {
	t.Helper()
	uuid, err := hex.DecodeString(a.Meta(t, container)["uuid"])
	if err != nil || len(uuid) != 16 {
		t.Fatalf("container %s: uuid: %v", container, err)
	}
	return &logged{t: t, a: a, container: container, uuid: uuid, blocks: make(map[uint64]place), objects: make(map[string][]byte), unpacked: make(map[place][]byte)}
}

func (l *logged) fail(name, format string, args ...any) {
	l.t.Helper()
	l.t.Fatalf("container %s, object %s: %s", l.container, name, fmt.Sprintf(format, args...))
}

func (l *logged) get(name string) []byte {
	l.t.Helper()
	b, ok := l.objects[name]
	if !ok {
		if b, ok = l.a.Get(l.t, l.container, name); !ok {
			l.fail(name, "it is not there")
		}
		l.objects[name] = b
	}
	return b
}

func (l *logged) crc(data []byte, block uint64) uint32 {
	b := append(bytes.Clone(data), le.AppendUint64(nil, block)...)
	return crc32.Checksum(append(b, l.uuid...), table)
}

// DataBlocks returns which blocks of a disk of version 2 have data in Swift, by
// their numbers.
func (a *Account) DataBlocks(t testing.TB, container string) []bool {
	t.Helper()
	l := a.readMap(t, container)
	has := make([]bool, (l.size+blockSize-1)/blockSize)
	for block, p := range l.blocks {
		has[block] = p.kind == 0 || p.kind == 3
	}
	return has
}

// readLog reads a disk of version 2.
func (a *Account) readLog(t testing.TB, container string) []byte {
	t.Helper()
	l := a.readMap(t, container)
	disk := make([]byte, l.size)
	for block, p := range l.blocks {
		if int64(block)*blockSize >= l.size {
			continue
		}
		if p.kind == 3 {
			copy(disk[block*blockSize:], l.unpack(p)[(block-p.first)*blockSize:][:blockSize])
		}
		if p.kind == 0 {
			b := l.get(p.object)
			if int64(len(b)) < p.at+frameSize {
				l.fail(p.object, "it has %d bytes, and no frame at %d", len(b), p.at)
			}
			frame := b[p.at:][:frameSize]
			if le.Uint32(frame[blockSize:]) != l.crc(frame[:blockSize], block) {
				l.fail(p.object, "the frame of block %d at %d is damaged", block, p.at)
			}
			copy(disk[block*blockSize:], frame[:blockSize])
		}
	}
	return disk
}

// unpack returns the blocks of a compressed record.
func (l *logged) unpack(p place) []byte {
	l.t.Helper()
	if disk, ok := l.unpacked[p]; ok {
		return disk
	}
	b := l.get(p.object)
	if int64(len(b)) < p.at+p.bytes || p.bytes < 5 {
		l.fail(p.object, "it has %d bytes, and no record of %d at %d", len(b), p.bytes, p.at)
	}
	data := b[p.at:][:p.bytes-4]
	if le.Uint32(b[p.at+p.bytes-4:]) != l.crc(data, p.first) {
		l.fail(p.object, "the compressed record at %d, of block %d, is damaged", p.at, p.first)
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxWindow(16*blockSize), zstd.WithDecoderConcurrency(1))
	if err != nil {
		l.t.Fatal(err)
	}
	defer d.Close()
	disk, err := d.DecodeAll(data, nil)
	if err != nil || len(disk) == 0 || len(disk) > 16*blockSize || len(disk)%blockSize != 0 || len(data)+4 >= len(disk)/blockSize*frameSize {
		l.fail(p.object, "the compressed record at %d has %d bytes, and gives %d: %v", p.at, p.bytes, len(disk), err)
	}
	l.unpacked[p] = disk
	return disk
}

// readMap reads the map of a disk of version 2: the newest root, the runs that it
// names, and the whole cuts of the log after it.
func (a *Account) readMap(t testing.TB, container string) *logged {
	t.Helper()
	l := a.logged(t, container)
	names := a.List(t, container)
	var rootName string
	for _, n := range names {
		if r, ok := strings.CutPrefix(n, "swiftnbd/root/"); ok {
			rootName = max(rootName, r)
		}
	}
	text, sum, _ := bytes.Cut(l.get("swiftnbd/root/"+rootName), []byte("\n"))
	if want := sha256.Sum256(text); string(sum) != hex.EncodeToString(want[:])+"\n" {
		l.fail(rootName, "its checksum is wrong")
	}
	var root struct {
		Name string
		Uuid string
		Size int64
		At   string
		Runs struct{ Blocks []string }
	}
	if err := json.Unmarshal(text, &root); err != nil || root.Uuid != hex.EncodeToString(l.uuid) || root.Name != rootName {
		l.fail(rootName, "%v, uuid %s, name %s", err, root.Uuid, root.Name)
	}
	l.size = root.Size
	for _, run := range root.Runs.Blocks {
		l.readRun("swiftnbd/run/" + run)
	}
	epoch, next := rootName[:8], uint64(1)
	if strings.HasPrefix(root.At, epoch) {
		n, err := strconv.ParseUint(root.At[9:], 16, 64)
		if err != nil {
			l.fail(rootName, "At: %v", err)
		}
		next = n + 1
	}
	var cut []string
	for ; ; next++ {
		name := fmt.Sprintf("swiftnbd/log/%s-%012x", epoch, next)
		if !slices.Contains(names, name) {
			break
		}
		footer := l.footer(name)
		cut = append(cut, name)
		if le.Uint16(footer[10:])&2 != 0 {
			for _, name := range cut {
				l.readRecords(name)
			}
			cut = nil
		}
	}
	return l
}

func (l *logged) footer(name string) []byte {
	l.t.Helper()
	b := l.get(name)
	if len(b) < 128 {
		l.fail(name, "it has %d bytes", len(b))
	}
	f := b[len(b)-128:]
	if string(f[:8]) != "swnbdlog" || le.Uint16(f[8:]) != 1 || !bytes.Equal(f[16:32], l.uuid) || le.Uint32(f[124:]) != crc32.Checksum(f[:124], table) {
		l.fail(name, "its footer is wrong: %x", f)
	}
	return f
}

func (l *logged) readRecords(name string) {
	l.t.Helper()
	b, f := l.get(name), l.footer(name)
	size, n := int(le.Uint32(f[12:])), int(le.Uint32(f[36:]))
	records := b[len(b)-128-n*size : len(b)-128]
	if le.Uint32(f[80:]) != crc32.Checksum(records, table) {
		l.fail(name, "its records are damaged")
	}
	for ; len(records) > 0; records = records[size:] {
		first, kind, at := le.Uint64(records), uint64(records[12]), int64(le.Uint32(records[16:]))
		l.set(first, uint64(le.Uint32(records[8:])), place{kind, name, at, int64(le.Uint32(records[20:])), first})
	}
	l.size = int64(le.Uint64(f[64:]))
}

// set gives blocks their place: p is that of the first one, and of all if they are
// compressed.
func (l *logged) set(first, count uint64, p place) {
	l.t.Helper()
	if p.kind > 3 {
		l.fail(p.object, "kind %d", p.kind)
	}
	if p.kind != 3 {
		p.bytes, p.first = 0, 0
	}
	count = min(count, uint64(l.size+blockSize-1)/blockSize-first)
	for i := range count {
		l.blocks[first+i] = p
		if p.kind != 3 {
			p.at += frameSize
		}
	}
}

func (l *logged) readRun(name string) {
	l.t.Helper()
	b := l.get(name)
	f := b[len(b)-64:]
	if string(f[:8]) != "swnbdrun" || le.Uint32(f[60:]) != crc32.Checksum(f[:60], table) || !bytes.Equal(f[24:40], l.uuid) {
		l.fail(name, "its footer is wrong: %x", f)
	}
	if own := fmt.Sprintf("swiftnbd/run/%08x-%08x", le.Uint32(f[44:]), le.Uint64(f[48:])); own != name {
		l.fail(name, "it says that it is %s", own)
	}
	pages, end := int(le.Uint32(f[12:])), int(le.Uint64(f[16:]))
	index := b[end : end+pages*20]
	for ; len(index) > 0; index = index[20:] {
		page := b[le.Uint64(index[8:]):][:le.Uint32(index[16:])]
		data := page[:len(page)-4]
		if le.Uint32(page[len(data):]) != crc32.Checksum(data, table) {
			l.fail(name, "a page is damaged")
		}
		varint := func() uint64 {
			v, n := binary.Uvarint(data)
			if n <= 0 {
				l.fail(name, "an entry is damaged")
			}
			data = data[n:]
			return v
		}
		for at := uint64(0); len(data) > 0; {
			first := at + varint()
			count, kind := varint(), varint()&^32 // 32 is about the counts of live bytes
			at = first + count
			if kind != 0 && kind != 3 {
				l.set(first, count, place{kind: kind, object: name})
				continue
			}
			epoch, n, at := varint(), varint(), varint()
			p := place{kind: kind, object: fmt.Sprintf("swiftnbd/log/%08x-%012x", epoch, n), at: int64(at)}
			if kind == 3 {
				p.bytes = int64(varint())
				p.first = first - varint() // so many of its blocks precede these
			}
			l.set(first, count, p)
		}
	}
}

// writeLog writes an object of the log. chunks maps the number of a chunk to its
// bytes. Nobody may have opened the disk yet: the log goes on behind the root of
// the setup.
func (a *Account) writeLog(t testing.TB, container string, chunks map[int][]byte) {
	t.Helper()
	l := a.logged(t, container)
	n := uint64(1)
	for _, name := range a.List(t, container) {
		switch {
		case strings.HasPrefix(name, "swiftnbd/log/"):
			n++
		case strings.HasPrefix(name, "swiftnbd/root/") && !strings.HasSuffix(name, firstRoot):
			t.Fatalf("container %s: it was opened already: %s", container, name)
		}
	}
	if len(chunks) == 0 {
		return
	}
	var data, records []byte
	for i, c := range chunks {
		if len(c)%blockSize != 0 {
			t.Fatalf("chunk %d: %d bytes are no blocks", i, len(c))
		}
		first, count := uint64(i*len(c)/blockSize), len(c)/blockSize
		record := le.AppendUint32(le.AppendUint64(nil, first), uint32(count))
		record = le.AppendUint32(append(record, 0, 0, 0, 0), uint32(len(data)))
		record = le.AppendUint64(le.AppendUint32(record, uint32(count*frameSize)), 0)
		records = append(records, record...)
		for j := range count {
			block := c[j*blockSize:][:blockSize]
			data = le.AppendUint32(append(data, block...), l.crc(block, first+uint64(j)))
		}
	}
	size, err := strconv.ParseUint(a.Meta(t, container)["size"], 10, 63)
	if err != nil {
		t.Fatal(err)
	}
	f := le.AppendUint16([]byte("swnbdlog"), 1)
	f = le.AppendUint16(f, 2) // the last of its cut
	f = append(le.AppendUint32(f, 32), l.uuid...)
	f = le.AppendUint32(f, 0)
	f = le.AppendUint32(f, uint32(len(records)/32))
	f = le.AppendUint64(le.AppendUint64(f, n), n)
	f = le.AppendUint64(f, n-1)
	f = le.AppendUint64(f, size)
	f = le.AppendUint64(f, 0)
	f = le.AppendUint32(f, crc32.Checksum(records, table))
	f = append(f, make([]byte, 40)...)
	f = le.AppendUint32(f, crc32.Checksum(f, table))
	a.Put(t, container, fmt.Sprintf("swiftnbd/log/%08x-%012x", 0, n), slices.Concat(data, records, f))
}
