package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/job/image"
	"cairn/cmd/internal/wire"
	"cairn/fs/tree"
	"cairn/index/restorepoint"
)

func (a *app) restoreCmd() *cobra.Command {
	var disk, to string
	var o image.Options
	var special, vm, original, resume bool
	var name string
	var into intoOptions
	c := &cobra.Command{
		Use:   "restore POINT --disk NAME --to FILE|DEVICE | POINT --vm --to FOLDER | POINT:PATH --to FOLDER | POINT:PATH --into VM[:PATH] | POINT --app NAME --into VM",
		Short: "Copy a disk, a whole VM, a file or a folder out of a restore point, or files back into the running guest",
		Long: `Copy out of a restore point.

A disk, to a new file, holes kept; what was written is read back and compared:
  cairn restore web01@latest --disk vda --to /var/lib/images/web01.raw
  cairn restore web01@latest --disk vda --to web01.qcow2 --format qcow2

A disk, over a block device that nobody uses. All on it is lost:
  cairn restore web01@latest --disk vda --to /dev/vg0/web01 --overwrite

A disk, back in place: only the chunks that differ are written. The VM must be
off. One that is interrupted is finished by running it again:
  cairn restore web01@2026-10-12 --disk vda --to web01.qcow2 --format qcow2 --delta

After a restore in place the VM's next backup reads the disk whole: Cairn's
bitmaps are removed from a qcow2, since they tell of changes to what was there
before.

A whole VM, into a new folder: its disks, and start.sh (or libvirt's domain.xml)
that starts it beside the original, with a name, a UUID and network addresses of
its own. Read it before you run it:
  cairn restore web01@latest --vm --to /srv/web02 --name web02
One that takes the place of an original that is gone keeps these:
  cairn restore web01@latest --vm --to /srv/web01 --as-original
  /srv/web02/start.sh
To start one at once, without copying it first, see: cairn boot --help

A file or a folder of the guest, with owners, modes, ACLs, extended attributes,
times to the nanosecond, hard links and holes; device nodes only with --special.
What could not be kept is listed at the end. After an interrupt, the same command
with --resume goes on. Times of birth and change are the copy's own.
  cairn restore web01@2026-10-12:/etc/nginx --to /tmp/back
As a tar stream instead: cairn cat --help` + intoHelp,
		Args:              args(1, 1),
		ValidArgsFunction: a.completePointPath,
		RunE: func(c *cobra.Command, argv []string) error {
			if into.given(c) {
				t, err := into.parse(c, argv[0])
				if err != nil {
					return err
				}
				return a.withGuestData(c.Context(), commandCache, func(_ *wire.Repo, cat *wire.Catalogue) error {
					return a.restoreInto(c.Context(), cat, t)
				})
			}
			point, p, hasPath := splitPath(argv[0])
			switch {
			case to == "":
				return usagef("say where to: --to FILE for a disk, --to FOLDER for files, --into VM for files of the running guest")
			case disk == "" && !hasPath && !vm:
				return usagef("say what to restore: --disk NAME, --vm, or POINT:PATH")
			case disk != "" && hasPath || vm && hasPath || vm && disk != "":
				return usagef("one of --disk NAME, --vm and POINT:PATH, not two")
			case o.Format != "" && o.Format != image.FormatRaw && o.Format != image.FormatQCOW2:
				return usagef("format %q is not known: raw or qcow2", o.Format)
			case disk == "" && (o.Delta || !vm && (o.NoVerify || o.Format != "")):
				return usagef("--delta, --no-verify and --format are for a disk: name it with --disk")
			case resume && (vm || disk != ""):
				return usagef("--resume is for files; a disk is finished by --delta")
			case vm && o.Overwrite || !vm && (name != "" || original):
				return usagef("--vm takes a new folder, not --overwrite; --name and --as-original are for --vm")
			}
			return a.withGuestData(c.Context(), commandCache, func(_ *wire.Repo, cat *wire.Catalogue) error {
				if vm {
					return a.restoreVM(c.Context(), cat, point, to, name, original, o)
				}
				if disk != "" {
					return a.restoreDisk(c.Context(), cat, point, disk, to, o)
				}
				o := tree.CopyOptions{Overwrite: o.Overwrite, Special: special, Resume: resume, NoOwner: os.Geteuid() != 0}
				return a.restorePath(c.Context(), cat, point, p, to, o)
			})
		},
	}
	into.flags(c)
	_ = c.RegisterFlagCompletionFunc("into", func(c *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return a.completeVMs(c, nil, typed)
	}) // fails for unknown flags only
	f := c.Flags()
	f.StringVar(&disk, "disk", "", "name of the disk")
	f.BoolVar(&vm, "vm", false, "restore all disks, and what starts the VM")
	f.StringVar(&name, "name", "", "of the restored VM (default: the VM's with -restored)")
	f.BoolVar(&original, "as-original", false, "with --vm: keep the VM's UUID and its network addresses; never start it beside the original")
	f.StringVar(&to, "to", "", "the new file or the device (disk), or the folder (VM, files)")
	f.StringVar(&o.Format, "format", "", "of the disk's file: raw (sparse; the default) or qcow2")
	f.BoolVar(&o.Overwrite, "overwrite", false, "replace files that are there already, or all on a block device")
	f.BoolVar(&o.Delta, "delta", false, "of a disk: compare with what is there, and write only what differs")
	f.BoolVar(&o.NoVerify, "no-verify", false, "of a disk: do not read back what was written")
	f.BoolVar(&o.Sync, "sync", false, "of a disk: return when the file is on the device, not only in memory (cp and most tools do not wait either)")
	f.BoolVar(&resume, "resume", false, "of files: go on with a restore that was interrupted; what is there and complete stays")
	f.BoolVar(&special, "special", false, "make device nodes, FIFOs and sockets, too")
	return c
}

