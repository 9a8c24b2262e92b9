package ntfs

import (
	"context"
	"fmt"
	"strings"

	"cairn/guest/filesystem"
)

// Tags of reparse points (MS-FSCC section 2.1.2.1).
const (
	tagMountPoint = 0xA0000003
	tagSymlink    = 0xA000000C
	tagDedup      = 0x80000013
	tagWOF        = 0x80000017
	tagLxSymlink  = 0xA000001D
	tagAFUnix     = 0x80000023
	tagLxFIFO     = 0x80000024
	tagLxChar     = 0x80000025
	tagLxBlock    = 0x80000026
)

const maxReparse = 16 << 10 // bytes (MS-FSCC)

// special is what a file is beyond a file or a directory.
type special struct {
	mode         uint32 // its type
	major, minor uint32
	tag          uint32 // of a reparse point
	data         []byte // of the reparse point, or an Interix link's target in UTF-16
	why          error  // why its contents cannot be read
}

// special finds out what a file is.
func (fs *FS) special(ctx context.Context, n *node) (special, error) {
	s := special{mode: filesystem.ModeRegular}
	if n.dir {
		s.mode = filesystem.ModeDir
	}
	std := n.value(typeStandard, 36)
	if std == nil {
		return s, nil
	}
	flags := le.Uint32(std[32:])
	if flags&dosReparse != 0 {
		if parts := n.find(typeReparse, ""); len(parts) > 0 {
			return s, fs.reparse(&s, parts)
		}
	}
	if flags&dosSystem != 0 && flags&dosHidden == 0 && !n.dir {
		return s, fs.interix(&s, n)
	}
	return s, nil
}

// reparse reads a reparse point. An unknown one shows what lies under it.
func (fs *FS) reparse(s *special, parts []attribute) error {
	r, err := fs.streamOf(parts)
	if err != nil {
		return fmt.Errorf("reparse point: %w", err)
	}
	if r.size < 8 || r.size > maxReparse {
		return corrupt("a reparse point of %d bytes", r.size)
	}
	b := make([]byte, r.size)
	if err := r.fill(b, 0); err != nil {
		return fmt.Errorf("reparse point: %w", err)
	}
	s.tag = le.Uint32(b)
	s.data = b[8:min(len(b), 8+int(le.Uint16(b[4:])))]
	switch s.tag {
	case tagMountPoint, tagSymlink, tagLxSymlink:
		s.mode = filesystem.ModeSymlink
	case tagAFUnix:
		s.mode = filesystem.ModeSocket
	case tagLxFIFO:
		s.mode = filesystem.ModeFIFO
	case tagLxChar:
		s.mode = filesystem.ModeChar
	case tagLxBlock:
		s.mode = filesystem.ModeBlock
	case tagWOF:
		s.why = fmt.Errorf("%w: Windows has compressed it with CompactOS", filesystem.ErrUnsupported)
	case tagDedup:
		s.why = fmt.Errorf("%w: Windows Server has deduplicated it", filesystem.ErrUnsupported)
	}
	return nil
}

// interix recognises what Services for Unix and ntfs-3g write: system files
// that are empty (a FIFO), of one byte (a socket), or begin with "Intx".
func (fs *FS) interix(s *special, n *node) error {
	parts := n.find(typeData, "")
	if len(parts) == 0 {
		return nil
	}
	const maxTarget = 4096
	switch size := parts[0].size; {
	case size == 0:
		s.mode = filesystem.ModeFIFO
		return nil
	case size == 1:
		s.mode = filesystem.ModeSocket
		return nil
	case size <= 8 || size > 8+2*maxTarget || !parts[0].hasSizes:
		return nil
	}
	r, err := fs.streamOf(parts)
	if err != nil {
		return nil // Open tells
	}
	b := make([]byte, r.size)
	if r.fill(b, 0) != nil {
		return nil
	}
	device := func(mode uint32) {
		if len(b) == 24 {
			s.mode, s.major, s.minor = mode, uint32(le.Uint64(b[8:])), uint32(le.Uint64(b[16:]))
		}
	}
	switch string(b[:8]) {
	case "IntxLNK\x01":
		s.mode, s.data = filesystem.ModeSymlink, b[8:]
	case "IntxCHR\x00":
		device(filesystem.ModeChar)
	case "IntxBLK\x00":
		device(filesystem.ModeBlock)
	}
	return nil
}

