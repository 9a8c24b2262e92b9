package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/fs"
	"cairn/index/restorepoint"
)

// bootFlags are those of `cairn boot`.
type bootFlags struct {
	dir, name            string
	finish, detach, stop bool
	grace                time.Duration
}

func (a *app) bootCmd() *cobra.Command {
	var o bootFlags
	c := &cobra.Command{
		Use:   "boot [POINT]",
		Short: "Start a VM at once from a restore point, and copy it in place while it runs",
		Long: `Start a VM from a restore point at once: nothing is copied first. Its disks are
read from the repository by a mount; what it writes is kept in a folder.

  cairn boot web01@latest --dir /srv/web01     until the VM ends, or Ctrl-C
  cairn boot --dir /srv/web01                  go on with it, with all it wrote
  cairn boot --dir /srv/web01 --finish         copy what is still in the point while
                                               the VM runs; after that it needs
                                               neither the mount nor the repository
  cairn boot --dir /srv/web01 --stop           end it

It has a name, a UUID and network addresses of its own, so it can run beside the
original. Should a disk fail (the repository is gone, the folder is full), the VM
stops and its guest sees no error. QEMU and the mount outlive this command when
it is killed: the second line above takes the VM up again.`,
		Args:              args(0, 1),
		ValidArgsFunction: a.completePoints,
		RunE: func(c *cobra.Command, argv []string) error {
			point := strings.Join(argv, "")
			switch {
			case point == "" && o.dir == "":
				return usagef("name a restore point to boot, or with --dir the folder of a VM that was booted before")
			case o.stop && (o.finish || point != ""):
				return usagef("--stop goes with --dir alone")
			}
			return a.boot(c.Context(), point, o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.dir, "dir", "", "folder of the VM (default: in CAIRN_STATE_DIR, by its name)")
	f.StringVar(&o.name, "name", "", "of the VM (default: the VM's with -boot)")
	f.BoolVar(&o.finish, "finish", false, "copy what is still in the point while the VM runs")
	f.BoolVar(&o.detach, "detach", false, "return when the VM runs (with --finish: when it is copied)")
	f.BoolVar(&o.stop, "stop", false, "end the VM and take its mount away; what it wrote stays")
	f.DurationVar(&o.grace, "grace", 20*time.Second, "how long the guest may take to shut down before QEMU is ended; 0: do not ask it")
	return c
}

func (a *app) boot(ctx context.Context, point string, o bootFlags) error {
	if o.dir == "" {
		vm, _, _ := strings.Cut(point, "@")
		name := o.name
		if name == "" {
			name = vm + "-boot"
		}
		if err := config.CheckName(name); err != nil {
			return usagef("say with --dir where the VM's folder shall be (%w)", err)
		}
		o.dir = filepath.Join(a.dirs().State, "boot", name)
	}
	b, fresh, err := job.OpenBoot(o.dir, a.say)
	if err != nil {
		return err
	}
	if fresh && point == "" {
		return usagef("no VM was booted in %s yet: name the restore point, too", o.dir)
	}
	if err := b.Lock(); err != nil {
		return err
	}
	defer b.Unlock()
	if o.stop {
		return a.stopBoot(ctx, b, o.grace)
	}
	wasRunning := !fresh && b.Running()
	if err := a.bootOrAttach(ctx, b, fresh, point, o); err != nil {
		return err
	}
	if o.finish {
		if err := a.finishBoot(ctx, b); err != nil {
			return err
		}
	}
	b.Unlock()
	if o.detach || o.finish && wasRunning {
		return nil
	}
	return a.superviseBoot(ctx, b, o.grace)
}

// bootOrAttach sees to it that the VM runs.
func (a *app) bootOrAttach(ctx context.Context, b *job.Boot, fresh bool, point string, o bootFlags) error {
	if fresh {
		if err := a.prepareBoot(ctx, b, point, o.name); err != nil {
			return errors.Join(err, unmount(ctx, b.MountDir()))
		}
	} else if point != "" {
		if err := a.samePoint(ctx, b, point); err != nil {
			return err
		}
	}
	start := a.now()
	if !b.Running() {
		if !b.State.Finished {
			if err := a.mountForBoot(ctx, b); err != nil {
				return err
			}
		}
		if err := b.Start(ctx); err != nil {
			return err
		}
	}
	return a.printBoot(b, a.now().Sub(start))
}

// prepareBoot makes a new VM's folder.
func (a *app) prepareBoot(ctx context.Context, b *job.Boot, point, name string) error {
	return a.withGuestData(ctx, commandCache, func(_ *wire.Repo, cat *wire.Catalogue) error {
		m, err := cat.Select(ctx, point)
		if err != nil {
			return err
		}
		if name == "" {
			name = m.VM.Name + "-boot"
		}
		repo, err := wire.AbsolutePlace(a.repo)
		if err != nil {
			return err
		}
		b.State.Repo = repo
		if err := a.mountForBoot(ctx, b); err != nil {
			return err
		}
		images, err := imagesInMount(b.MountDir(), m)
		if err != nil {
			return err
		}
		return b.Prepare(m, repo, name, images)
	})
}

// samePoint refuses to boot another point in a folder that has one.
func (a *app) samePoint(ctx context.Context, b *job.Boot, point string) error {
	return a.withCatalogue(ctx, commandCache, func(_ *wire.Repo, cat *wire.Catalogue) error {
		m, err := cat.Select(ctx, point)
		if err != nil {
			return err
		}
		if m.ID != b.State.Point {
			return usagef("in %s is a VM of another point (%s of %s) with all that it wrote: go on with it by leaving the point out, or name another folder", b.Dir, b.State.Point[:8], b.State.VM)
		}
		return nil
	})
}

// mountForBoot mounts the repository in the VM's folder, if it is not.
func (a *app) mountForBoot(ctx context.Context, b *job.Boot) error {
	dir := b.MountDir()
	if err := os.MkdirAll(dir, 0o700); err != nil && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, os.ErrExist) {
		return err
	}
	if mounted(dir) {
		return nil
	}
	if a.repo == "" {
		a.repo = b.State.Repo
	}
	argv := []string{"mount", dir, "--foreground", "--repo", a.repo}
	if a.passwordFile != "" {
		argv = append(argv, "--password-file", a.passwordFile)
	}
	if a.caFile != "" {
		argv = append(argv, "--ca-file", a.caFile)
	}
	if b.State.Machine != nil && slices.Contains(b.State.Machine.Args, "-runas") { // QEMU is then another user
		argv = append(argv, "--allow-other")
	}
	_, err := a.startMount(ctx, argv)
	return err
}

// mounted says whether a mount that answers is there.
func mounted(dir string) bool {
	var st unix.Statfs_t
	const fuseMagic = 0x65735546
	return unix.Statfs(dir, &st) == nil && st.Type == fuseMagic
}

// unmount takes a mount away that nobody uses any more.
func unmount(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmountTimeout)
	defer cancel()
	for {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // none is there
			return nil
		case !errors.Is(err, unix.EBUSY):
			return fmt.Errorf("umount %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is still in use (fuser -vm %s says by whom): end that, then: umount %s", dir, dir, dir)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// imagesInMount finds the folder of a point's disks: of points of one second
// the later ones have a number.
func imagesInMount(mnt string, m *restorepoint.Manifest) (string, error) {
	vm := filepath.Join(mnt, fs.VMFolder(m.VM.Name))
	list, err := os.ReadDir(vm)
	if err != nil {
		return "", err
	}
	for _, e := range list {
		if !strings.HasPrefix(e.Name(), restorepoint.DirName(m.Time)) {
			continue
		}
		var p struct {
			ID string `json:"id"`
		}
		text, err := readLimited(filepath.Join(vm, e.Name(), "point.json"))
		if err == nil && json.Unmarshal(text, &p) == nil && p.ID == m.ID {
			return filepath.Join(vm, e.Name(), "disks"), nil
		}
	}
	return "", fmt.Errorf("point %s is not in the mount at %s", m.ID[:8], mnt)
}

// readLimited reads a small file.
func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const most = 64 << 20
	return io.ReadAll(io.LimitReader(f, most))
}

// bootMessage is what `cairn boot --json` says of the VM.
type bootMessage struct {
	Type string `json:"message_type"` // "booted", "finished", "ended"
	Dir  string `json:"dir"`
	QMP  string `json:"qmp,omitempty"`
	*job.BootState
}

func (a *app) printBoot(b *job.Boot, took time.Duration) error {
	s := &b.State
	if a.json {
		return a.printJSON(bootMessage{"booted", b.Dir, b.Socket(), s})
	}
	fmt.Fprintf(a.stdout, "%s runs: %s as of %s, process %d, after %.1f s\n", s.Name, s.VM, s.Time.Format("2006-01-02 15:04:05 UTC"), s.PID, took.Seconds())
	for _, x := range s.Machine.Sockets {
		fmt.Fprintf(a.stdout, "  %s: %s\n", safe(x.What), safe(x.Path))
	}
	fmt.Fprintf(a.stdout, "  monitor: %s (cairn vm add %s --qmp %s)\n", b.Socket(), s.Name, b.Socket())
	a.printMachine(s.Machine)
	if s.Finished {
		fmt.Fprintf(a.stdout, "  it is copied in full and needs the repository no more\n")
		return nil
	}
	fmt.Fprintf(a.stdout, "  what it writes is kept in %s\n  copy the rest while it runs: cairn boot --dir %s --finish\n", b.Dir, b.Dir)
	return nil
}

// finishBoot copies the rest, and takes the mount away.
func (a *app) finishBoot(ctx context.Context, b *job.Boot) error {
	start := a.now()
	if err := b.Finish(ctx, a.reporter().Work); err != nil {
		return err
	}
	if err := unmount(ctx, b.MountDir()); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(bootMessage{"finished", b.Dir, b.Socket(), &b.State})
	}
	fmt.Fprintf(a.stdout, "copied in %.1f s: %s runs on from %s and needs the repository no more\n", a.now().Sub(start).Seconds(), b.State.Name, b.Dir)
	return nil
}

// superviseBoot stays until the VM ends, or ends it when this command is to.
func (a *app) superviseBoot(ctx context.Context, b *job.Boot, grace time.Duration) error {
	a.say("Ctrl-C ends the VM")
	err := b.Watch(ctx)
	if err != nil {
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace+2*time.Minute)
		defer cancel()
		if serr := a.stopBoot(sctx, b, grace); serr != nil {
			return serr
		}
		return err
	}
	return a.endBoot(ctx, b)
}

func (a *app) stopBoot(ctx context.Context, b *job.Boot, grace time.Duration) error {
	if err := b.Stop(ctx, grace); err != nil {
		return err
	}
	return a.endBoot(ctx, b)
}

// endBoot tidies up after a VM that has ended.
func (a *app) endBoot(ctx context.Context, b *job.Boot) error {
	if err := unmount(ctx, b.MountDir()); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(bootMessage{"ended", b.Dir, "", &b.State})
	}
	a.say("%s has ended; go on with it: cairn boot --dir %s", b.State.Name, b.Dir)
	return nil
}
