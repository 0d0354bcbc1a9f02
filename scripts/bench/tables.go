// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"os"
	"strconv"
	"text/tabwriter"
	"time"
)

// tableDisk is the disk of the tables: four times the default cache.
const tableDisk = 256 << 20

// objectSizeTable prints what the size of objects does to each kind of work:
// the table of the manual's section PERFORMANCE.
func (s *suite) objectSizeTable() error {
	for _, cloud := range []string{"real", "dev"} {
		fmt.Printf("%s, %d connections, cache 64M:\n\n", s.cloudName(cloud), s.conns)
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, "object\tuntar\trequests\tseq write\tseq read\trand read\trand write\twrite+flush\t")
		fmt.Fprintln(w, "size\ts\t\tMB/s\tMB/s\tIOPS\tIOPS\tIOPS\t")
		for size := int64(64 << 10); size <= 8<<20; size *= 2 {
			row, err := s.objectSizeRow(cloud, size)
			if err != nil {
				return fmt.Errorf("%s objects, %s: %w", sizeName(size), s.cloudName(cloud), err)
			}
			fmt.Fprintf(w, "%s\t%.1f\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t\n", sizeName(size),
				row.tree.took.Seconds(), row.tree.requests.total(), row.write, row.read, row.randRead, row.randWrite, row.flush)
			s.logf("%s %s: %+v", cloud, sizeName(size), row)
		}
		w.Flush()
		fmt.Println()
	}
	fmt.Print(`untar: mkfs.ext4, mount, untar a source tree of 26 MB or so, sync, umount, close, on a new disk
seq:   256 MiB in requests of 1 MiB; writes with the flush at the end
rand:  4 KiB over 256 MiB, queue depth 16; 4,000 writes with the flush at the end
write+flush: 4 KiB at random, each flushed, queue depth 1
`)
	return nil
}

type objectSizeRow struct {
	tree                                    tree
	write, read, randRead, randWrite, flush float64
}

func (s *suite) objectSizeRow(cloud string, size int64) (row objectSizeRow, err error) {
	if row.tree, err = s.tree(cloud, size); err != nil {
		return row, err
	}
	v, err := s.empty(cloud, size, tableDisk)
	if err != nil {
		return row, err
	}
	// The first write makes the objects that the others work on.
	if row.write, err = s.writeAll(v); err != nil {
		return row, err
	}
	if row.read, err = s.readCold(v); err != nil {
		return row, err
	}
	if row.randRead, err = s.once(v, fioJob{rw: "randread", bs: 4096, depth: 16, runtime: s.short(3 * time.Second)}); err != nil {
		return row, err
	}
	if row.randWrite, err = s.once(v, fioJob{rw: "randwrite", bs: 4096, depth: 16, extra: []string{"--number_ios=4000", "--end_fsync=1"}}); err != nil {
		return row, err
	}
	if row.flush, err = s.once(v, fioJob{rw: "randwrite", bs: 4096, depth: 1, runtime: s.short(3 * time.Second), extra: []string{"--fsync=1"}}); err != nil {
		return row, err
	}
	return row, v.remove()
}

// once does a job on a disk of which nothing is cached, and returns its IOPS.
func (s *suite) once(v *disk, j fioJob, params ...string) (float64, error) {
	n, err := s.serve(v, params...)
	if err != nil {
		return 0, err
	}
	j.uri = n.uri
	if j.size == 0 {
		j.size = v.size()
	}
	f, err := s.fio(j)
	if err != nil {
		return 0, err
	}
	return f.iops(), n.stop()
}

// sweep prints what a parameter does, to argue its default.
func (s *suite) sweep(what string) error {
	switch what {
	case "connections":
		return s.sweepConnections()
	case "readahead":
		return s.sweepReadahead()
	case "writeback-age":
		return s.sweepAge()
	}
	return fmt.Errorf("there is no sweep of %q", what)
}

