package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/fs/tree/registry"
	"cairn/guest/filesystem"
)

// Drives is the Node.Volume of the directory that holds a Windows guest's drive
// letters. It has one node, which is no inode of any volume.
const Drives int32 = -1

// drive is a drive letter of a view: the name of a directory in its root.
type drive struct {
	name string // "C"
	node Node
}

// drives is the Reader of the directory of drive letters. What is in it only a
// View knows.
type drives struct{}

const drivesRoot filesystem.Ino = 1

func (drives) Info() filesystem.Info { return filesystem.Info{BlockSize: 4096} }

func (drives) Root() filesystem.Ino { return drivesRoot }

func (drives) Attr(ctx context.Context, ino filesystem.Ino) (filesystem.Attr, error) {
	if ino != drivesRoot {
		return filesystem.Attr{}, filesystem.ErrNotExist
	}
	return filesystem.Attr{Ino: ino, Mode: filesystem.ModeDir | 0o755, Nlink: 2}, ctx.Err()
}

func (drives) Lookup(context.Context, filesystem.Ino, string) (filesystem.Ino, error) {
	return 0, filesystem.ErrNotExist
}

func (drives) ReadDir(ctx context.Context, _ filesystem.Ino, _ uint64, _ func(filesystem.Entry) bool) error {
	return ctx.Err()
}

func (drives) Open(context.Context, filesystem.Ino) (filesystem.File, error) {
	return nil, filesystem.ErrIsDir
}

func (drives) Readlink(context.Context, filesystem.Ino) (string, error) {
	return "", filesystem.ErrNotSymlink
}

func (drives) Xattrs(ctx context.Context, _ filesystem.Ino) ([]filesystem.Xattr, error) {
	return nil, ctx.Err()
}

// lookupDrive finds a drive letter.
func (v *View) lookupDrive(name string) (Node, error) {
	for _, d := range v.drives {
		if d.name == name {
			return d.node, nil
		}
	}
	return Node{}, fmt.Errorf("%q: %w", name, filesystem.ErrNotExist)
}

func (v *View) readDrives(ctx context.Context, cookie uint64, fn func(Entry) bool) error {
	for i := int(min(cookie, uint64(len(v.drives)))); i < len(v.drives); i++ {
		if !fn(Entry{v.drives[i].name, v.drives[i].node, filesystem.ModeDir, uint64(i + 1)}) {
			break
		}
	}
	return ctx.Err()
}

