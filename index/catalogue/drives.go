package catalogue

import (
	"context"
	"path"
	"slices"
	"strings"

	"cairn/guest/filesystem"
)

// Drives is the Mount.Volume of the root of a Windows guest, which is in no
// volume: it holds the drives' letters, on which the volumes are mounted.
const Drives = -1

// drives are Nodes with the root of a Windows guest.
type drives struct {
	Nodes
	hash Hash
	root Directory
}

// rootOfDrives makes the root that has the mounts.
func rootOfDrives(nodes Nodes, mounts []Mount) (*drives, spot) {
	d := &drives{Nodes: nodes}
	for _, m := range mounts {
		name := strings.TrimPrefix(path.Clean("/"+m.Path), "/")
		if name == "" || strings.Contains(name, "/") || d.root.find(name) != nil {
			continue
		}
		d.root.Entries = append(d.root.Entries, Entry{Name: name, Mode: filesystem.ModeDir | 0o755, Nlink: 1})
		slices.SortFunc(d.root.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	}
	d.hash = new(hasher).directory(&d.root)
	return d, spot{entry: &Entry{Mode: filesystem.ModeDir | 0o755, Nlink: 1, Dir: &Ref{Hash: d.hash}}}
}

// Directory implements Nodes.
func (d *drives) Directory(ctx context.Context, ref Ref) (*Directory, error) {
	if ref == (Ref{Hash: d.hash}) {
		return &d.root, nil
	}
	return d.Nodes.Directory(ctx, ref)
}
