// SPDX-License-Identifier: MIT

package logdisk

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
)

// recordBytes is how many bytes of the disk a compressed record has at most. No
// frame may ask for more memory than that, whatever it says of itself.
const recordBytes = layout.MaxCompressed * layout.BlockSize

// compressor and decompressor are those of all disks. They work for as many
// goroutines at once as there are processors; others wait.
var compressor = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(cap(compressing)), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithWindowSize(recordBytes), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // the options are wrong
	}
	return e
})

var decompressor = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(cap(compressing)), zstd.WithDecoderMaxWindow(recordBytes),
		zstd.WithDecoderMaxMemory(recordBytes), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
	if err != nil {
		panic(err)
	}
	return d
})

// recordBufs are buffers of recordBytes.
var recordBufs = sync.Pool{New: func() any { return new([recordBytes]byte) }}

// decompress returns the blocks of a compressed record whose first block is first,
// in buf. b has the record's bytes. The error is a *layout.DamagedError.
func decompress(b []byte, first uint64, u *layout.UUID, buf *[recordBytes]byte) ([]byte, error) {
	compressed, err := layout.CheckCompressed(b, first, u)
	if err != nil {
		return nil, err
	}
	p, err := decompressor().DecodeAll(compressed, buf[:0])
	if err != nil {
		return nil, &layout.DamagedError{What: "compressed data", Why: fmt.Sprintf("block %d: %v", first, err)}
	}
	if len(p) == 0 || len(p)%layout.BlockSize != 0 {
		return nil, &layout.DamagedError{What: "compressed data", Why: fmt.Sprintf("block %d: it has %d bytes, which are not whole blocks", first, len(p))}
	}
	return p, nil
}

// unpack puts the blocks that e has of a compressed record, whose bytes are b, into
// p.
func unpack(b []byte, e blockmap.Extent, u *layout.UUID, p []byte) error {
	if uint64(e.Skip) > e.First {
		return &layout.DamagedError{What: "compressed data", Why: fmt.Sprintf("block %d: its record begins %d before it", e.First, e.Skip)}
	}
	buf := recordBufs.Get().(*[recordBytes]byte)
	defer recordBufs.Put(buf)
	all, err := decompress(b, e.First-uint64(e.Skip), u, buf)
	if err != nil {
		return err
	}
	from, n := uint64(e.Skip)*layout.BlockSize, e.Count*layout.BlockSize
	if from+n > uint64(len(all)) {
		return &layout.DamagedError{What: "compressed data", Why: fmt.Sprintf("block %d: its record has %d blocks", e.First, len(all)/layout.BlockSize)}
	}
	copy(p, all[from:from+n])
	return nil
}

// checkRecord says what is wrong with the bytes of a compressed record.
func checkRecord(b []byte, r layout.Record, u *layout.UUID) error {
	buf := recordBufs.Get().(*[recordBytes]byte)
	defer recordBufs.Put(buf)
	p, err := decompress(b, r.First, u, buf)
	if err == nil && len(p) != int(r.Count)*layout.BlockSize {
		err = &layout.DamagedError{What: "compressed data", Why: fmt.Sprintf("block %d: it has %d bytes, expected %d blocks", r.First, len(p), r.Count)}
	}
	return err
}

// A compressed record saves at least one part in savesLeast of its frames, or they
// are kept as they are: reading one block of it costs all of it, and the processor.
const savesLeast = 8

// piece is a range of blocks, within one multiple of layout.MaxCompressed, that
// becomes one record or stays in frames.
type piece struct {
	first, count uint64
	from         []layout.Record // those of the object that have its blocks
	worker       int
	place, bytes int // in the worker's buffer; 0 bytes: it stays in frames
}

// piecesOf returns the pieces of an object's records, which are in order.
func piecesOf(records []layout.Record) (pieces []piece) {
	for i, r := range records {
		if r.Kind != layout.Data {
			continue
		}
		for first, end := r.First, r.End(); first < end; {
			to := min(end, first-first%layout.MaxCompressed+layout.MaxCompressed)
			if k := len(pieces) - 1; k >= 0 && pieces[k].first+pieces[k].count == first && first%layout.MaxCompressed != 0 {
				pieces[k].count += to - first
				pieces[k].from = append(pieces[k].from, records[i])
			} else {
				pieces = append(pieces, piece{first: first, count: to - first, from: records[i : i+1 : i+1]})
			}
			first = to
		}
	}
	return pieces
}

// gather copies the blocks of a piece out of an object's frames.
func (p *piece) gather(buf []byte, to []byte) []byte {
	to = to[:p.count*layout.BlockSize]
	for _, r := range p.from {
		for b := max(r.First, p.first); b < min(r.End(), p.first+p.count); b++ {
			copy(to[(b-p.first)*layout.BlockSize:][:layout.BlockSize], buf[uint64(r.Place)+(b-r.First)*layout.FrameSize:])
		}
	}
	return to
}

// compressing has an item for each goroutine that compresses an object's pieces,
// of all disks.
var compressing = make(chan struct{}, runtime.GOMAXPROCS(0))

// piecesEach is how many pieces a goroutine has at least, where an object is
// compressed by several.
const piecesEach = 8

