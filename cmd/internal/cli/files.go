package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cairn/cmd/internal/wire"
	"cairn/fs/tree"
	"cairn/guest/filesystem"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// splitPath parts POINT:PATH; the path is the guest's, absolute, or
// volumes/NAME/PATH.
func splitPath(arg string) (point, p string, ok bool) {
	point, p, ok = strings.Cut(arg, ":")
	return point, cmp.Or(guestPath(p), "/"), ok
}

// viewAt opens the view of a point that a path of splitPath is in, and gives
// the path in it.
func viewAt(ctx context.Context, cat *wire.Catalogue, point, p string) (*tree.View, *restorepoint.Manifest, string, error) {
	name, in, ok := tree.InVolume(p)
	if !ok {
		v, m, err := guestView(ctx, cat, point)
		return v, m, p, err
	}
	m, err := cat.Select(ctx, point)
	if err != nil {
		return nil, nil, "", err
	}
	t, err := tree.Open(ctx, m, func(disk string) (restorepoint.Image, error) { return cat.Image(ctx, m, disk) })
	if err != nil {
		return nil, nil, "", err
	}
	v, err := t.VolumeNamed(ctx, name)
	if err != nil {
		return nil, nil, "", fmt.Errorf("point %s: %w", m.ID[:8], err)
	}
	return v, m, in, nil
}

// guestView opens the guest's own view of a point.
func guestView(ctx context.Context, cat *wire.Catalogue, point string) (*tree.View, *restorepoint.Manifest, error) {
	m, err := cat.Select(ctx, point)
	if err != nil {
		return nil, nil, err
	}
	t, err := tree.Open(ctx, m, func(disk string) (restorepoint.Image, error) { return cat.Image(ctx, m, disk) })
	if err != nil {
		return nil, nil, err
	}
	v, err := t.Guest(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("point %s: %w", m.ID[:8], err)
	}
	return v, m, nil
}

func (a *app) lsCmd() *cobra.Command {
	return &cobra.Command{Use: "ls POINT[:PATH]", Short: "List a guest's files in a restore point", Args: args(1, 1), ValidArgsFunction: a.completePointPath, RunE: func(c *cobra.Command, argv []string) error {
		return a.withGuestData(c.Context(), commandCache, func(_ *wire.Repo, cat *wire.Catalogue) error {
			point, p, _ := splitPath(argv[0])
			v, _, p, err := viewAt(c.Context(), cat, point, p)
			if err != nil {
				return err
			}
			list, err := wire.ListDir(c.Context(), v, p)
			return errors.Join(err, a.printList(list))
		})
	}}
}

func (a *app) printList(list []wire.File) error {
	if a.json {
		return a.printJSON(map[string]any{"entries": append([]wire.File{}, list...)})
	}
	for _, e := range list {
		if e.Mode == "" {
			fmt.Fprintf(a.stdout, "?????????? %s (%s)\n", safe(e.Name), e.Error)
			continue
		}
		target := ""
		if e.Target != "" {
			target = " -> " + safe(e.Target)
		}
		if _, err := fmt.Fprintf(a.stdout, "%s %3d %5d %5d %12d %s %s%s\n", e.Mode, e.Nlink, e.UID, e.GID, e.Size,
			e.Mtime.Format("2006-01-02 15:04:05"), safe(e.Name), target); err != nil {
			return err
		}
	}
	return nil
}

// safe keeps a guest's bytes from steering the terminal.
func safe(name string) string {
	return catalogue.Printable(name)
}

func (a *app) catCmd() *cobra.Command {
	return &cobra.Command{Use: "cat POINT:PATH", Short: "Print a file of a guest, or a folder as a tar stream", Args: args(1, 1), ValidArgsFunction: a.completePointPath, Long: `Print a file of a guest:
  cairn cat web01@latest:/etc/fstab

A path that ends in a slash is a folder; it is printed as a tar stream with
owners, modes, times to the nanosecond, hard links, extended attributes, ACLs and
holes, in the PAX format of GNU tar:
  cairn cat web01@latest:/srv/www/ | tar -x --xattrs --xattrs-include='*' --acls --numeric-owner
  cairn cat web01@latest:/srv/www/ | ssh web02 tar -x -C /srv --xattrs --numeric-owner
What tar cannot hold, or cannot be read, is listed and ends in exit code 3.`, RunE: func(c *cobra.Command, argv []string) error {
		point, p, ok := splitPath(argv[0])
		if !ok {
			return usagef("name a file: cairn cat POINT:PATH")
		}
		return a.withGuestData(c.Context(), commandCache, func(_ *wire.Repo, cat *wire.Catalogue) error {
			ctx := c.Context()
			v, m, p, err := viewAt(ctx, cat, point, p)
			if err != nil {
				return err
			}
			at, err := v.Walk(ctx, v.Root(), p, true)
			if err != nil {
				return err
			}
			if strings.HasSuffix(argv[0], "/") {
				return a.catTar(ctx, v, at, p, m.VM.Name)
			}
			f, err := v.Tree().Open(ctx, at.Node)
			if errors.Is(err, filesystem.ErrIsDir) {
				return usagef("%s is a directory: list it with cairn ls, copy it with cairn restore %s --to FOLDER, or print it as a tar stream with cairn cat %s/", p, argv[0], argv[0])
			}
			if err != nil {
				return err
			}
			_, err = io.CopyBuffer(struct{ io.Writer }{a.stdout}, contextReader{ctx, io.NewSectionReader(f, 0, f.Size())}, make([]byte, 1<<20))
			return err
		})
	}}
}

// catTar prints a folder as a tar stream.
func (a *app) catTar(ctx context.Context, v *tree.View, at *tree.Place, p, vm string) error {
	attr, err := v.Tree().Attr(ctx, at.Node)
	if err != nil {
		return err
	}
	if !attr.IsDir() {
		return usagef("%s is no directory: cairn cat without the slash prints a file", p)
	}
	if f, ok := a.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return usagef("a tar stream is not for a terminal: pipe it, as in cairn cat … | tar -x")
	}
	name := path.Base(p)
	if name == "/" {
		name = vm
	}
	out := bufio.NewWriterSize(a.stdout, 1<<20)
	done, err := tree.TarOut(ctx, v, at, out, name, nil)
	if err == nil {
		err = out.Flush()
	}
	a.sayLosses(done)
	if err == nil && len(done.Failures)+len(done.NotKept) > 0 {
		err = errWarnings
	}
	return err
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