// Readlink gives the target of a link as a Linux reader can follow it.
func (fs *FS) Readlink(ctx context.Context, ino filesystem.Ino) (string, error) {
	n, err := fs.file(ctx, ino)
	if err != nil {
		return "", err
	}
	s, err := fs.special(ctx, n)
	if err == nil && s.mode != filesystem.ModeSymlink {
		err = filesystem.ErrNotSymlink
	}
	target := ""
	if err == nil {
		target, err = fs.target(ctx, n, s)
	}
	if err != nil {
		return "", fmt.Errorf("file %d: %w", ino, err)
	}
	return target, nil
}

func (fs *FS) target(ctx context.Context, n *node, s special) (string, error) {
	b := s.data
	header := 8
	switch s.tag {
	case 0:
		return text(string(b)), nil
	case tagLxSymlink:
		if len(b) < 4 {
			return "", corrupt("a link of %d bytes", len(b))
		}
		return string(b[4:]), nil
	case tagSymlink:
		header = 12
	}
	if len(b) < header {
		return "", corrupt("a link of %d bytes", len(b))
	}
	off, size := int(le.Uint16(b)), int(le.Uint16(b[2:]))
	if off+size > len(b)-header || size&1 != 0 {
		return "", corrupt("the target of a link lies outside of it")
	}
	path := text(string(b[header+off : header+off+size]))
	if s.tag == tagSymlink && le.Uint32(b[8:])&1 != 0 { // relative
		return strings.ReplaceAll(path, `\`, "/"), nil
	}
	return fs.absolute(ctx, n, path), nil
}

// absolute turns "\??\C:\Users" into a way from the link: by ".." if the volume
// has that path, else from the guest's root, where its drives are.
func (fs *FS) absolute(ctx context.Context, n *node, path string) string {
	path = strings.TrimPrefix(path, `\??\`)
	path = strings.TrimPrefix(path, `\\?\`)
	drive, rest := "", path
	if len(path) >= 2 && path[1] == ':' {
		drive, rest = strings.ToUpper(path[:1]), path[2:]
	}
	parts := strings.FieldsFunc(rest, func(r rune) bool { return r == '\\' || r == '/' })
	if drive == "" {
		return "/" + strings.Join(parts, "/")
	}
	depth, known := fs.depth(ctx, n)
	if names, found := fs.walkFolded(ctx, parts); known && found {
		target := strings.Repeat("../", depth) + strings.Join(names, "/")
		if target == "" {
			return "."
		}
		return strings.TrimSuffix(target, "/")
	}
	return "/" + strings.Join(append([]string{drive}, parts...), "/")
}

// maxDepth bounds the directories above a file.
const maxDepth = 1024

// depth counts the directories between a file and the root.
func (fs *FS) depth(ctx context.Context, n *node) (int, bool) {
	for depth := range maxDepth {
		name := n.value(typeFileName, 66)
		if name == nil {
			return 0, false
		}
		parent := le.Uint64(name) & refMask
		if parent == rootFile {
			return depth, true
		}
		var err error
		if n, err = fs.node(ctx, filesystem.Ino(parent)); err != nil {
			return 0, false
		}
	}
	return 0, false
}

// walkFolded walks down from the root without regard to case, and gives the
// names as they are.
func (fs *FS) walkFolded(ctx context.Context, parts []string) ([]string, bool) {
	if len(parts) > maxDepth {
		return nil, false
	}
	at := filesystem.Ino(rootFile)
	var names []string
	for _, part := range parts {
		ino, name, err := fs.lookup(ctx, at, part, true)
		if err != nil {
			return nil, false
		}
		at, names = ino, append(names, name)
	}
	return names, true
}
