package treetest

import (
	"context"

	"cairn/guest/filesystem"
)

// Home sets what a mount without options shows.
func (fs *FS) Home(dir string) { fs.info.Home = dir }

// Numbered is a FS whose subvolumes have numbers.
type Numbered struct {
	*FS
	Paths map[uint64]string
}

// Subvolume implements tree.Subvolumes.
func (n Numbered) Subvolume(_ context.Context, id uint64) (string, error) {
	if p, ok := n.Paths[id]; ok {
		return p, nil
	}
	return "", filesystem.ErrNotExist
}
