package ntfs

import (
	"context"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"cairn/guest/filesystem"
)

// FS is one NTFS. It implements filesystem.Reader and filesystem.FreeSpace.
//
// It does not implement filesystem.InodeRecords: Windows logs changes of an
// index and of its directory's times apart, and may write the one long before
// the other.
type FS struct {
	image   io.ReaderAt
	size    int64 // bytes of image
	cluster int64 // bytes
	geometry
	clusters int64

	mft     *stream
	records recordCache
	units   unitCache
	streams atomic.Uint64 // numbers of streams, for the cache of units
	upcase  func() []uint16
	free    func() int64 // bytes
	label   string
	dirty   string // why the volume may not be consistent; "" when it is clean

	notes filesystem.Notes
}

var (
	_ filesystem.Reader    = (*FS)(nil)
	_ filesystem.FreeSpace = (*FS)(nil)
)

// Open reads the boot sector and the MFT's own record of the NTFS that fills
// the first size bytes of r. The error wraps ErrCorrupt when there is none.
func Open(ctx context.Context, r io.ReaderAt, size int64) (*FS, error) {
	fs := &FS{image: r, size: size}
	if err := fs.open(ctx); err != nil {
		return nil, fmt.Errorf("ntfs: %w", err)
	}
	return fs, nil
}

func (fs *FS) open(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := fs.readBoot(); err != nil {
		return err
	}
	fs.cluster, fs.clusters = fs.geometry.cluster, fs.geometry.clusters
	if need := fs.sectors * fs.sectorSize; need > fs.size {
		fs.note("the image ends %d bytes before the volume does; what lies there cannot be read", need-fs.size)
	}
	if err := fs.openMFT(ctx); err != nil {
		return err
	}
	if _, err := fs.node(ctx, rootFile); err != nil {
		return fmt.Errorf("the root directory: %w", err)
	}
	fs.readVolume(ctx)
	fs.upcase = sync.OnceValue(fs.readUpcase)
	fs.free = sync.OnceValue(fs.countFree)
	return ctx.Err()
}

// readVolume reads what $Volume says, and whether the log is empty.
func (fs *FS) readVolume(ctx context.Context) {
	n, err := fs.node(ctx, volumeFile)
	if err != nil {
		fs.dirty = fmt.Sprintf("$Volume cannot be read: %v", err)
		fs.note("%s", fs.dirty)
		return
	}
	fs.label = text(string(n.value(typeVolumeName, 0)))
	switch info := n.value(typeVolumeInfo, 12); {
	case info == nil:
		fs.dirty = "$Volume says nothing of its state"
	case le.Uint16(info[10:])&1 != 0:
		fs.dirty = "Windows has marked the volume for chkdsk"
	default:
		fs.dirty = fs.logState(ctx)
	}
	if fs.dirty != "" {
		fs.note("%s: the log is not replayed, and the newest changes may be missing or half done", fs.dirty)
	}
}

// logState says whether $LogFile holds changes that the volume lacks; "" when
// it does not (ntfs-3g's ntfs_is_logfile_clean has the rules: a log that was
// never used, or whose restart area has no client, or a flag that says so).
func (fs *FS) logState(ctx context.Context) string {
	n, err := fs.node(ctx, logFile)
	if err != nil {
		return "the log cannot be read"
	}
	parts := n.find(typeData, "")
	if len(parts) == 0 {
		return "the log has no contents"
	}
	s, err := fs.streamOf(parts)
	if err != nil {
		return "the log cannot be read"
	}
	const page = 4096
	newest, clean, found := uint64(0), false, false
	for at := int64(0); at < 2*page; at += page {
		b := make([]byte, page)
		if s.size < at+page || s.fill(b, at) != nil {
			return "the log cannot be read"
		}
		if at == 0 && slices.IndexFunc(b, func(c byte) bool { return c != 0xFF }) < 0 {
			return "" // never used
		}
		if fixup(b, "RSTR") != nil {
			continue
		}
		area := int(le.Uint16(b[24:]))
		if area < 30 || area+16 > page {
			continue
		}
		a := b[area:]
		if lsn := le.Uint64(a); !found || lsn > newest {
			newest, found = lsn, true
			clean = le.Uint16(a[12:]) == 0xFFFF || le.Uint16(a[14:])&2 != 0
		}
	}
	switch {
	case !found:
		return "the log has no restart area"
	case !clean:
		return "the volume was in use"
	}
	return ""
}

