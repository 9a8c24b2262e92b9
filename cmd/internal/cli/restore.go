package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/fs/tree"
	"cairn/index/restorepoint"
)

func (a *app) restoreCmd() *cobra.Command {
	var disk, to string
	var o job.RestoreOptions
	var special bool
	c := &cobra.Command{
		Use:   "restore POINT --disk NAME --to FILE | POINT:PATH --to FOLDER",
		Short: "Copy a disk, a file or a folder out of a restore point",
		Long: `Copy out of a restore point.

A disk, to a new file, holes kept:
  cairn restore web01@latest --disk vda --to /var/lib/images/web01.raw
  cairn restore web01@latest --disk vda --to web01.qcow2 --format qcow2

A file or a folder of the guest, with owners, modes, times, links, extended
attributes and holes:
  cairn restore web01@2026-10-12:/etc/nginx --to /tmp/back`,
		Args: args(1, 1),
		RunE: func(c *cobra.Command, argv []string) error {
			point, p, hasPath := splitPath(argv[0])
			switch {
			case to == "":
				return usagef("say where to: --to FILE for a disk, --to FOLDER for files")
			case disk == "" && !hasPath:
				return usagef("say what to restore: --disk NAME, or POINT:PATH")
			case disk != "" && hasPath:
				return usagef("either --disk NAME or POINT:PATH, not both")
			case o.Format != job.FormatRaw && o.Format != job.FormatQCOW2:
				return usagef("format %q is not known: raw or qcow2", o.Format)
			}
			return a.withCatalogue(c.Context(), commandCache, func(_ *wire.Repo, cat *wire.Catalogue) error {
				if disk != "" {
					return a.restoreDisk(c.Context(), cat, point, disk, to, o)
				}
				o := tree.CopyOptions{Overwrite: o.Overwrite, Special: special, NoOwner: os.Geteuid() != 0}
				return a.restorePath(c.Context(), cat, point, p, to, o)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&disk, "disk", "", "name of the disk")
	f.StringVar(&to, "to", "", "the new file (disk), or the folder to copy into (files)")
	f.StringVar(&o.Format, "format", job.FormatRaw, "of the disk's file: raw (sparse) or qcow2 (needs qemu-img)")
	f.BoolVar(&o.Overwrite, "overwrite", false, "replace files that are there already")
	f.BoolVar(&o.Sync, "sync", false, "of a disk: return when the file is on the device, not only in memory (cp and most tools do not wait either)")
	f.BoolVar(&special, "special", false, "make device nodes, FIFOs and sockets, too")
	return c
}

func (a *app) restoreDisk(ctx context.Context, cat *wire.Catalogue, point, disk, to string, o job.RestoreOptions) error {
	start := a.now()
	m, err := cat.Select(ctx, point)
	if err != nil {
		return err
	}
	var names []string
	for _, d := range m.Disks {
		names = append(names, d.Name)
	}
	dm, err := cat.Map(m, disk)
	if err != nil {
		return usagef("%w; it has: %s", err, strings.Join(names, ", "))
	}
	img := restorepoint.NewImage(dm, nil) // its readers are parallel already
	n, err := job.RestoreDisk(ctx, img, m.VM.Name+" "+disk, to, o, a.reporter().Work)
	if err != nil {
		return err
	}
	took := a.now().Sub(start)
	if a.json {
		return a.printJSON(map[string]any{"message_type": "summary", "point": m.ID, "disk": disk, "file": to,
			"bytes_disk": img.Size(), "bytes_written": n, "duration_ms": took.Milliseconds()})
	}
	_, err = fmt.Fprintf(a.stdout, "restored disk %s of %s to %s: %s written of %s in %.1f s\n", disk, point, to, bytesOf(n), bytesOf(img.Size()), took.Seconds())
	return err
}

func (a *app) restorePath(ctx context.Context, cat *wire.Catalogue, point, p, to string, o tree.CopyOptions) error {
	v, m, err := guestView(ctx, cat, point)
	if err != nil {
		return err
	}
	at, err := v.Walk(ctx, v.Root(), p, false)
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
		err := a.printJSON(map[string]any{"message_type": "summary", "to": to, "files": done.Files, "directories": done.Dirs, "links": done.Links,
			"others": done.Others, "bytes_written": done.Bytes, "failures": list, "failed": failed})
		if err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.stdout, "restored %s to %s: %d files, %d folders, %d links, %s\n", safe(from), safe(to), done.Files, done.Dirs, done.Links, bytesOf(done.Bytes))
		for i, f := range done.Failures {
			if i == maxShown {
				fmt.Fprintf(a.stderr, "  … and %d more (--json lists them)\n", failed-maxShown)
				break
			}
			fmt.Fprintf(a.stderr, "  not restored: %s: %v\n", safe(f.Path), f.Err)
		}
	}
	switch {
	case failed > 0 && done.Files+done.Dirs+done.Links+done.Others == 0:
		return errors.New("nothing was restored")
	case failed > 0:
		return errWarnings
	}
	return nil
}