var packBufs = sync.Pool{New: func() any { return new([]byte) }}

// pack compresses an object's frames where that saves bytes. It returns its data in
// another buffer, which the caller gives to freeBuffer, and the records of that; nil
// if nothing is saved.
func (d *Disk) pack(o *object) (data []byte, records []layout.Record) {
	pieces := piecesOf(o.records)
	if len(pieces) == 0 {
		return nil, nil
	}
	// One goroutine at least, and others if processors are idle.
	compressing <- struct{}{}
	workers := 1
more:
	for workers < len(pieces)/piecesEach {
		select {
		case compressing <- struct{}{}:
			workers++
		default:
			break more
		}
	}
	defer func() {
		for range workers {
			<-compressing
		}
	}()
	bufs := make([]*[]byte, workers)
	each := (len(pieces) + workers - 1) / workers
	work := func(w int) {
		own := pieces[min(w*each, len(pieces)):min((w+1)*each, len(pieces))]
		b := packBufs.Get().(*[]byte)
		*b = (*b)[:0]
		raw := recordBufs.Get().(*[recordBytes]byte)
		defer recordBufs.Put(raw)
		for i := range own {
			p := &own[i]
			p.worker, p.place = w, len(*b)
			*b = compressor().EncodeAll(p.gather(o.buf, raw[:]), *b)
			frames := int(p.count) * layout.FrameSize
			if n := len(*b) - p.place; layout.WorthCompressed(n, uint32(p.count)) && n <= frames-frames/savesLeast {
				p.bytes = n
			} else {
				*b = (*b)[:p.place]
			}
		}
		bufs[w] = b
	}
	var wg sync.WaitGroup
	for w := range workers - 1 {
		wg.Go(func() {
			defer d.recoverPanic()
			work(w + 1)
		})
	}
	work(0)
	wg.Wait()
	defer func() {
		for _, b := range bufs {
			if b != nil {
				packBufs.Put(b)
			}
		}
	}()
	size, saved := 0, false
	for _, p := range pieces {
		if p.bytes > 0 {
			saved = true
			size += p.bytes + 4
		} else {
			size += int(p.count) * layout.FrameSize
		}
	}
	if !saved || d.ctx.Err() != nil {
		return nil, nil
	}
	return d.lay(o, pieces, bufs, size)
}

// lay puts an object's pieces, which have size bytes together, one behind the other.
func (d *Disk) lay(o *object, pieces []piece, bufs []*[]byte, size int) (data []byte, records []layout.Record) {
	if size > d.o.Seal/16 {
		data = newBuffer(max(size, d.o.Seal) + tailRoom)
	} else {
		data = make([]byte, 0, size+layout.FooterSize+len(o.records)*64)
	}
	var before, after int64
	for i := range pieces {
		p := &pieces[i]
		r := layout.Record{First: p.first, Count: uint32(p.count), Kind: layout.Data, Place: uint32(len(data)), Bytes: uint32(p.count) * layout.FrameSize}
		if p.bytes > 0 {
			b := (*bufs[p.worker])[p.place:][:p.bytes]
			data = layout.AppendCompressed(data, b, p.first, &d.o.UUID)
			r.Kind, r.Bytes = layout.Zstd, uint32(len(data))-r.Place
			before += int64(p.count) * layout.FrameSize
			after += int64(r.Bytes)
			records = append(records, r)
			continue
		}
		data = data[:len(data)+int(r.Bytes)]
		for _, from := range p.from {
			first, end := max(from.First, p.first), min(from.End(), p.first+p.count)
			frames := o.buf[uint64(from.Place)+(first-from.First)*layout.FrameSize:][:(end-first)*layout.FrameSize]
			copy(data[uint64(r.Place)+(first-p.first)*layout.FrameSize:], frames)
		}
		if k := len(records) - 1; k >= 0 && records[k].Kind == layout.Data && records[k].End() == r.First {
			records[k].Count += r.Count
			records[k].Bytes += r.Bytes
			continue
		}
		records = append(records, r)
	}
	for _, r := range o.records {
		if r.Kind != layout.Data {
			records = append(records, r)
		}
	}
	d.stats.CompressFrom.Add(before)
	d.stats.CompressTo.Add(after)
	return data, records
}

// relabel gives the blocks of an object, which the map has at their places in the
// buffer of the cut, their places in Swift. d.mu is held.
func (d *Disk) relabel(o *object) {
	if o.packed == nil {
		return
	}
	maps := []*blockmap.Map{d.m, d.delta.known, d.delta.blind}
	if d.frozen != nil {
		maps = append(maps, d.frozen.known, d.frozen.blind)
	}
	j := 0
	for _, r := range o.packed { // those that have bytes are in order, and come first
		if !stored(r.Kind) {
			break
		}
		now := extentOfRecord(o.at, r)
		for at := r.First; at < r.End(); {
			for o.records[j].Kind != layout.Data || o.records[j].End() <= at {
				j++
			}
			was := o.records[j]
			end := min(r.End(), was.End())
			old := part(extentOfRecord(o.at, was), at, end).Value
			for _, m := range maps {
				m.Replace(at, end-at, old, part(now, at, end).Value)
			}
			at = end
		}
	}
}
