package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	treeFolders = 2000
	treeFiles   = 100 // in each folder
	treeTurns   = 3
	treeVM      = "files01"
)

// tree measures a guest of 200,000 files: its first listing, and a walk with
// the attributes of every file, beside the kernel's loop mount of its disk.
func (b *bench) tree(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.work, "t")
	if err != nil {
		return err
	}
	c := *b.cairn
	defer func() { err = firstError(err, c.End()) }()
	if err := c.Begin(ctx, dir); err != nil {
		return err
	}
	disk := filepath.Join(dir, "files.raw")
	if err := makeTree(ctx, disk, filepath.Join(dir, "made")); err != nil {
		return err
	}
	if _, err := run(ctx, c.command("vm", "add", treeVM, "--qmp", filepath.Join(dir, "off.sock"), "--disk", "vda="+disk+",format=raw")); err != nil {
		return err
	}
	if err := b.treePoint(ctx, &c); err != nil {
		return err
	}
	for n := range treeTurns {
		if err := b.walkTrees(ctx, n, &c, disk); err != nil {
			return err
		}
	}
	return b.newPoint(ctx, &c, disk)
}

// treePoint backs the guest up.
func (b *bench) treePoint(ctx context.Context, c *cairn) error {
	do := c.command("backup", treeVM, "--json")
	do.warned = 3
	_, err := run(ctx, do)
	return err
}

// makeTree makes the guest's disk: one ext4 without partitions.
func makeTree(ctx context.Context, disk, dir string) error {
	f, err := os.Create(disk)
	if err != nil {
		return err
	}
	if err := firstError(f.Truncate(4<<30), f.Close(), os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	if _, err := run(ctx, command{path: "mkfs.ext4", args: []string{"-q", "-N", "262144", disk}}); err != nil {
		return err
	}
	return onLoop(ctx, disk, dir, "loop", func() error {
		if err := firstError(os.MkdirAll(filepath.Join(dir, "etc"), 0o755), os.WriteFile(filepath.Join(dir, "etc/fstab"), []byte("/dev/vda / ext4 defaults 0 1\n"), 0o644)); err != nil {
			return err
		}
		for i := range treeFolders {
			folder := filepath.Join(dir, fmt.Sprintf("srv/%02d/%02d", i/100, i%100))
			if err := os.MkdirAll(folder, 0o755); err != nil {
				return err
			}
			for k := range treeFiles {
				text := strings.Repeat(fmt.Sprintf("folder %d file %d\n", i, k), 1+k%30)
				if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("file-%03d.txt", k)), []byte(text), 0o644); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// onLoop does something with the kernel's mount of a disk.
func onLoop(ctx context.Context, disk, dir, options string, do func() error) (err error) {
	if _, err := run(ctx, command{path: "mount", args: []string{"-t", "ext4", "-o", options, disk, dir}}); err != nil {
		return err
	}
	defer func() { err = firstError(err, unmountLoop(dir)) }()
	return do()
}

func unmountLoop(dir string) error {
	if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("umount %s: %w: %s", dir, err, out)
	}
	return nil
}

// walk lists all names below a directory with their attributes, by find(1).
func walk(ctx context.Context, dir string) (files int, took time.Duration, err error) {
	start := time.Now()
	out, err := exec.CommandContext(ctx, "sh", "-c", `find "$0" -type f -printf '%s %m %U %G %T@ %n\n' | wc -l`, dir).Output()
	took = time.Since(start)
	if err == nil {
		files, err = strconv.Atoi(strings.TrimSpace(string(out)))
	}
	return files, took, err
}

func (b *bench) walkTrees(ctx context.Context, n int, c *cairn, disk string) error {
	record := func(tool string, files int, took time.Duration) {
		b.add(n, "walk", tool, values{filesPerS: float64(files) / took.Seconds()})
		b.check("walk", tool+" shows all files", files == treeFolders*treeFiles+1, fmt.Sprint(files))
	}
	if err := dropCaches(); err != nil {
		return err
	}
	m, err := c.mountOf(ctx, filepath.Join(c.dir, "mnt"), treeVM)
	if err != nil {
		return err
	}
	files, took, err := walk(ctx, filepath.Join(m.dir, treeVM, "latest/fs"))
	u, uerr := m.unmount()
	if err := firstError(err, uerr); err != nil {
		return err
	}
	record(c.Name(), files, took)
	b.out.Samples[len(b.out.Samples)-1].Values[rssBytes] = float64(u.rss)
	if err := dropCaches(); err != nil {
		return err
	}
	loop := filepath.Join(c.dir, "made")
	return onLoop(ctx, disk, loop, "ro,noload,loop", func() error {
		files, took, err := walk(ctx, loop)
		if err == nil {
			record("kernel", files, took)
		}
		return err
	})
}

// newPoint measures the first listing of fs/ of a point that was made while
// the mount stood.
func (b *bench) newPoint(ctx context.Context, c *cairn, disk string) (err error) {
	m, err := c.mountOf(ctx, filepath.Join(c.dir, "mnt"), treeVM)
	if err != nil {
		return err
	}
	defer func() {
		_, uerr := m.unmount()
		err = firstError(err, uerr)
	}()
	loop := filepath.Join(c.dir, "made")
	for n := range treeTurns {
		name := fmt.Sprintf("new-%d", n)
		err := onLoop(ctx, disk, loop, "loop", func() error { return os.WriteFile(filepath.Join(loop, name), []byte(name), 0o644) })
		if err != nil {
			return err
		}
		if err := b.treePoint(ctx, c); err != nil {
			return err
		}
		if err := pause(ctx, 1500*time.Millisecond); err != nil { // the mount looks for points once a second
			return err
		}
		start := time.Now()
		list, err := os.ReadDir(filepath.Join(m.dir, treeVM, "latest/fs"))
		if err != nil {
			return err
		}
		b.add(n, "new-point", c.Name(), values{firstLsS: time.Since(start).Seconds()})
		found := false
		for _, e := range list {
			found = found || e.Name() == name
		}
		b.check("new-point", "the listing is the new point's", found, name)
	}
	return nil
}
