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
	"path/filepath"
	"strings"
	"time"
)

// DebianLabel is the label of the Debian root's filesystem.
const DebianLabel = "debian"

// DebianLogin is what its serial console says when it is up.
const DebianLogin = "debian-lab login:"

// debianPackages make a bootable Debian of debootstrap's minbase, with the
// guest agent. The kernel is the lab's.
const debianPackages = "systemd-sysv,udev,kmod,dbus,qemu-guest-agent"

const (
	debianSuite = "bookworm"
	debianBytes = 1 << 30
	// debianRecipe is a part of the cache's key: count it up when the rest of
	// this file changes what is built.
	debianRecipe = 1
)

// Debian gives the image (qcow2) of a real Debian root with systemd, without a
// partition table: Options.Root is "LABEL=" + DebianLabel. It is made by
// debootstrap once, in less than a minute and with some 60 MB of downloads, and
// kept in the cache.
func Debian(ctx context.Context, progress io.Writer) (string, error) {
	if progress == nil {
		progress = io.Discard
	}
	if err := Available(); err != nil {
		return "", err
	}
	if _, err := lookTool("debootstrap"); err != nil {
		return "", fmt.Errorf("%w: missing: debootstrap; `make deps` as root installs it", ErrUnavailable)
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
	if t.err != nil {
		return t.err
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
