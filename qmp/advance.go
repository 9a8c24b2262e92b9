package qmp

import (
	"context"
	"fmt"
)

// Advance removes a repository's bitmaps from before the committed point, on
// the given disks, in one transaction. Call it only when the point's manifest
// is durable. It looks at what is there now, so that it may be called again.
func Advance(ctx context.Context, conn *Conn, disks []Disk, repo string, committed uint64) error {
	state, err := readBlockState(ctx, conn)
	if err != nil {
		return err
	}
	var commands []command
	for _, d := range disks {
		for _, b := range ours(state.nodes[d.Node].bitmaps(), repo) {
			if b.To < committed {
				commands = append(commands, bitmapRemove{d.Node, b.Name})
			}
		}
	}
	if len(commands) == 0 {
		return nil
	}
	if err := conn.run(ctx, atomically(commands), nil); err != nil {
		return fmt.Errorf("the point is committed, but bitmaps from before it could not be removed (the next run tries again): %w", err)
	}
	return nil
}

// RemoveBitmaps removes all bitmaps of a repository, or of every one if repo
// is "", from a VM's disks: before the administrator reverts to an internal
// snapshot, which QEMU refuses while there are any ("Device has active dirty
// bitmaps"), or leaves the repository. The next backup reads the disks whole.
func RemoveBitmaps(ctx context.Context, conn *Conn, disks []Disk, repo string) error {
	var commands []command
	for _, d := range disks {
		for _, name := range OurBitmaps(d, repo) {
			commands = append(commands, bitmapRemove{d.Node, name})
		}
	}
	if len(commands) == 0 {
		return nil
	}
	return conn.run(ctx, atomically(commands), nil)
}
