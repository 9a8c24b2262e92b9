package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"sort"
	"strings"

	"cairn/cmd/internal/job"
	"cairn/fs/tree"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
	"cairn/qmp"
)

// swapHeader is what is kept of swap space: its header is in the first page,
// which has at most 64 KiB (mkswap(8)).
const swapHeader = 64 << 10

// Types of swap partitions.
const (
	swapMBR = "0x82"
	swapGPT = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"
)

// maxSpares bounds what is gathered: some 200 MiB.
const maxSpares = 4 << 20

// Spare is the job.Sparer of this program. It looks at the filesystems that
// the guest mounts, by its mount table or its fstab, and at no others: on what
// lies unused a signature may be left over from before, and what is there now
// would be taken for free. Of a guest that runs it looks at those that stood
// frozen: others write contents before the maps that say so, and a later
// incremental point would have the maps and not the contents.
func Spare(ctx context.Context, m *restorepoint.Manifest, off bool, image func(disk string) (restorepoint.Image, error)) ([]job.Spare, []string, error) {
	t, err := tree.Open(ctx, m, image)
	if err != nil {
		return nil, nil, err
	}
	volumes, err := t.Volumes(ctx)
	if err != nil {
		return nil, nil, err
	}
	mounts, err := t.Mounts(ctx)
	if err != nil {
		return nil, nil, err
	}
	mounted, stood := map[int32]bool{}, map[int32]bool{}
	for _, mount := range mounts {
		mounted[mount.Volume] = true
	}
	if off {
		if where := hibernates(ctx, t, volumes); where != "" {
			return nil, nil, fmt.Errorf("%w (%s)", job.ErrHibernates, where)
		}
	} else {
		if stood, err = standing(t, m, volumes, mounts); err != nil {
			return nil, nil, err
		}
	}
	swap := map[int32]bool{}
	if guest, err := t.Guest(ctx); err == nil {
		swap, _ = guest.Swap(ctx)
	}
	s := &spares{}
	var notes []string
	for i := range volumes {
		v, index, err := &volumes[i], int32(i), error(nil)
		switch {
		case v.Type == "swap" && (swap[index] || v.PartType == swapMBR || v.PartType == swapGPT):
			err = s.swap(v, image)
		case v.Type == "swap":
			notes = append(notes, fmt.Sprintf("%s looks like swap space that nothing uses, and is read whole", v.Name))
		case mounted[index] && (off || stood[index]):
			err = s.filesystem(ctx, t, index, v)
		case mounted[index]:
			notes = append(notes, fmt.Sprintf("%s was not frozen and is read whole", v.Name))
		case v.Reason == "":
			notes = append(notes, fmt.Sprintf("%s is mounted nowhere and read whole", v.Name))
		}
		switch {
		case ctx.Err() != nil:
			return nil, nil, ctx.Err()
		case errors.Is(err, errMaxSpares):
			return s.list, append(notes, err.Error()), nil
		case err != nil:
			notes = append(notes, fmt.Sprintf("%s is read whole: %v", v.Name, err))
		}
	}
	return s.list, notes, nil
}

// hibernates says where a guest that is off has left its memory; "" when it has
// not. What it resumes to has its own idea of what is free, and of what it has
// swapped out.
func hibernates(ctx context.Context, t *tree.Tree, volumes []tree.Volume) string {
	for i, v := range volumes {
		switch v.Type {
		case "swsuspend":
			return v.Name
		case "ntfs":
			view, err := t.Volume(ctx, int32(i))
			if err == nil && sleepsIn(ctx, view, "/hiberfil.sys") {
				return v.Name + "/hiberfil.sys"
			}
		}
	}
	guest, err := t.Guest(ctx)
	if err != nil {
		return "" // and nothing is mounted
	}
	_, files := guest.Swap(ctx)
	for _, name := range files {
		if sleepsIn(ctx, guest, name) {
			return name
		}
	}
	return ""
}

// sleepsIn says whether a file begins as an image of a guest's memory does:
// Linux' swap file (kernel/power/swap.c, struct swsusp_header) or Windows'
// hiberfil.sys.
func sleepsIn(ctx context.Context, view *tree.View, name string) bool {
	p, err := view.Walk(ctx, view.Root(), name, true)
	if err != nil {
		return false
	}
	f, err := view.Tree().Open(ctx, p.Node)
	if err != nil {
		return false
	}
	b := make([]byte, swapHeader)
	n, _ := f.ReadAt(b, 0)
	b = b[:n]
	if bytes.HasPrefix(b, []byte("hibr")) || bytes.HasPrefix(b, []byte("HIBR")) {
		return true
	}
	for _, page := range []int{4096, 8192, 16384, 65536} {
		if len(b) >= page && bytes.HasSuffix(b[:page-1], []byte("SUSPEND")) {
			return true
		}
	}
	return false
}

