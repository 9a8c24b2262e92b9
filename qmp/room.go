package qmp

import (
	"fmt"
	"io"
	"os"

	"cairn/qmp/storage"
)

// checkDeviceRoom checks that a qcow2 image on a block device ends so far
// before the device does that need bytes of bitmaps go in between: there they
// are stored.
func checkDeviceRoom(d Disk, need int64) error {
	f, err := os.Open(d.File)
	if err != nil {
		return nil // not a device that we can see, like a file
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("disk %s: size of %s: %w", d.Name, d.File, err)
	}
	q, ok, err := storage.ReadQcow2(d.File)
	if err != nil || !ok {
		return nil // QEMU knows better
	}
	end, err := q.End(f)
	if err != nil {
		return nil // a running QEMU has tables in memory that are not there yet
	}
	if free := size - end; free < need {
		return fmt.Errorf("disk %s: %w: its image ends %d KiB before the end of block device %s, and its bitmaps may need %d KiB there: make the device larger (lvextend)",
			d.Name, ErrScratchSpace, max(free, 0)>>10, d.File, need>>10)
	}
	return nil
}
