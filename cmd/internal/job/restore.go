package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"

	"cairn/index/restorepoint"
)

// Formats of a restored disk.
const (
	FormatRaw   = "raw"
	FormatQCOW2 = "qcow2"
)

// restorePiece is how much one worker reads and writes at once, in bytes.
const restorePiece = 2 << 20

// RestoreOptions says how a disk is written.
type RestoreOptions struct {
	Format    string // FormatRaw or FormatQCOW2
	Overwrite bool   // replace a file that is there
	Sync      bool   // return when the file is on the disk, not only in memory
}

// RestoreDisk writes a disk's image to a new file, holes kept. The file has
// its name only when it is whole. It gives the bytes written.
func RestoreDisk(ctx context.Context, img restorepoint.Image, name, path string, o RestoreOptions, prog Progress) (written int64, err error) {
	if _, err := os.Lstat(path); err == nil && !o.Overwrite {
		return 0, fmt.Errorf("%s exists already: name another file, or use --overwrite", path)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", path)
	}
	// A name of its own: two restores to one path must not write into one
	// file, nor anybody's link be followed.
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".cairn-partial-*")
	if err != nil {
		return 0, err
	}
	tmp := f.Name()
	defer func() {
		if c := f.Close(); err == nil {
			err = c
		}
		if err != nil {
			err = errors.Join(err, os.Remove(tmp))
		}
	}()
	if err := f.Truncate(img.Size()); err != nil {
		return 0, fmt.Errorf("%s: %w", tmp, err)
	}
	add, end := prog("restoring "+name, img.Size())
	defer end()
	to := openDirect(f, tmp)
	written, err = copyImage(ctx, to, img, add)
	if err = errors.Join(err, to.Close()); err != nil {
		return written, err
	}
	if o.Sync {
		if err := f.Sync(); err != nil {
			return written, fmt.Errorf("%s: %w", tmp, err)
		}
	}
	if o.Format == FormatQCOW2 {
		return written, convert(ctx, tmp, path)
	}
	return written, os.Rename(tmp, path)
}

// copyImage copies what is not a hole, in pieces, in parallel.
func copyImage(ctx context.Context, to io.WriterAt, img restorepoint.Image, add func(int64)) (int64, error) {
	type span struct{ off, n int64 }
	spans := make(chan span)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(spans)
		for at := int64(0); ; {
			start, end, err := img.NextData(at)
			if errors.Is(err, io.EOF) {
				add(img.Size() - at)
				return nil
			}
			if err != nil {
				return err
			}
			add(start - at)
			// Pieces end on multiples of their size, so that frames, which
			// lie in disk order, are rarely cut.
			for at = start; at < end; {
				n := min(restorePiece-at%restorePiece, end-at)
				select {
				case spans <- span{at, n}:
				case <-gctx.Done():
					return gctx.Err()
				}
				at += n
			}
		}
	})
	// Twice the processors: while one half waits for the disk the other decodes.
	counts := make([]int64, 2*runtime.GOMAXPROCS(0))
	for i := range counts {
		g.Go(func() error {
			buf := alignedBuffer(restorePiece)
			for s := range spans {
				if err := gctx.Err(); err != nil {
					return err
				}
				p := buf[:s.n]
				if _, err := img.ReadAt(p, s.off); err != nil && !errors.Is(err, io.EOF) {
					return fmt.Errorf("read at %d: %w", s.off, err)
				}
				if _, err := to.WriteAt(p, s.off); err != nil {
					return fmt.Errorf("write at %d: %w", s.off, err)
				}
				counts[i] += s.n
				add(s.n)
			}
			return nil
		})
	}
	err := g.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	var sum int64
	for _, n := range counts {
		sum += n
	}
	return sum, err
}

// convert makes a qcow2 of a raw file beside it and removes the raw one.
func convert(ctx context.Context, raw, path string) error {
	part := raw + ".qcow2"
	out, err := exec.CommandContext(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, part).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("qcow2 needs qemu-img: apt install qemu-utils, or restore with --format raw")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("qemu-img convert: %w: %s", err, out), os.Remove(part))
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	return os.Remove(raw)
}
