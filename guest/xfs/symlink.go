package xfs

import (
	"context"
	"fmt"

	"cairn/guest/filesystem"
)

const (
	// maxTarget is the longest target of a link (XFS_SYMLINK_MAXLEN).
	maxTarget = 1024
	// maxTargetBlocks holds it in the smallest blocks, with their headers.
	maxTargetBlocks = 3

	remoteHeader = 56 // of blocks with a target or with an attribute's value
)

// Readlink gives a symbolic link's target (Symbolic Links).
func (fs *FS) Readlink(ctx context.Context, ino filesystem.Ino) (string, error) {
	in, err := fs.inode(ctx, ino)
	if err != nil {
		return "", err
	}
	if !in.isSymlink() {
		return "", fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotSymlink)
	}
	target, err := fs.target(&in)
	if err != nil {
		return "", fmt.Errorf("inode %d: %w", ino, err)
	}
	return string(target), nil
}

func (fs *FS) target(in *inode) ([]byte, error) {
	size := in.size()
	if size > maxTarget {
		return nil, corrupt("symbolic link of %d bytes", size)
	}
	if in.format() == formatLocal {
		if b := in.dataFork(); size <= int64(len(b)) {
			return b[:size], nil
		}
		return nil, corrupt("symbolic link of %d bytes in the inode", size)
	}
	f := in.dataMap()
	var target []byte
	for block := uint64(0); int64(len(target)) < size; {
		r, err := fs.lookup(&f, block)
		if err != nil {
			return nil, err
		}
		if r.hole || r.count > maxTargetBlocks || block > maxTargetBlocks {
			return nil, corrupt("extent of a symbolic link at block %d", block)
		}
		b := make([]byte, int64(r.count)*fs.sb.blockSize)
		off, err := fs.sb.offset(r.block, r.count)
		if err != nil {
			return nil, err
		}
		if err := fs.readMeta(b, off); err != nil {
			return nil, err
		}
		if fs.sb.v5 { // every extent has one header, not every block
			if err := fs.checkRemote(b, "XSLM", in.ino, off, len(target)); err != nil {
				return nil, fmt.Errorf("target at %d: %w", off, err)
			}
			b = b[remoteHeader:][:be.Uint32(b[8:])]
		}
		if len(b) == 0 {
			return nil, corrupt("empty extent of a symbolic link at block %d", block)
		}
		target = append(target, b[:min(int64(len(b)), size-int64(len(target)))]...)
		block += r.count
	}
	return target, nil
}

// checkRemote verifies the header of a piece of a link's target or of an
// attribute's value: magic, offset in the whole, length, owner, place.
func (fs *FS) checkRemote(b []byte, magic string, ino uint64, off int64, at int) error {
	switch {
	case string(b[:4]) != magic:
		return corrupt("magic number")
	case !fs.checksumFits(b, 12) && !fs.replayed.touches(off, len(b)):
		return corrupt("checksum")
	case be.Uint64(b[32:]) != ino:
		return corrupt("it belongs to inode %d", be.Uint64(b[32:]))
	case be.Uint64(b[40:]) != uint64(off/sectorSize):
		return corrupt("it lies in a wrong place")
	case be.Uint32(b[4:]) != uint32(at):
		return corrupt("it is the piece at %d, not at %d", be.Uint32(b[4:]), at)
	case be.Uint32(b[8:]) > uint32(len(b)-remoteHeader):
		return corrupt("piece of %d bytes", be.Uint32(b[8:]))
	}
	return nil
}