// openDisk opens a disk of a point; a wrong name gets those that there are.
func openDisk(cat *wire.Catalogue, m *restorepoint.Manifest, disk string) (image.Disk, error) {
	var names []string
	for _, d := range m.Disks {
		names = append(names, d.Name)
	}
	d, err := cat.Disk(m, disk)
	if err != nil && !slices.Contains(names, disk) {
		err = usagef("%w; it has: %s", err, strings.Join(names, ", "))
	}
	return d, err
}

func (a *app) restoreDisk(ctx context.Context, cat *wire.Catalogue, point, disk, to string, o image.Options) error {
	start := a.now()
	m, err := cat.Select(ctx, point)
	if err != nil {
		return err
	}
	d, err := openDisk(cat, m, disk)
	if err != nil {
		return err
	}
	r, err := image.Restore(ctx, d, to, o, a.reporter().Work)
	if err != nil {
		return err
	}
	took := a.now().Sub(start)
	if a.json {
		return a.printJSON(restoredDisk{Type: "summary", Point: m.ID, Disk: disk, File: to, Restored: r, DurationMS: took.Milliseconds()})
	}
	fmt.Fprintf(a.stdout, "restored disk %s of %s to %s: %s in %.1f s\n", disk, point, to, describeRestored(r, o), took.Seconds())
	for _, name := range r.BitmapsRemoved {
		a.say("  removed bitmap %s: the next backup reads this disk whole", name)
	}
	for _, n := range r.Notes {
		a.say("  note: %s", n)
	}
	return nil
}

// restoredDisk is a disk in `cairn restore --json`.
type restoredDisk struct {
	Type  string `json:"message_type,omitempty"`
	Point string `json:"point,omitempty"`
	Disk  string `json:"disk"`
	File  string `json:"file"`
	image.Restored
	DurationMS int64 `json:"duration_ms,omitempty"`
}

