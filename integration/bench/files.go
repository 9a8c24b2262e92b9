package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const (
	blockSize  = 4 << 10
	bufferSize = 1 << 20
	seekData   = 3 // lseek(2): SEEK_DATA
	seekHole   = 4 // lseek(2): SEEK_HOLE
	fadvRandom = 1 // posix_fadvise(2): POSIX_FADV_RANDOM
)

// extent is a stretch of a file that holds data.
type extent struct{ offset, length int64 }

// dataExtents lists where a sparse file holds data.
func dataExtents(f *os.File) ([]extent, error) {
	var out []extent
	var at int64
	for {
		start, err := f.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		end, err := f.Seek(start, seekHole)
		if err != nil {
			return nil, err
		}
		out = append(out, extent{start, end - start})
		at = end
	}
}

// randomOffsets picks n block offsets inside the extents, each block as likely as any other.
func randomOffsets(extents []extent, n int, seed int64) []int64 {
	var ends []int64 // running number of blocks
	var total int64
	for _, e := range extents {
		total += e.length / blockSize
		ends = append(ends, total)
	}
	if total == 0 {
		return nil
	}
	r := rand.New(rand.NewSource(seed))
	out := make([]int64, n)
	for i := range out {
		block := r.Int63n(total)
		at, _ := slices.BinarySearch(ends, block+1)
		before := int64(0)
		if at > 0 {
			before = ends[at-1]
		}
		out[i] = (extents[at].offset+blockSize-1)/blockSize*blockSize + (block-before)*blockSize
	}
	return out
}

// warm reads a file's data once, so that it lies in the page cache.
func warm(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	extents, err := dataExtents(f)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	buf := make([]byte, bufferSize)
	for _, e := range extents {
		_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{io.NewSectionReader(f, e.offset, e.length)}, buf)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// readSequential reads a whole file once, in order, 1 MiB at a time.
func readSequential(path string) (values, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, bufferSize)
	start := time.Now()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
	if err != nil {
		return nil, err
	}
	took := time.Since(start).Seconds()
	return values{seqMBs: float64(n) / 1e6 / took}, nil
}

// readRandom reads 4 KiB at each offset, one after the other, for at most the budget.
func readRandom(path string, offsets []int64, budget time.Duration) (values, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Without the advice the kernel reads ahead, which measures something else. It is only advice: no error matters.
	_, _, _ = syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, fadvRandom, 0, 0)
	buf := make([]byte, blockSize)
	var took []float64
	begin := time.Now()
	for _, offset := range offsets {
		start := time.Now()
		if _, err := f.ReadAt(buf, offset); err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(start).Nanoseconds())/1e6)
		if time.Since(begin) > budget {
			break
		}
	}
	if len(took) == 0 {
		return nil, fmt.Errorf("%s: no offset to read", path)
	}
	slices.Sort(took)
	return values{p50Ms: percentile(took, 50), p99Ms: percentile(took, 99)}, nil
}

// sameContent compares two files byte by byte.
func sameContent(a, b string) (bool, error) {
	fa, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	bufA, bufB := make([]byte, bufferSize), make([]byte, bufferSize)
	for {
		na, errA := io.ReadFull(fa, bufA)
		nb, errB := io.ReadFull(fb, bufB)
		if !bytes.Equal(bufA[:na], bufB[:nb]) {
			return false, nil
		}
		endA, endB := ended(errA), ended(errB)
		switch {
		case errA != nil && !endA:
			return false, errA
		case errB != nil && !endB:
			return false, errB
		case endA || endB:
			return endA == endB, nil
		}
	}
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// treeBytes is the sum of the sizes of the regular files below dir.
func treeBytes(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d iofs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		sum += info.Size()
		return nil
	})
	return sum, err
}

// treeDigest is one hash over the names, modes, times and contents of the regular files below dir, and their number.
func treeDigest(dir string) (string, int, error) {
	h, files := sha256.New(), 0
	buf := make([]byte, bufferSize)
	err := filepath.WalkDir(dir, func(path string, d iofs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%q %o %d %d\n", rel, info.Mode(), info.Size(), info.ModTime().UnixNano())
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		files++
		_, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf)
		return err
	})
	return fmt.Sprintf("%x", h.Sum(nil)), files, err
}
