package qmp

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cairn/qmp/storage"
)

// ErrVMStarted: what was read while the VM was off is of no use, for it is not.
var ErrVMStarted = errors.New("the VM was started, or another program wrote to it, while its images were read; nothing is lost: run the backup again")

// Image is a disk of a VM that is off: its image file, and what was seen of it
// when the VM ran.
type Image struct {
	Name   string // the disk's
	Node   string // QEMU's node when the VM ran; "" if that is not known
	Device string // likewise
	Serial string // likewise
	File   string // absolute
	Format string // "qcow2" or "raw". It is never guessed: the guest of a raw disk can write a qcow2 header there
	Skip   string // why the disk is not to be backed up; "" if it is
}

// OfflineOptions says which VM is off.
type OfflineOptions struct {
	Images           []Image
	Dir              string // a folder for the daemon's files, the same in each run for one VM
	Name, UUID, Type string // the VM's, when it ran
	// Running says whether the VM's monitor answers by now.
	Running func(ctx context.Context) bool
	Now     func() time.Time // nil means time.Now
}

// Offline is a VM that is off, read from its image files by a
// qemu-storage-daemon. It may be started at any time: it is kept from that for
// some 50 ms, while its bitmaps change, and what is read counts only if nobody
// wrote meanwhile (OfflineFleece.Unchanged).
//
//	Inspect    images opened for reading, others may write (force-share)
//	Prepare    checks
//	Point      images opened for writing: new bitmaps, old ones off; closed, then marked
//	Export     images opened for reading again, exported
//	Unchanged  the images are as they were marked, nobody has them open for writing
//
// Its methods are for one goroutine.
type Offline struct {
	opt     OfflineOptions
	files   storage.Files
	machine *Machine
	bitmaps map[int][]Bitmap // of images, as last seen
}

// NewOffline gives a VM by its images. Close it.
func NewOffline(opt OfflineOptions) *Offline {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	return &Offline{opt: opt, bitmaps: map[int][]Bitmap{}}
}

// Clean ends a daemon that a dead run left.
func (o *Offline) Clean(ctx context.Context) (removed []string, err error) {
	return storage.EndLeft(ctx, o.opt.Dir)
}

// Close ends the watch of the image files.
func (o *Offline) Close() error { return o.files.Close() }

// Inspect opens the images for reading and says what they are. It changes
// nothing, and looks only once.
func (o *Offline) Inspect(ctx context.Context) (*Machine, error) {
	if o.machine != nil {
		return o.machine, nil
	}
	if len(o.opt.Images) == 0 {
		return nil, errors.New("qmp: no images are known of this VM")
	}
	var read []int
	for i, img := range o.opt.Images {
		if img.Skip != "" {
			continue
		}
		if err := o.admit(img); err != nil {
			return nil, fmt.Errorf("disk %s: %w", img.Name, err)
		}
		read = append(read, i)
	}
	if err := o.unused(ctx); err != nil {
		return nil, err
	}
	if err := o.files.Opened(); err != nil {
		return nil, err
	}
	s, err := o.open(ctx, read, false)
	if err != nil {
		return nil, err
	}
	m, err := o.describe(ctx, s)
	if err := errors.Join(err, s.quit(ctx)); err != nil {
		return nil, err
	}
	o.machine = m
	return m, nil
}

// admit refuses what cannot be read safely, and begins to watch the file.
func (o *Offline) admit(img Image) error {
	if strings.Contains(img.File, "://") || strings.HasPrefix(img.File, "json:") {
		return fmt.Errorf("%q is no plain file on this host: such a disk (encrypted, a part of a file, on the network) can be read only while the VM runs", img.File)
	}
	if img.Format != "qcow2" && img.Format != "raw" {
		return fmt.Errorf("image %s has format %q: without the VM only qcow2 and raw can be read; back it up while the VM runs", img.File, img.Format)
	}
	if err := o.files.Add(img.File); err != nil {
		return err
	}
	if img.Format == "raw" {
		return nil
	}
	header, ok, err := storage.ReadQcow2(img.File)
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("image %s is no qcow2 image", img.File)
	case header.Encrypted:
		return fmt.Errorf("image %s is encrypted, and only the VM's QEMU has its key: back it up while the VM runs", img.File)
	}
	return nil
}

// unused gives an error if the VM runs by now or another program may write to
// its images.
func (o *Offline) unused(ctx context.Context) error {
	err := o.files.Writer()
	if o.opt.Running(ctx) {
		return errors.Join(ErrVMStarted, err)
	}
	return err
}

// describe makes a Machine of what the daemon says, and begins to watch all
// files that the images rest on.
func (o *Offline) describe(ctx context.Context, s *offlineSession) (*Machine, error) {
	m := &Machine{Name: o.opt.Name, UUID: o.opt.UUID, Type: o.opt.Type, Version: s.conn.Version(), Status: "off"}
	var err error
	if m.Features, err = features(ctx, s.conn); err != nil {
		return nil, err
	}
	state, err := readBlockState(ctx, s.conn)
	if err != nil {
		return nil, err
	}
	for i, img := range o.opt.Images {
		m.Disks = append(m.Disks, o.disk(state, i, img))
	}
	for name, n := range state.nodes {
		switch {
		case n.Driver == "file" || n.Driver == "host_device":
			if err := o.files.Add(n.Image.Filename); err != nil {
				return nil, err
			}
		case len(state.graph[name]) == 0: // nothing below: it reaches its data by itself
			return nil, fmt.Errorf("an image rests on %q, which is no file on this host: back the VM up while it runs", n.Image.Filename)
		}
	}
	return m, o.files.Writer()
}

