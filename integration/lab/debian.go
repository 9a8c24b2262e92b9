package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// DebianLabel is the label of the Debian root's filesystem.
const DebianLabel = "debian"

// DebianLogin is what its serial console says when it is up.
const DebianLogin = "debian-lab login:"

// debianPackages make a bootable Debian of debootstrap's minbase, with the
// guest agent and a database. The kernel is the lab's.
const debianPackages = "systemd-sysv,udev,kmod,dbus,qemu-guest-agent,acl,attr,postgresql-15"

const (
	debianSuite = "bookworm"
	debianBytes = 2 << 30
	// debianRecipe is a part of the cache's key: count it up when the rest of
	// this file changes what is built.
	debianRecipe = 2
)

// Debian gives the image (qcow2) of a real Debian root with systemd, without a
// partition table: Options.Root is "LABEL=" + DebianLabel. It runs PostgreSQL 15,
// has a container "web" of Podman's that was made and never started, and a user
// anna with a home (fillHome). It is made by debootstrap once, in about a minute
// and with some 100 MB of downloads, and kept in the cache.
func Debian(ctx context.Context, progress io.Writer) (string, error) {
	if progress == nil {
		progress = io.Discard
	}
	if err := Available(); err != nil {
		return "", err
	}
	for _, name := range []string{"debootstrap", "podman"} {
		if _, err := lookTool(name); err != nil {
			return "", fmt.Errorf("%w: missing: %s; `make deps` as root installs it", ErrUnavailable, name)
		}
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	unlock, err := lockCache(ctx, cache, progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	key := sha256.Sum256(fmt.Appendln(nil, debianSuite, debianPackages, debianBytes, debianRecipe))
	final := filepath.Join(cache, "debian-"+hex.EncodeToString(key[:8])+".qcow2")
	if _, err := os.Stat(final); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return final, err
	}
	start := time.Now()
	fmt.Fprintln(progress, "lab: making a Debian root (debootstrap)")
	if err := buildDebian(ctx, cache, final); err != nil {
		return "", fmt.Errorf("building the lab's Debian in %s: %w", cache, err)
	}
	fmt.Fprintf(progress, "lab: the Debian is built, %.1f s, kept as %s\n", time.Since(start).Seconds(), final)
	return final, nil
}

// buildDebian builds beside the final name and renames at the end.
func buildDebian(ctx context.Context, cache, final string) error {
	work, err := os.MkdirTemp(cache, "building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	root := filepath.Join(work, "root")
	args := []string{"--variant=minbase", "--include=" + debianPackages, debianSuite, root}
	if mirror := os.Getenv("CAIRN_LAB_MIRROR"); mirror != "" {
		args = append(args, mirror)
	}
	if _, err := run(ctx, "", "debootstrap", args...); err != nil {
		log, rerr := os.ReadFile(filepath.Join(root, "debootstrap", "debootstrap.log"))
		return errors.Join(err, rerr, errors.New(tail(log, 600)))
	}
	t := &tree{root: root}
	t.file("etc/hostname", 0o644, strings.TrimSuffix(DebianLogin, " login:")+"\n")
	t.file("etc/fstab", 0o644, "LABEL="+DebianLabel+" / ext4 defaults,errors=remount-ro 0 1\n")
	t.note(os.RemoveAll(t.path("var/cache/apt/archives")))
	t.dir("var/cache/apt/archives/partial", 0o755)
	fillHome(t)
	if t.err != nil {
		return t.err
	}
	if err := makeContainer(ctx, work, root); err != nil {
		return err
	}
	raw, out := filepath.Join(work, "debian.raw"), filepath.Join(work, "debian.qcow2")
	if err := sparseFile(raw, debianBytes); err != nil {
		return err
	}
	if _, err := run(ctx, "", "mkfs.ext4", "-F", "-q", "-b", "4096", "-L", DebianLabel, "-d", root,
		"-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", raw); err != nil {
		return err
	}
	if err := toQcow2(ctx, raw, out); err != nil {
		return err
	}
	return os.Rename(out, final)
}

// DebianDisk makes a disk over the Debian root, in dir.
func DebianDisk(ctx context.Context, dir, image string) (Disk, error) {
	return overlay(ctx, dir, "vda", image)
}

// fillHome makes the user anna and what is in her home.
func fillHome(t *tree) {
	t.appendTo("etc/passwd", "anna:x:1000:1000:Anna,,,:/home/anna:/bin/bash\n")
	t.appendTo("etc/group", "anna:x:1000:\n")
	t.appendTo("etc/shadow", "anna:!:19000:0:99999:7:::\n")
	t.dir("home/anna", 0o750)
	t.dir("home/anna/.config", 0o700)
	t.file("home/anna/.bashrc", 0o644, "alias ll='ls -l'\n")
	t.file("home/anna/.config/editor", 0o600, "vi\n")
	t.file("home/anna/thesis.txt", 0o640, strings.Repeat("a line of the thesis\n", 20_000))
	t.hardlink("home/anna/thesis-too.txt", "home/anna/thesis.txt")
	t.symlink("home/anna/latest", "thesis.txt")
	t.sparse("home/anna/disk.img", 64<<20, map[int64]string{0: "begin", 40 << 20: "middle"})
	t.xattr("home/anna/.bashrc", "user.origin", []byte("the lab"))
	t.xattr("home/anna/thesis.txt", "system.posix_acl_access", aclForUser(33))
	for _, name := range []string{"", ".config", ".bashrc", ".config/editor", "thesis.txt", "latest", "disk.img"} {
		t.owner(path.Join("home/anna", name), 1000, 1000)
	}
}

// makeContainer has the host's podman make an image, a volume and a container
// in the tree's own storage. The container is never started.
func makeContainer(ctx context.Context, work, root string) error {
	t := &tree{root: filepath.Join(work, "image")}
	t.note(os.Mkdir(t.root, 0o755))
	t.dir("bin", 0o755)
	t.dir("etc", 0o755)
	t.file("etc/motd", 0o644, "in the container\n")
	if t.err != nil {
		return t.err
	}
	busybox, err := lookTool("busybox")
	if err != nil {
		return err
	}
	if err := copyFile(t.path("bin/busybox"), busybox, 0o755); err != nil {
		return err
	}
	runDir, err := os.MkdirTemp("", "lab-podman-") // Podman wants a short name
	if err != nil {
		return err
	}
	defer os.RemoveAll(runDir)
	archive := filepath.Join(work, "image.tar")
	if _, err := run(ctx, "", "tar", "-C", t.root, "-cf", archive, "."); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"import", archive, "localhost/tiny:1"},
		{"volume", "create", "data"},
		{"create", "--name", "web", "--network", "none", "-v", "data:/data", "localhost/tiny:1", "/bin/busybox", "sleep", "1000"},
	} {
		common := []string{"--root", filepath.Join(root, "var/lib/containers/storage"), "--runroot", filepath.Join(runDir, "run"),
			"--tmpdir", filepath.Join(runDir, "tmp"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"}
		if _, err := run(ctx, "", "podman", append(common, args...)...); err != nil {
			return err
		}
	}
	return nil
}
