package btrfs

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"cairn/guest/filesystem"
)

// maxXattrs bounds the attributes of one inode, in bytes of names and values:
// more than Linux lists.
const maxXattrs = 4 << 20

// Xattrs gives all extended attributes, sorted by name. Attributes whose
// names have the same hash share an item.
func (fs *FS) Xattrs(ctx context.Context, ino filesystem.Ino) ([]filesystem.Xattr, error) {
	in, err := fs.inode(ctx, ino)
	if err != nil || in.stub {
		return nil, err
	}
	var found []filesystem.Xattr
	total := 0
	err = in.vol.scan(ctx, key{in.oid, typeXattr, 0}, key{in.oid, typeXattr, 1<<64 - 1}, strict, func(k key, item []byte) error {
		return eachDirItem(item, func(e dirItem) error {
			if len(e.name) == 0 || len(e.name) > 255 || bytes.IndexByte(e.name, 0) >= 0 {
				return corrupt("attribute with the name %.300q", e.name)
			}
			if total += len(e.name) + len(e.data); total > maxXattrs {
				return corrupt("more than %d bytes of attributes", maxXattrs)
			}
			found = append(found, filesystem.Xattr{Name: string(e.name), Value: bytes.Clone(e.data)})
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	slices.SortFunc(found, func(a, b filesystem.Xattr) int { return strings.Compare(a.Name, b.Name) })
	found = slices.CompactFunc(found, func(a, b filesystem.Xattr) bool { return a.Name == b.Name })
	return found, nil
}