// drivePath gives the path in a view of a mount point of Windows: "C:\" is "/C",
// "C:\data\disk\" is "/C/data/disk". It says no to what is no path with a letter.
func drivePath(point string) (string, bool) {
	if len(point) < 2 || point[1] != ':' {
		return "", false
	}
	letter := strings.ToUpper(point[:1])
	if letter < "A" || letter > "Z" {
		return "", false
	}
	return strings.TrimRight("/"+letter+"/"+strings.Trim(strings.ReplaceAll(point[2:], `\`, "/"), "/"), "/"), true
}

// isDrive says whether a mount point is a whole drive.
func isDrive(point string) bool { return len(point) == 2 }

// mountedDevices is what a Windows guest's registry says of its volumes: the
// names \DosDevices\C: and \??\Volume{…} with the index of the volume.
type mountedDevices map[string]int32

// letters gives the drive letters, sorted.
func (m mountedDevices) letters() (list []string) {
	for name := range m {
		if letter, ok := strings.CutPrefix(name, `\DosDevices\`); ok && len(letter) == 2 && letter[1] == ':' {
			list = append(list, letter)
		}
	}
	slices.Sort(list)
	return list
}

// windows finds the volume that Windows runs from, by its system folder, and
// what its registry says. system is -1 when there is none.
func (s *stitcher) windows(ctx context.Context) (system int32, devices mountedDevices, err error) {
	for i, v := range s.list {
		if v.Reason != "" || v.Type != "ntfs" && v.Type != "refs" {
			continue
		}
		view, err := s.tree.Volume(ctx, int32(i))
		if err != nil {
			if !Lasting(err) {
				return 0, nil, err
			}
			continue
		}
		folder, err := view.walkFolded(ctx, "Windows", "System32")
		if err != nil {
			if !Lasting(err) {
				return 0, nil, err
			}
			continue
		}
		devices, err := s.mountedDevices(ctx, view, folder)
		if err != nil {
			if !Lasting(err) {
				return 0, nil, err
			}
			s.problem("/", "the drive letters of %s cannot be read from its registry: %v", v.Name, err)
		}
		return int32(i), devices, nil
	}
	return -1, nil, nil
}

// mountedDevices reads HKLM\SYSTEM\MountedDevices of the hive below System32.
func (s *stitcher) mountedDevices(ctx context.Context, view *View, system32 Node) (mountedDevices, error) {
	node, err := view.foldedFrom(ctx, system32, "config", "SYSTEM")
	if err != nil {
		return nil, err
	}
	f, err := view.tree.Open(ctx, node)
	if err != nil {
		return nil, err
	}
	hive, err := registry.Open(f, f.Size())
	if err != nil {
		return nil, err
	}
	values, err := hive.Values("MountedDevices")
	if err != nil {
		return nil, err
	}
	devices := mountedDevices{}
	for _, v := range values {
		for i := range s.list {
			if isMountedDevice(v.Data, &s.list[i]) {
				devices[v.Name] = int32(i)
				break
			}
		}
	}
	return devices, nil
}

// isMountedDevice says whether a value of MountedDevices names a volume: by the
// signature of an MBR and the partition's offset in bytes, or by "DMIO:ID:" and
// the GUID of a GPT's partition.
func isMountedDevice(data []byte, v *Volume) bool {
	le := binary.LittleEndian
	switch {
	case len(data) == 12:
		return v.Partition > 0 && v.Start == int64(le.Uint64(data[4:])) && strings.HasPrefix(v.PartUUID, fmt.Sprintf("%08x-", le.Uint32(data)))
	case len(data) == 24 && string(data[:8]) == "DMIO:ID:":
		b := data[8:]
		return v.PartUUID == fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
	}
	return false
}

// fromRegistry gives the drives of a Windows guest as its image tells them. The
// volume that it runs from is C, unless the registry has another letter for it.
func fromRegistry(system int32, devices mountedDevices) []mount {
	mounts := []mount{{point: "/", volume: Drives}}
	named := false
	for _, letter := range devices.letters() {
		index := devices[`\DosDevices\`+letter]
		named = named || index == system
		if path, ok := drivePath(letter); ok {
			mounts = append(mounts, mount{point: path, volume: index})
		}
	}
	if !named {
		mounts = slices.DeleteFunc(mounts, func(m mount) bool { return m.point == "/C" })
		mounts = append(mounts, mount{point: "/C", volume: system})
	}
	return shallowFirst(mounts)
}

// volumeNamed finds the volume of a path as "\\?\Volume{GUID}\": by the registry,
// else by the GUID, which Windows takes from the partition on disks with a GPT.
func (m mountedDevices) volumeNamed(path string, list []Volume) int32 {
	start := strings.Index(path, "Volume{")
	end := strings.IndexByte(path, '}')
	if start < 0 || end < start {
		return -1
	}
	name := path[start : end+1]
	for known, index := range m {
		if strings.EqualFold(known, `\??\`+name) {
			return index
		}
	}
	for i, v := range list {
		if strings.EqualFold(v.PartUUID, name[len("Volume{"):len(name)-1]) {
			return int32(i)
		}
	}
	return -1
}

// walkFolded finds a path from the view's root by names that are the same in
// upper and lower case.
func (v *View) walkFolded(ctx context.Context, names ...string) (Node, error) {
	return v.foldedFrom(ctx, v.root, names...)
}

func (v *View) foldedFrom(ctx context.Context, at Node, names ...string) (Node, error) {
	for _, name := range names {
		found, err := v.Lookup(ctx, at, name)
		if errors.Is(err, filesystem.ErrNotExist) {
			found, err = v.lookupFolded(ctx, at, name)
		}
		if err != nil {
			return Node{}, fmt.Errorf("%s: %w", name, err)
		}
		at = found
	}
	return at, nil
}

func (v *View) lookupFolded(ctx context.Context, dir Node, name string) (Node, error) {
	var node Node
	err := v.ReadDir(ctx, dir, 0, func(e Entry) bool {
		if !strings.EqualFold(e.Name, name) {
			return true
		}
		node = e.Node
		return false
	})
	if node != (Node{}) {
		return node, nil
	}
	return node, errors.Join(err, filesystem.ErrNotExist)
}

var _ filesystem.Reader = drives{}