// describeRestored says in words what was written and checked.
func describeRestored(r image.Restored, o image.Options) string {
	s := fmt.Sprintf("%s written of %s", bytesOf(r.BytesWritten), bytesOf(r.BytesDisk))
	if o.Delta {
		s = fmt.Sprintf("%s compared, %s differed and were written", bytesOf(r.BytesCompared), bytesOf(r.BytesWritten))
	}
	if r.BytesZeroed > 0 {
		s += fmt.Sprintf(", %s made zero", bytesOf(r.BytesZeroed))
	}
	if o.NoVerify {
		return s + ", not verified"
	}
	return s + fmt.Sprintf(", %s read back and found right", bytesOf(r.BytesVerified))
}

func (a *app) restorePath(ctx context.Context, cat *wire.Catalogue, point, p, to string, o tree.CopyOptions) error {
	v, m, in, err := viewAt(ctx, cat, point, p)
	if err != nil {
		return err
	}
	at, err := v.Walk(ctx, v.Root(), in, false)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	dest, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer dest.Close()
	name := path.Base(p)
	if name == "/" { // the whole guest: a folder with the VM's name
		name = m.VM.Name
	}
	bar := a.reporter().Start("restoring "+p, 0)
	var last int64
	done, err := tree.CopyOut(ctx, v, at, dest, name, o, func(c tree.Copied) {
		bar.Add(c.Bytes - last)
		last = c.Bytes
	})
	bar.Done()
	if err != nil {
		again := "run the same command again"
		if done.Files+done.Dirs+done.Links+done.Others > 0 {
			again = "the same command with --resume goes on from there"
			a.say("%d files are restored; %s", done.Files, again)
		}
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return fmt.Errorf("%s: %w: make room there; then %s", to, err, again)
		}
		return err
	}
	return a.printCopied(point+":"+p, path.Join(to, name), done)
}

// maxShown bounds the failures that are printed one by one.
const maxShown = 20

func (a *app) printCopied(from, to string, done tree.Copied) error {
	failed := int64(len(done.Failures)) + done.MoreFailures
	if a.json {
		list := []map[string]string{}
		for _, f := range done.Failures {
			list = append(list, map[string]string{"path": f.Path, "error": f.Err.Error()})
		}
		lost := []map[string]any{}
		for _, l := range done.NotKept {
			lost = append(lost, map[string]any{"what": l.What, "why": l.Why, "count": l.Count, "example": l.Example})
		}
		err := a.printJSON(map[string]any{"message_type": "summary", "to": to, "present": done.Present, "not_kept": lost, "files": done.Files, "directories": done.Dirs, "links": done.Links,
			"others": done.Others, "bytes_written": done.Bytes, "failures": list, "failed": failed})
		if err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.stdout, "restored %s to %s: %d files, %d folders, %d links, %s\n", safe(from), safe(to), done.Files, done.Dirs, done.Links, bytesOf(done.Bytes))
		if done.Present > 0 {
			fmt.Fprintf(a.stdout, "  %d of them were there already\n", done.Present)
		}
		a.sayLosses(done)
	}
	switch {
	case failed > 0 && done.Files+done.Dirs+done.Links+done.Others == 0:
		return errors.New("nothing was restored")
	case failed > 0 || len(done.NotKept) > 0:
		return errWarnings
	}
	return nil
}

// sayLosses lists what was not restored, and what of the rest was not kept.
func (a *app) sayLosses(done tree.Copied) {
	for _, l := range done.NotKept {
		fmt.Fprintf(a.stderr, "  not kept: %s of %d files (%s), as of %s\n", safe(l.What), l.Count, l.Why, safe(l.Example))
	}
	for i, f := range done.Failures {
		if i == maxShown {
			fmt.Fprintf(a.stderr, "  … and %d more (--json lists them)\n", int64(len(done.Failures))+done.MoreFailures-maxShown)
			return
		}
		fmt.Fprintf(a.stderr, "  not restored: %s: %v\n", safe(f.Path), f.Err)
	}
}
