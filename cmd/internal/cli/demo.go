package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/integration/lab"
)

func (a *app) demoCmd() *cobra.Command {
	keep := false
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole job on a real guest that is made for it",
		Long: `Show the whole job on a real guest: a small Debian-kernel VM is built and booted
(emulated, no KVM needed), backed up in full and by its changes, mounted, and a
file that is deleted in it comes back. All happens in one folder under /var/tmp
that is removed at the end.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := os.MkdirTemp("/var/tmp", "cairn-demo-")
			if err != nil {
				return err
			}
			d := &demo{a: a, dir: dir, start: a.now()}
			err = d.run(c.Context())
			if keep {
				fmt.Fprintf(a.stdout, "\nKept: %s\n", dir)
			} else {
				err = errors.Join(err, os.RemoveAll(dir))
			}
			return err
		},
	}
	c.Flags().BoolVar(&keep, "keep", false, "keep the folder")
	return c
}

// demo is one run of it.
type demo struct {
	a       *app
	dir     string
	start   time.Time
	chapter int
	guest   *lab.Guest
}

func (d *demo) title(format string, args ...any) {
	d.chapter++
	fmt.Fprintf(d.a.stdout, "\n── %d. %s ── %.0f s\n\n", d.chapter, fmt.Sprintf(format, args...), d.a.now().Sub(d.start).Seconds())
}

func (d *demo) tell(format string, args ...any) { fmt.Fprintf(d.a.stdout, format+"\n", args...) }

// cairn runs this program as a person would, and shows what it prints.
func (d *demo) cairn(ctx context.Context, argv ...string) (string, error) {
	fmt.Fprintf(d.a.stdout, "$ cairn %s\n", strings.Join(argv, " "))
	cmd := exec.CommandContext(ctx, d.a.exe, argv...)
	cmd.Dir = d.dir
	cmd.Env = append(os.Environ(), "CAIRN_REPOSITORY="+filepath.Join(d.dir, "repo"), "CAIRN_PASSWORD_FILE="+filepath.Join(d.dir, "passphrase"),
		"CAIRN_CONFIG_DIR="+filepath.Join(d.dir, "etc"), "CAIRN_CACHE_DIR="+filepath.Join(d.dir, "cache"), "CAIRN_STATE_DIR="+filepath.Join(d.dir, "state"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(d.a.stdout, &out), d.a.stdout
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("cairn %s: %w", argv[0], err)
	}
	return out.String(), nil
}

// inGuest runs a command on the guest's console and shows it.
func (d *demo) inGuest(ctx context.Context, command string) (string, error) {
	fmt.Fprintf(d.a.stdout, "guest# %s\n", command)
	out, err := d.guest.Shell(ctx, command)
	if err != nil {
		return out, fmt.Errorf("in the guest: %w", err)
	}
	if out != "" {
		fmt.Fprint(d.a.stdout, strings.TrimRight(out, "\n"), "\n")
	}
	return out, nil
}

func (d *demo) run(ctx context.Context) (err error) {
	for _, part := range []func(context.Context) error{d.boot, d.first, d.second, d.browse, d.accident, d.crash} {
		if err := part(ctx); err != nil {
			return errors.Join(err, d.end())
		}
	}
	if err := d.end(); err != nil {
		return err
	}
	d.tell("\nThat was the whole job, on a real guest, in %.0f s.", d.a.now().Sub(d.start).Seconds())
	return nil
}

// end takes the mount away and stops the guest.
func (d *demo) end() error {
	mnt := filepath.Join(d.dir, "mnt")
	var err error
	if _, serr := os.Stat(filepath.Join(mnt, "web01")); serr == nil {
		err = exec.Command("umount", mnt).Run()
	}
	if d.guest != nil {
		d.guest.Close()
	}
	return err
}

func (d *demo) boot(ctx context.Context) error {
	d.title("A real guest")
	assets, err := lab.Build(ctx, d.a.stdout)
	if err != nil {
		return err
	}
	vm := filepath.Join(d.dir, "vm")
	if err := os.Mkdir(vm, 0o700); err != nil {
		return err
	}
	disks, err := assets.Disks(ctx, vm)
	if err != nil {
		return err
	}
	d.tell("booting it under QEMU (emulated): root on vda (GPT, ext4), data on vdb (ext4), qemu-guest-agent and cairn-agent inside")
	started := d.a.now()
	if d.guest, err = lab.Start(ctx, lab.Options{Dir: vm, Assets: assets, Disks: disks, Name: "web01",
		Inject: map[string]string{"cairn-agent": d.a.findAgentBinary()}}); err != nil {
		return err
	}
	d.tell("up after %.1f s", d.a.now().Sub(started).Seconds())
	_, err = d.inGuest(ctx, "uname -r; mount | grep ' ext4 '; find / -xdev | wc -l")
	return err
}

func (d *demo) first(ctx context.Context) error {
	d.title("A repository, and the first restore point: all is read")
	if err := os.WriteFile(filepath.Join(d.dir, "passphrase"), []byte("correct horse battery staple\n"), 0o600); err != nil {
		return err
	}
	for _, argv := range [][]string{{"init"}, {"vm", "add", "web01", "--qmp", d.guest.QMPSocket}, {"doctor", "web01"}, {"backup", "web01"}} {
		if _, err := d.cairn(ctx, argv...); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) second(ctx context.Context) error {
	d.title("The guest works on; the next point reads only what changed")
	for _, command := range []string{
		"mkdir -p /srv/projects && echo 'three years of work' > /srv/projects/thesis.txt",
		"dd if=/dev/urandom of=/srv/projects/figures.bin bs=1M count=3 2>/dev/null; sync",
		"sha256sum /srv/projects/*",
		"mkdir -p /etc/cairn-agent && echo 'name = \"thesis\"' >/etc/cairn-agent/thesis.toml && echo 'paths = [\"/srv/projects\"]' >>/etc/cairn-agent/thesis.toml && echo 'pre = \"sync\"' >>/etc/cairn-agent/thesis.toml",
	} {
		if _, err := d.inGuest(ctx, command); err != nil {
			return err
		}
	}
	for _, argv := range [][]string{{"backup", "web01"}, {"points"}, {"apps", "web01@latest"}} {
		if _, err := d.cairn(ctx, argv...); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) browse(ctx context.Context) error {
	d.title("Every point is a directory tree")
	mnt := filepath.Join(d.dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		return err
	}
	if _, err := d.cairn(ctx, "mount", mnt); err != nil {
		return err
	}
	for _, argv := range [][]string{
		{"ls", "mnt/web01", "mnt/web01/latest"}, {"ls", "-l", "mnt/web01/latest/fs", "mnt/web01/latest/volumes"},
		{"ls", "-l", "mnt/web01/latest/fs/srv/projects"}, {"cat", "mnt/web01/latest/fs/srv/projects/thesis.txt"},
	} {
		if err := d.host(ctx, argv...); err != nil {
			return err
		}
	}
	return nil
}

// host runs a command of the host in the demo's folder.
func (d *demo) host(ctx context.Context, argv ...string) error {
	fmt.Fprintf(d.a.stdout, "$ %s\n", strings.Join(argv, " "))
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = d.dir, d.a.stdout, d.a.stdout
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", argv[0], err)
	}
	return nil
}

func (d *demo) accident(ctx context.Context) error {
	d.title("An accident, and the file comes back into the running guest")
	before, err := d.inGuest(ctx, "sha256sum /srv/projects/*")
	if err != nil {
		return err
	}
	if _, err := d.inGuest(ctx, "rm -r /srv/projects; sync; ls /srv"); err != nil {
		return err
	}
	d.tell("a copy to this host:")
	if _, err := d.cairn(ctx, "restore", "web01@latest:/srv/projects", "--to", "back"); err != nil {
		return err
	}
	if err := d.host(ctx, "sh", "-c", "sha256sum back/projects/*"); err != nil {
		return err
	}
	d.tell("and back into the running guest, through cairn-agent:")
	if _, err := d.cairn(ctx, "restore", "web01@latest:/srv/projects", "--into", "web01"); err != nil {
		return err
	}
	after, err := d.inGuest(ctx, "sha256sum /srv/projects/*")
	if err != nil {
		return err
	}
	if after != before {
		return fmt.Errorf("the guest has %q instead of %q", after, before)
	}
	return nil
}

func (d *demo) crash(ctx context.Context) error {
	d.title("QEMU is killed: the bitmaps are lost, the next point is right all the same")
	d.guest.Kill()
	d.tell("kill -9 of QEMU, and a restart")
	if err := d.guest.Restart(ctx); err != nil {
		return err
	}
	for _, argv := range [][]string{{"backup", "web01"}, {"backup", "web01"}, {"check", "--read-data"}, {"points"}} {
		if _, err := d.cairn(ctx, argv...); err != nil {
			return err
		}
	}
	return d.proof(ctx)
}

// proof compares a restored disk with the stopped VM's, byte for byte.
func (d *demo) proof(ctx context.Context) error {
	d.tell("\nThe proof: the VM is stopped, backed up with every block, deleted files too, and its disk compared with the restored one.")
	if err := d.guest.Command(ctx, "stop", nil, nil); err != nil {
		return err
	}
	if _, err := d.cairn(ctx, "backup", "web01", "--full-read", "--every-block"); err != nil {
		return err
	}
	if err := d.guest.CopyDisk(ctx, "vda", filepath.Join(d.dir, "truth.raw")); err != nil {
		return err
	}
	if _, err := d.cairn(ctx, "restore", "web01@latest", "--disk", "vda", "--to", "vda.raw"); err != nil {
		return err
	}
	if err := d.host(ctx, "cmp", "truth.raw", "vda.raw"); err != nil {
		return err
	}
	d.tell("equal")
	return nil
}
