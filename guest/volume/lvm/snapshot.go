package lvm

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"

	"cairn/guest/filesystem"
	"cairn/guest/volume/device"
)

// maxExceptions bounds the changed chunks of a group's classic snapshots that
// are kept in memory, 16 bytes each.
const maxExceptions = 1 << 21

// exception is a chunk that is not the origin's any more.
type exception struct{ chunk, stored int64 }

// snapshot gives a classic snapshot: what was changed since, in the origin or in
// the snapshot, lies in its store.
func (b *builder) snapshot(store string, s segment) (device.Device, error) {
	origin, err := b.logical(s.text("origin"))
	if err != nil {
		return nil, fmt.Errorf("its origin: %w", err)
	}
	cow, err := b.logical(store)
	if err != nil {
		return nil, err
	}
	chunk, list, err := readExceptions(cow, maxExceptions-b.exceptions)
	if err != nil {
		return nil, err
	}
	b.exceptions += len(list)
	return device.Striped(device.Chunks{Bytes: origin.Size(), Chunk: chunk, Worst: device.Heaviest(origin, cow), Of: func(c int64, places []device.Place) []device.Place {
		i, found := slices.BinarySearchFunc(list, c, func(e exception, c int64) int {
			return int(min(1, max(-1, e.chunk-c)))
		})
		if found {
			return append(places, device.Place{Device: unplaced{cow}, At: list[i].stored * chunk})
		}
		return append(places, device.Place{Device: unplaced{origin}, At: c * chunk})
	}}), nil
}

// unplaced is a device whose place is that of others, too.
type unplaced struct{ device.Device }

func (unplaced) Locate(int64, int64, func(device.Extent) bool) bool { return false }

// readExceptions reads the header and the tables of a persistent store
// (dm-snap-persistent.c): a header of one chunk, then a table of one chunk, then
// as many chunks as the table names, the next table, and so on. An entry of
// zeros is the end.
func readExceptions(cow device.Device, most int) (chunk int64, list []exception, err error) {
	h := make([]byte, 16)
	if n, err := cow.ReadAt(h, 0); n < len(h) {
		return 0, nil, fmt.Errorf("LVM: snapshot's store: %w", err)
	}
	const magic, version = 0x70416E53, 1
	chunk = int64(le.Uint32(h[12:])) * sector
	switch {
	case le.Uint32(h) != magic || le.Uint32(h[8:]) != version:
		return 0, nil, corrupt("snapshot's store has no header")
	case le.Uint32(h[4:]) == 0:
		return 0, nil, fmt.Errorf("the snapshot is invalid: its store was full: %w", filesystem.ErrCorrupt)
	case chunk < sector || chunk > 16<<20 || chunk&(chunk-1) != 0:
		return 0, nil, corrupt("snapshot's chunks of %d bytes", chunk)
	}
	entries := chunk / 16
	table := make([]byte, chunk)
	for at := int64(1); ; at += entries + 1 {
		if at*chunk > cow.Size()-chunk {
			break
		}
		if n, err := cow.ReadAt(table, at*chunk); n < len(table) {
			return 0, nil, fmt.Errorf("LVM: snapshot's store: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		for e := table; len(e) > 0; e = e[16:] {
			changed, stored := le.Uint64(e), le.Uint64(e[8:])
			if stored == 0 {
				return chunk, sortExceptions(list), nil
			}
			if stored > uint64(cow.Size()/chunk) || changed > 1<<52 {
				return 0, nil, corrupt("snapshot's store: chunk %d at chunk %d", changed, stored)
			}
			if len(list) == most {
				return 0, nil, fmt.Errorf("the group's snapshots have more than %d changed chunks: %w", maxExceptions, filesystem.ErrUnsupported)
			}
			list = append(list, exception{int64(changed), int64(stored)})
		}
	}
	return chunk, sortExceptions(list), nil
}

func sortExceptions(list []exception) []exception {
	sort.Slice(list, func(i, j int) bool { return list[i].chunk < list[j].chunk })
	return list
}