func (o *Offline) disk(state *blockState, i int, img Image) Disk {
	d := Disk{Name: img.Name, Node: img.Node, Device: img.Device, Serial: img.Serial, Skip: img.Skip, File: img.File, Inserted: true}
	if d.Node == "" {
		d.Node = img.Name
	}
	d.Top = d.Node
	if img.Skip != "" {
		return d
	}
	seen := state.disk(blockDevice{Inserted: &blockNode{Node: imageNode(i)}})
	d.Size, d.Format, d.Driver, d.File, d.Chain = seen.Size, seen.Format, seen.Driver, seen.File, seen.Chain
	d.Persistent, d.Bitmaps, d.Below = seen.Persistent, seen.Bitmaps, seen.Below
	image := state.nodes[imageNode(i)].Image
	switch {
	case d.Size == 0:
		d.Skip = "its size is 0"
	case d.Driver == "raw":
		d.NoBitmaps = "the VM is off, and raw images keep no bitmaps"
	case !d.Persistent:
		d.NoBitmaps = version2(d.File)
	case image.FormatSpecific.Data.Corrupt:
		d.Persistent, d.NoBitmaps = false, "the image is marked corrupt: repair it (qemu-img check -r all "+d.File+") while the VM is off"
	case image.DirtyFlag:
		d.Persistent, d.NoBitmaps = false, "the image was not closed: the VM's next start repairs it"
	}
	o.bitmaps[i] = d.Bitmaps
	return d
}

// Advance removes a repository's bitmaps from before the committed point. They
// are gone by Point already, unless their disk was left out.
func (o *Offline) Advance(ctx context.Context, disks []Disk, repo string, committed uint64) error {
	var which []int
	var commands []command
	for i, img := range o.opt.Images {
		if !slices.ContainsFunc(disks, func(d Disk) bool { return d.Name == img.Name && d.Persistent }) {
			continue
		}
		n := len(commands)
		for _, b := range ours(o.bitmaps[i], repo) {
			if b.To < committed {
				commands = append(commands, bitmapRemove{imageNode(i), b.Name})
			}
		}
		if len(commands) > n {
			which = append(which, i)
		}
	}
	if len(commands) == 0 {
		return nil
	}
	if err := errors.Join(o.unused(ctx), o.files.Opened()); err != nil {
		return err
	}
	s, err := o.open(ctx, which, true)
	if err != nil {
		return err
	}
	return errors.Join(s.conn.run(ctx, atomically(commands), nil), s.quit(ctx))
}

// imageNode names the daemon's node of image i.
func imageNode(i int) string { return objectName("cairn-img-", i) }

// offlineSession is a daemon that has images open.
type offlineSession struct {
	daemon *storage.Daemon
	conn   *Conn
}

// sessionPatience bounds the daemon's start and end.
const sessionPatience = 20 * time.Second

// open starts a daemon and opens some of the images, to be written only if
// write says so. Else all others may write meanwhile.
func (o *Offline) open(ctx context.Context, images []int, write bool) (*offlineSession, error) {
	daemon, err := storage.Start(o.opt.Dir)
	if err != nil {
		return nil, err
	}
	actx, cancel := context.WithTimeout(ctx, sessionPatience)
	defer cancel()
	conn, err := attach(actx, daemon.Monitor, storage.Program)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w (it says: %q)", err, daemon.Said()), daemon.Terminate())
	}
	s := &offlineSession{daemon, conn}
	for _, i := range images {
		img := o.opt.Images[i]
		driver := "file"
		if storage.IsDevice(img.File) {
			driver = "host_device"
		}
		err := conn.run(ctx, addImage{
			Driver: img.Format, Node: imageNode(i), ReadOnly: !write, ForceShare: !write,
			File: rawFile{Driver: driver, Node: objectName("cairn-imgf-", i), Filename: img.File},
		}, nil)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("disk %s: open image %s: %w", img.Name, img.File, err), o.unused(ctx), s.quit(ctx))
		}
	}
	return s, nil
}

// quit ends a session; images that were open for writing are closed in order.
func (s *offlineSession) quit(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sessionPatience)
	defer cancel()
	_ = s.conn.run(ctx, quit{}, nil) // the wait says whether it worked
	return errors.Join(s.daemon.Wait(ctx), s.conn.Close())
}

// ImageFormat finds the format of an image that is registered without one: it
// is qcow2 if it says so and names no other files. A file that looks otherwise
// may be a raw disk whose guest has written such a header, and that is for a
// person to say.
func ImageFormat(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("image %q: a relative name: it is not known which folder it is relative to", path)
	}
	q, ok, err := storage.ReadQcow2(path)
	switch {
	case err != nil:
		return "", err
	case !ok:
		return "", fmt.Errorf("image %s does not say what it is: if it is raw, say so (format=raw)", path)
	case q.Backing || q.DataFile:
		return "", fmt.Errorf("image %s says that it is qcow2 and rests on other files, which the guest of a raw disk could have written: say what it is (format=qcow2 or format=raw)", path)
	}
	return "qcow2", nil
}
