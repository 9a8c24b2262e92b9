package ntfs

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"cairn/guest/filesystem"
)

// File attributes of $STANDARD_INFORMATION (MS-FSCC section 2.6).
const (
	dosReadOnly = 0x1
	dosHidden   = 0x2
	dosSystem   = 0x4
	dosReparse  = 0x400
)

// Namespaces of a name.
const nameDOS = 2

// time turns 100 ns since 1601 into a Time.
func fileTime(v uint64) filesystem.Time {
	const second, epoch = 10_000_000, 11_644_473_600
	return filesystem.Time{Sec: int64(v/second) - epoch, Nsec: uint32(v % second * 100)}
}

// Attr gives a file's attributes.
func (fs *FS) Attr(ctx context.Context, ino filesystem.Ino) (filesystem.Attr, error) {
	n, err := fs.file(ctx, ino)
	if err != nil {
		return filesystem.Attr{}, err
	}
	a := filesystem.Attr{Ino: ino, Nlink: 1}
	std := n.value(typeStandard, 36)
	if std == nil {
		return a, fmt.Errorf("file %d: %w", ino, corrupt("no $STANDARD_INFORMATION"))
	}
	a.Btime, a.Mtime, a.Ctime, a.Atime = fileTime(le.Uint64(std)), fileTime(le.Uint64(std[8:])), fileTime(le.Uint64(std[16:])), fileTime(le.Uint64(std[24:]))
	s, err := fs.special(ctx, n)
	if err != nil {
		return a, fmt.Errorf("file %d: %w", ino, err)
	}
	a.Mode, a.Major, a.Minor = s.mode, s.major, s.minor
	switch {
	case s.mode == filesystem.ModeDir:
		a.Mode |= 0o755
		if parts := n.find(typeIndexAlloc, indexName); len(parts) > 0 {
			a.Size = parts[0].size
		}
		return a, nil
	case s.mode == filesystem.ModeSymlink:
		a.Mode |= 0o777
		target, err := fs.target(ctx, n, s)
		if err != nil {
			return a, fmt.Errorf("file %d: %w", ino, err)
		}
		a.Size = int64(len(target))
	case le.Uint32(std[32:])&dosReadOnly != 0:
		a.Mode |= 0o444
	default:
		a.Mode |= 0o644
	}
	if links := n.links(); links > 0 {
		a.Nlink = links
	}
	if parts := n.find(typeData, ""); len(parts) > 0 && s.mode == filesystem.ModeRegular {
		if !parts[0].hasSizes {
			return a, fmt.Errorf("file %d: %w", ino, corrupt("the first part of its contents is missing"))
		}
		a.Size = parts[0].size
		if parts[0].allocated > 0 && parts[0].allocated <= fs.clusters*fs.cluster {
			a.Blocks = parts[0].allocated / 512
		}
	}
	return a, nil
}

// links counts a file's names but for 8.3 names.
func (n *node) links() uint32 {
	count := uint32(0)
	for _, a := range n.attributes {
		if a.kind == typeFileName && len(a.value) >= 66 && a.value[65] != nameDOS {
			count++
		}
	}
	return count
}

// Open gives the contents of a regular file.
func (fs *FS) Open(ctx context.Context, ino filesystem.Ino) (filesystem.File, error) {
	n, err := fs.file(ctx, ino)
	if err != nil {
		return nil, err
	}
	s, err := fs.special(ctx, n)
	switch {
	case err != nil:
	case s.mode == filesystem.ModeDir:
		err = filesystem.ErrIsDir
	case s.mode != filesystem.ModeRegular:
		err = fmt.Errorf("not a regular file: %w", filesystem.ErrUnsupported)
	case s.why != nil:
		err = s.why
	}
	if err != nil {
		return nil, fmt.Errorf("file %d: %w", ino, err)
	}
	parts := n.find(typeData, "")
	if len(parts) == 0 {
		return &stream{fs: fs}, nil
	}
	if parts[0].flags&dataEncrypted != 0 {
		return nil, fmt.Errorf("file %d: %w (EFS)", ino, filesystem.ErrEncrypted)
	}
	f, err := fs.streamOf(parts)
	if err != nil {
		return nil, fmt.Errorf("file %d: %w", ino, err)
	}
	return f, nil
}

// maxStream bounds a stream that is shown as an attribute, as Linux does.
const maxStream = 64 << 10

// ownPrefix begins the names of the streams in which ntfs-3g keeps attributes
// of other kinds: "ntfs-3g.security.selinux".
const ownPrefix = "ntfs-3g."

// Xattrs gives a file's alternate data streams as user.NAME, as ntfs-3g does;
// links have none. Larger ones than Linux has attributes are left out, with a note.
func (fs *FS) Xattrs(ctx context.Context, ino filesystem.Ino) ([]filesystem.Xattr, error) {
	n, err := fs.file(ctx, ino)
	if err != nil {
		return nil, err
	}
	if s, err := fs.special(ctx, n); err != nil || s.mode == filesystem.ModeSymlink {
		return nil, err
	}
	var list []filesystem.Xattr
	seen := map[string]bool{"": true}
	for _, a := range n.attributes {
		if a.kind != typeData || seen[a.name] {
			continue
		}
		seen[a.name] = true
		parts := n.find(typeData, a.name)
		s, err := fs.streamOf(parts)
		if err != nil {
			return nil, fmt.Errorf("file %d: stream %q: %w", ino, text(a.name), err)
		}
		if s.size > maxStream {
			fs.note("streams of more than %d bytes are not shown", maxStream)
			continue
		}
		if parts[0].flags&dataEncrypted != 0 {
			fs.note("encrypted streams are not shown")
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b := make([]byte, s.size)
		if err := s.fill(b, 0); err != nil {
			return nil, fmt.Errorf("file %d: stream %q: %w", ino, text(a.name), err)
		}
		name := text(a.name)
		if own, ok := strings.CutPrefix(name, ownPrefix); ok {
			name = own
		} else {
			name = "user." + name
		}
		if strings.Contains(name, "\x00") {
			continue
		}
		list = append(list, filesystem.Xattr{Name: name, Value: b})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list, nil
}
