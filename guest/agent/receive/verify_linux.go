package receive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"cairn/guest"
	"cairn/guest/archive"
)

// How much is written before it is read back: enough that files are synced many
// at a time, and not so much that the guest's memory fills with what is written.
const (
	verifyBytes = 32 << 20
	verifyFiles = 256
)

// errDiffers says that a file read back is not what the host had read.
var errDiffers = errors.New("what was written differs from what the host had read when it is read back")

// file is a file that was, or is still being, written. The writer hands it over
// to the verifier, and does not touch what the verifier uses.
type file struct {
	f     *os.File
	shown string
	size  int64

	// The verifier's.
	hasher   *archive.Hasher
	verified int64 // so much was read back
}

// piece says that a file was written up to an offset.
type piece struct {
	file   *file
	to     int64
	end    bool // the file is complete
	drop   bool // the file is given up
	digest archive.Digest
}

// verifier syncs files, drops them from memory, reads them again and compares.
type verifier struct {
	report *report
	direct *direct
	buffer []byte
	spare  []*archive.Hasher
	ended  []piece
	bytes  int64 // in ended, not read back
}

// run takes pieces until there are no more. It closes every file that it was
// given. The error ends the put.
func (v *verifier) run(ctx context.Context, pieces <-chan piece) error {
	var failed error
	var open *file // given in part
	for p := range pieces {
		if failed == nil {
			failed = ctx.Err()
		}
		open = nil
		switch {
		case p.drop:
			p.file.f.Close()
			v.recycle(p.file)
		case p.end:
			v.ended = append(v.ended, p)
			v.bytes += p.to - p.file.verified
		default:
			open = p.file
			if failed == nil {
				failed = v.part(ctx, p)
			}
		}
		if failed != nil || v.bytes >= verifyBytes || len(v.ended) >= verifyFiles {
			failed = errors.Join(failed, v.finish(ctx, failed != nil))
		}
	}
	failed = errors.Join(failed, v.finish(ctx, failed != nil))
	if open != nil {
		open.f.Close()
	}
	return failed
}

// part reads back the beginning of a large file while the rest is written.
func (v *verifier) part(ctx context.Context, p piece) error {
	to := p.to &^ (4096 - 1) // the page that is written to stays in memory
	fd, from := int(p.file.f.Fd()), p.file.verified
	err := unix.SyncFileRange(fd, from, to-from, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESPIPE) {
		err = unix.Fdatasync(fd)
	}
	if err != nil {
		return failure(p.file.shown, fmt.Errorf("write to the disk: %w", err))
	}
	if err := p.file.forget(to); err != nil {
		return err
	}
	return v.readBack(ctx, p.file, to)
}

// finish ends the files that are complete. With drop they are only closed.
func (v *verifier) finish(ctx context.Context, drop bool) (err error) {
	defer func() {
		for _, p := range v.ended {
			p.file.f.Close()
		}
		v.ended, v.bytes = v.ended[:0], 0
	}()
	if drop || len(v.ended) == 0 {
		return nil
	}
	if err := v.sync(); err != nil {
		return err
	}
	for _, p := range v.ended {
		if err := p.file.forget(p.file.size); err != nil {
			return err
		}
		// So that the disk has something to do while the first ones are read.
		_ = unix.Fadvise(int(p.file.f.Fd()), p.file.verified, p.to-p.file.verified, unix.FADV_WILLNEED)
	}
	for _, p := range v.ended {
		if err := v.readBack(ctx, p.file, p.file.size); err != nil {
			return err
		}
		if v.hasher(p.file).Sum() != p.digest {
			v.report.lost(p.file.shown, errDiffers)
		} else {
			v.report.count(func(r *guest.PutResult) { r.Verified++ })
		}
		v.recycle(p.file)
	}
	return nil
}

// recycle keeps a hasher for another file.
func (v *verifier) recycle(f *file) {
	if f.hasher != nil {
		v.spare = append(v.spare, f.hasher)
		f.hasher = nil
	}
}

// sync brings all files that are complete to the disk: with one call for each
// filesystem when they are many.
func (v *verifier) sync() error {
	const few = 8
	if len(v.ended) <= few {
		for _, p := range v.ended {
			if err := p.file.f.Sync(); err != nil {
				return failure(p.file.shown, fmt.Errorf("write to the disk: %w", err))
			}
		}
		return nil
	}
	synced := map[uint64]bool{}
	for _, p := range v.ended {
		fd := int(p.file.f.Fd())
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if synced[st.Dev] {
			continue
		}
		synced[st.Dev] = true
		if err := unix.Syncfs(fd); err != nil {
			return failure(p.file.shown, fmt.Errorf("write its filesystem to the disk: %w", err))
		}
	}
	return nil
}

func (v *verifier) hasher(f *file) *archive.Hasher {
	if f.hasher != nil {
		return f.hasher
	}
	if n := len(v.spare); n > 0 {
		f.hasher = v.spare[n-1]
		v.spare = v.spare[:n-1]
		f.hasher.Reset()
	} else {
		f.hasher = archive.NewHasher()
	}
	return f.hasher
}

// forget drops what was written, up to an offset, from the guest's memory: what
// is read then comes from the disk.
func (f *file) forget(to int64) error {
	if err := unix.Fadvise(int(f.f.Fd()), f.verified, to-f.verified, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("%s: drop it from memory: %w", f.shown, err)
	}
	return nil
}

// readBack reads what a file has on the disk up to an offset. Holes are not
// read.
func (v *verifier) readBack(ctx context.Context, f *file, to int64) error {
	fd, h := int(f.f.Fd()), v.hasher(f)
	from := f.verified
	v.direct.use(f, unix.O_RDONLY)
	defer v.direct.release()
	for at := from; at < to; {
		start, end, err := nextData(fd, at, to)
		if err != nil {
			return fmt.Errorf("%s: read it back: %w", f.shown, err)
		}
		for at = start; at < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			p := v.direct.read(int(min(directSize, end-at)), at)
			if len(p) == 0 {
				n, err := f.f.ReadAt(v.buffer[:min(int64(len(v.buffer)), end-at)], at)
				if n == 0 {
					return fmt.Errorf("%s: read it back at byte %d: %w", f.shown, at, err)
				}
				p = v.buffer[:n]
			}
			h.Add(at, p)
			at += int64(len(p))
		}
	}
	f.verified = to
	// What was read back is of no use in the guest's memory.
	_ = unix.Fadvise(fd, from, to-from, unix.FADV_DONTNEED)
	return nil
}

// nextData gives the first range of data from an offset on, within limit.
func nextData(fd int, at, limit int64) (start, end int64, err error) {
	start, err = unix.Seek(fd, at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return limit, limit, nil
	case errors.Is(err, unix.EINVAL):
		return at, limit, nil // a filesystem that knows no holes
	case err != nil:
		return 0, 0, err
	}
	end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, err
	}
	if end <= start && start < limit {
		return 0, 0, io.ErrUnexpectedEOF
	}
	return min(start, limit), min(end, limit), nil
}