func (s *suite) sweepConnections() error {
	for _, cloud := range []string{"real", "dev"} {
		for _, size := range []int64{64 << 10, 1 << 20} {
			v, err := s.filled(cloud, size, s.bulk(cloud, size))
			if err != nil {
				return err
			}
			fmt.Printf("%s, %s objects, MB/s (ours/net/http); random reads of 4 KiB a second at queue depth 32:\n\n", s.cloudName(cloud), sizeName(size))
			w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
			fmt.Fprintln(w, "connections\tread\tlimit\twrite\tlimit\trand read\t")
			for conns := 1; conns <= 64; conns *= 2 {
				param := "connections=" + strconv.Itoa(conns)
				limit := v.cloud.limit.withConns(conns)
				readLimit, err := limit.readAll(v)
				if err != nil {
					return err
				}
				read, err := s.readCold(v, param)
				if err != nil {
					return err
				}
				writeLimit, err := limit.writeAll(v)
				if err != nil {
					return err
				}
				write, err := s.writeAll(v, param)
				if err != nil {
					return err
				}
				// A small cache, or else what it holds of the disk is measured.
				random, err := s.once(v, fioJob{rw: "randread", bs: 4096, depth: 32, runtime: s.short(2 * time.Second)},
					param, "readahead=0", fmt.Sprintf("cache=%d", max(4<<20, 8*size)))
				if err != nil {
					return err
				}
				fmt.Fprintf(w, "%d\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t\n", conns, read, readLimit, write, writeLimit, random)
			}
			w.Flush()
			fmt.Println()
		}
	}
	return nil
}

func (s *suite) sweepReadahead() error {
	for _, cloud := range []string{"real", "dev"} {
		fmt.Printf("%s: sequential read, cold, MB/s with 1 MiB requests at queue depth 16, and with 64 KiB requests one at a time:\n\n", s.cloudName(cloud))
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, "readahead\t64K deep\tone\t1M deep\tone\t4M deep\tone\t")
		for _, ahead := range []int64{0, 1 << 20, 2 << 20, 4 << 20, 8 << 20, 16 << 20, 32 << 20, -1} {
			name, param := sizeName(ahead), []string{"readahead=" + strconv.FormatInt(ahead, 10)}
			if ahead < 0 {
				name, param = "default", nil
			}
			fmt.Fprintf(w, "%s\t", name)
			for _, size := range []int64{64 << 10, 1 << 20, 4 << 20} {
				v, err := s.filled(cloud, size, s.bulk(cloud, size))
				if err != nil {
					return err
				}
				deep, err := s.readCold(v, param...)
				if err != nil {
					return err
				}
				one, err := s.once(v, fioJob{rw: "read", bs: 64 << 10, depth: 1, size: min(v.size(), 64<<20)}, param...)
				if err != nil {
					return err
				}
				fmt.Fprintf(w, "%.0f\t%.0f\t", deep, one*65536/1e6)
			}
			fmt.Fprintln(w)
		}
		w.Flush()
		fmt.Println()
	}
	return nil
}

func (s *suite) sweepAge() error {
	fmt.Printf("%s, %s objects: a slow writer (4 KiB at random in 8 MiB, 200 a second, 10 s, no flush), and the untar job:\n\n", s.cloudName("dev"), sizeName(s.object))
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "writeback-age s\tPUTs\tMB written a MB\tuntar s\trequests\t")
	for _, age := range []float64{0.1, 0.5, 1, 2, 5, 10, 30} {
		param := fmt.Sprintf("writeback-age=%g", age)
		v, err := s.filled("dev", s.object, 8<<20)
		if err != nil {
			return err
		}
		before, err := v.cloud.counts(v.container)
		if err != nil {
			return err
		}
		n, err := s.serve(v, param)
		if err != nil {
			return err
		}
		f, err := s.fio(fioJob{uri: n.uri, rw: "randwrite", bs: 4096, depth: 1, size: v.size(), runtime: s.short(10 * time.Second), extra: []string{"--rate_iops=200"}})
		if err != nil {
			return err
		}
		if err := n.stop(); err != nil {
			return err
		}
		after, err := v.cloud.counts(v.container)
		if err != nil {
			return err
		}
		t, err := s.tree("dev", s.object, param)
		if err != nil {
			return err
		}
		puts := after.minus(before)["PUT"]
		fmt.Fprintf(w, "%g\t%d\t%.1f\t%.1f\t%d\t\n", age, puts, float64(puts*s.object)/float64(f.bytes), t.took.Seconds(), t.requests.total())
	}
	w.Flush()
	return nil
}
