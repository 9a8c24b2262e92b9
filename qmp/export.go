package qmp

import (
	"context"
	"fmt"
	"strings"

	"cairn/qmp/nbd"
)

// Export opens the fleece for reading and gives one source for each disk, in
// the order of FleeceOptions.Disks. On an error call Release.
func (f *Fleece) Export(ctx context.Context) ([]Source, error) {
	if len(f.inserted) != len(f.opt.Disks) {
		return nil, fmt.Errorf("qmp: Export without a point in time")
	}
	if err := f.mergeBitmaps(ctx); err != nil {
		return nil, f.explain(err)
	}
	state, err := readBlockState(ctx, f.conn)
	if err != nil {
		return nil, f.explain(err)
	}
	var sources []Source
	for i, d := range f.opt.Disks {
		if d.Disk.Push {
			s, err := f.pushDisk(ctx, i)
			if err != nil {
				return nil, f.explain(fmt.Errorf("push of disk %s: %w", d.Disk.Name, err))
			}
			sources = append(sources, s)
			continue
		}
		s, err := f.exportDisk(ctx, i)
		if err != nil {
			return nil, f.explain(fmt.Errorf("export of disk %s: %w", d.Disk.Name, err))
		}
		for _, b := range state.nodes[d.Disk.Node].bitmaps() {
			if b.Name == mergedName(f.opt.Repo) {
				s.Bytes = b.Count
			}
		}
		sources = append(sources, s)
	}
	return sources, nil
}

// mergeBitmaps makes for each incremental disk one temporary bitmap of all
// that changed since the committed point.
func (f *Fleece) mergeBitmaps(ctx context.Context) error {
	var commands []command
	for _, d := range f.opt.Disks {
		if !d.Decision.Incremental || d.Disk.Push {
			continue // a pushed disk's are merged on nodes of our own
		}
		name := mergedName(f.opt.Repo)
		commands = append(commands,
			bitmapAdd{Node: d.Disk.Node, Name: name, Granularity: Granularity, Disabled: true},
			bitmapMerge{d.Disk.Node, name, d.Decision.Merge})
	}
	if len(commands) == 0 {
		return nil
	}
	if err := f.conn.run(ctx, atomically(commands), nil); err != nil {
		return fmt.Errorf("merging bitmaps: %w", err)
	}
	return nil
}

// exportDisk makes the export of disk i and connects to it.
func (f *Fleece) exportDisk(ctx context.Context, i int) (*Pull, error) {
	d := f.opt.Disks[i]
	access, id := objectName(prefixAccess, i), objectName(prefixExport, i)
	if err := f.conn.run(ctx, accessTo(i), nil); err != nil {
		return nil, err
	}
	export := blockExportAdd{Type: "nbd", ID: id, Node: access, Name: id}
	if d.Decision.Incremental {
		export.Bitmaps = []exportBitmap{{Node: d.Disk.Node, Name: mergedName(f.opt.Repo)}}
	}
	if err := f.conn.run(ctx, export, nil); err != nil {
		return nil, err
	}
	s := &Pull{Name: d.Disk.Name}
	var err error
	if s.Data, err = f.dial(ctx, id, nbd.BaseAllocation); err != nil {
		return nil, err
	}
	if s.Data.Size() != d.Disk.Size {
		return nil, fmt.Errorf("the export has %d bytes, the disk %d", s.Data.Size(), d.Disk.Size)
	}
	if !d.Decision.Incremental {
		return s, nil
	}
	// A connection of its own: with both contexts on one, QEMU works out the
	// allocation of the whole disk for each question about the bitmap.
	s.Context = nbd.DirtyBitmap(mergedName(f.opt.Repo))
	s.Dirty, err = f.dial(ctx, id, s.Context)
	return s, err
}

func (f *Fleece) dial(ctx context.Context, export, context string) (*nbd.Conn, error) {
	c, err := f.opt.Dialer.Dial(ctx, "unix", f.socket, export, context)
	if err != nil {
		f.doubtHandshake()
		return nil, err
	}
	f.conns = append(f.conns, c)
	return c, nil
}

// isOurNode says whether a node's name is one that we give.
func isOurNode(name string) bool {
	return numbered(name, prefixMeta) || numbered(name, prefixPush) || numbered(name, prefixJobNode) || numbered(name, prefixFilter) || numbered(name, prefixScratch) || numbered(name, prefixFile) || numbered(name, prefixAccess)
}

// numbered says whether name is prefix and a number.
func numbered(name, prefix string) bool {
	digits, ok := strings.CutPrefix(name, prefix)
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}