// standing gives the mounted volumes of a running guest that stood frozen when
// the point was taken. The inside agent says it of each; the stock agent
// freezes all that it lists and Linux can freeze, without a word about others.
func standing(t *tree.Tree, m *restorepoint.Manifest, volumes []tree.Volume, mounts []tree.Mount) (map[int32]bool, error) {
	stood := map[int32]bool{}
	if m.Consistency.Level == restorepoint.ConsistencyCrash || m.Consistency.Level == "" {
		return stood, nil
	}
	doc, err := t.Document()
	if err != nil {
		return nil, err
	}
	frozen := map[string]bool{}   // by mount point: whether all that is mounted there was
	device := map[string]string{} // by mount point: the kernel's name
	note := func(point, name string, yes bool) {
		point = path.Clean(point)
		before, twice := frozen[point]
		frozen[point], device[point] = yes && (before || !twice), name
	}
	switch {
	case doc != nil:
		for _, mount := range doc.Mounts {
			name := ""
			if mount.Device != nil {
				name = mount.Device.Name
			}
			note(mount.Mountpoint, name, mount.Frozen)
		}
	case m.Guest != nil:
		for _, mount := range m.Guest.Filesystems {
			note(mount.Mountpoint, mount.Name, freezable[mount.Type])
		}
	}
	for _, mount := range mounts {
		if i := mount.Volume; i >= 0 && frozen[mount.Path] && freezable[volumes[i].Type] && isUsed(device[mount.Path], &volumes[i]) {
			stood[i] = true
		}
	}
	return stood, nil
}

// isUsed says whether a device of the guest can be a volume, and not something
// that lies on it: a mapping that encrypts, or a cache, whose disk shows what was
// there before.
func isUsed(name string, v *tree.Volume) bool {
	letters := strings.TrimRightFunc(name, func(r rune) bool { return r >= '0' && r <= '9' || r == '-' })
	switch {
	case v.Logical != "":
		return letters == "dm"
	case v.Array != "":
		return strings.HasPrefix(name, "md")
	}
	for _, disk := range []string{"vd", "sd", "hd", "xvd", "nvme", "mmcblk", "pmem"} {
		if strings.HasPrefix(name, disk) {
			return true
		}
	}
	return false
}

// freezable are the types that have a reader and that Linux freezes: FIFREEZE
// of others is refused, and the stock agent passes over that in silence.
var freezable = map[string]bool{"ext2": true, "ext3": true, "ext4": true, "xfs": true, "btrfs": true}

var errMaxSpares = fmt.Errorf("more than %d ranges are free; only those are left out", maxSpares)

type spares struct{ list []job.Spare }

// filesystem adds what the filesystem on a volume has free. Of one that fails
// midway nothing is added.
func (s *spares) filesystem(ctx context.Context, t *tree.Tree, index int32, v *tree.Volume) error {
	r, err := t.Reader(ctx, index)
	if err != nil {
		return err
	}
	free, ok := r.(filesystem.FreeSpace)
	if !ok || len(v.Extents) == 0 {
		return nil
	}
	before := len(s.list)
	err = free.Free(ctx, func(start, end int64) error { return s.add(v, start, end, false) })
	if err != nil && !errors.Is(err, errMaxSpares) {
		s.list = s.list[:before]
	}
	return err
}

// swap adds swap space as far as its header says that it goes (union
// swap_header in the kernel's include/linux/swap.h): behind that may lie
// anything. The header's numbers have the guest's order of bytes.
func (s *spares) swap(v *tree.Volume, image func(disk string) (restorepoint.Image, error)) error {
	if len(v.Extents) == 0 || v.Extents[0].Size < swapHeader {
		return nil
	}
	disk, err := image(v.Extents[0].Disk)
	if err != nil {
		return err
	}
	b := make([]byte, swapHeader)
	if n, err := disk.ReadAt(b, v.Extents[0].DiskOffset); n < len(b) {
		return err
	}
	page := int64(0)
	for _, size := range []int64{4096, 8192, 16384, 65536} {
		if page == 0 && string(b[size-10:size]) == "SWAPSPACE2" {
			page = size
		}
	}
	var order binary.ByteOrder = binary.LittleEndian
	if order.Uint32(b[1024:]) != 1 {
		order = binary.BigEndian
	}
	end := (int64(order.Uint32(b[1028:])) + 1) * page
	if order.Uint32(b[1024:]) != 1 || end > v.Size {
		return errors.New("the header of the swap space is damaged")
	}
	return s.add(v, swapHeader, end, true)
}

// add adds a range of a volume where it lies on the disks.
func (s *spares) add(v *tree.Volume, start, end int64, swap bool) error {
	if end-start < qmp.Granularity {
		return nil // too small to be left out
	}
	first := sort.Search(len(v.Extents), func(i int) bool { return v.Extents[i].Offset+v.Extents[i].Size > start })
	for _, e := range v.Extents[first:] {
		a, b := max(start, e.Offset), min(end, e.Offset+e.Size)
		if a >= b {
			break
		}
		if len(s.list) == maxSpares {
			return errMaxSpares
		}
		s.list = append(s.list, job.Spare{Disk: e.Disk, Start: e.DiskOffset + a - e.Offset, End: e.DiskOffset + b - e.Offset, Swap: swap})
	}
	return nil
}