func (fs *FS) note(format string, args ...any) { fs.notes.Add(format, args...) }

// Info describes the filesystem. The UUID is the serial number.
func (fs *FS) Info() filesystem.Info {
	notes := fs.notes.List()
	return filesystem.Info{
		Type: "ntfs", Label: fs.label, UUID: fmt.Sprintf("%016x", fs.serial), BlockSize: fs.cluster,
		TotalBytes: fs.clusters * fs.cluster, FreeBytes: fs.free(), Inodes: uint64(fs.mft.size) / uint64(fs.geometry.record), Notes: notes,
	}
}

// Root is file 5.
func (fs *FS) Root() filesystem.Ino { return rootFile }

// bitmap gives the contents of $Bitmap: one bit for each cluster.
func (fs *FS) bitmap(ctx context.Context) (*stream, error) {
	n, err := fs.node(ctx, bitmapFile)
	if err != nil {
		return nil, fmt.Errorf("$Bitmap: %w", err)
	}
	parts := n.find(typeData, "")
	if len(parts) == 0 {
		return nil, fmt.Errorf("$Bitmap: %w", corrupt("it has no contents"))
	}
	s, err := fs.streamOf(parts)
	if err == nil && s.size < (fs.clusters+7)/8 {
		err = corrupt("%d bytes for %d clusters", s.size, fs.clusters)
	}
	if err != nil {
		return nil, fmt.Errorf("$Bitmap: %w", err)
	}
	return s, nil
}

func (fs *FS) countFree() int64 {
	s, err := fs.bitmap(context.Background())
	if err != nil {
		return 0
	}
	free := int64(0)
	b := make([]byte, 256<<10)
	for at := int64(0); at*8 < fs.clusters; at += int64(len(b)) {
		b = b[:min(int64(len(b)), (fs.clusters+7)/8-at)]
		if s.fill(b, at) != nil {
			return 0
		}
		for i, c := range b {
			if left := fs.clusters - (at+int64(i))*8; left < 8 {
				c |= byte(0xFF << left)
			}
			free += int64(8 - bits.OnesCount8(c))
		}
	}
	return free * fs.cluster
}

// Free gives the clusters that $Bitmap calls free, on a volume that is clean:
// elsewhere the log could bring some of them back.
func (fs *FS) Free(ctx context.Context, fn func(start, end int64) error) error {
	if fs.dirty != "" {
		return fmt.Errorf("ntfs: free space is not told: %s", fs.dirty)
	}
	s, err := fs.bitmap(ctx)
	if err != nil {
		return fmt.Errorf("ntfs: %w", err)
	}
	limit := min(fs.size, fs.clusters*fs.cluster)
	from := int64(-1) // where the range that is being gathered begins
	give := func(to int64) error {
		if from < 0 {
			return nil
		}
		a, b := from*fs.cluster, min(to*fs.cluster, limit)
		from = -1
		if a >= b {
			return nil
		}
		return fn(a, b)
	}
	b := make([]byte, 64<<10)
	for at := int64(0); at*8 < fs.clusters; at += int64(len(b)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		b = b[:min(int64(len(b)), (fs.clusters+7)/8-at)]
		if err := s.fill(b, at); err != nil {
			return fmt.Errorf("ntfs: $Bitmap: %w", err)
		}
		for i, c := range b {
			first := (at + int64(i)) * 8
			if c == 0 && from >= 0 || c == 0xFF && from < 0 {
				continue
			}
			for bit := range min(8, fs.clusters-first) {
				used := c>>bit&1 != 0
				if !used && from < 0 {
					from = first + bit
				} else if used {
					if err := give(first + bit); err != nil {
						return err
					}
				}
			}
		}
	}
	return give(fs.clusters)
}
