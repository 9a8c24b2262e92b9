package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// What mkcorpus.sh makes.
const (
	clusterSize     = 64 << 10 // the unit of day1.dirty
	partitionOffset = 2 << 20  // of the guest's ext4 filesystem
	smallFiles      = 50000    // below /srv/small
	dirtyLimit      = 1 << 20  // clusters: 64 GiB, far above the corpus's disks
)

// corpus is what is backed up.
type corpus struct {
	base, day, clone string  // disk images
	dirty            []int64 // clusters that differ between base and day, ascending
}

// openCorpus makes the corpus when it is not there yet.
func openCorpus(ctx context.Context, dir, script string) (corpus, error) {
	c := corpus{base: filepath.Join(dir, "base.raw"), day: filepath.Join(dir, "day1.raw"), clone: filepath.Join(dir, "clone.raw")}
	list := filepath.Join(dir, "day1.dirty")
	if _, err := os.Stat(list); errors.Is(err, iofs.ErrNotExist) {
		if script == "" {
			return c, fmt.Errorf("no corpus in %s, and no mkcorpus.sh to make it: give -mkcorpus", dir)
		}
		if _, err := run(ctx, command{path: "bash", args: []string{script, dir}}); err != nil {
			return c, fmt.Errorf("make the corpus: %w", err)
		}
	}
	f, err := os.Open(list)
	if err != nil {
		return c, err
	}
	defer f.Close()
	info, err := os.Stat(c.base)
	if err != nil {
		return c, err
	}
	if c.dirty, err = parseDirty(f, info.Size()); err != nil {
		return c, fmt.Errorf("%s: %w", list, err)
	}
	return c, nil
}

// parseDirty reads one offset a line: multiples of the cluster size, ascending, below size.
func parseDirty(r io.Reader, size int64) ([]int64, error) {
	var out []int64
	for lines := bufio.NewScanner(r); ; {
		if !lines.Scan() {
			if err := lines.Err(); err != nil {
				return nil, err
			}
			break
		}
		n, err := strconv.ParseInt(lines.Text(), 10, 64)
		switch {
		case err != nil:
			return nil, err
		case n < 0 || n%clusterSize != 0 || n+clusterSize > size:
			return nil, fmt.Errorf("offset %d is no cluster of a disk of %d bytes", n, size)
		case len(out) > 0 && n <= out[len(out)-1]:
			return nil, fmt.Errorf("offset %d does not ascend", n)
		case len(out) == dirtyLimit:
			return nil, fmt.Errorf("more than %d clusters", dirtyLimit)
		}
		out = append(out, n)
	}
	if len(out) == 0 {
		return nil, errors.New("no cluster listed")
	}
	return out, nil
}

func (c corpus) dirtyBytes() int64 { return int64(len(c.dirty)) * clusterSize }
