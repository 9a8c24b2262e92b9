package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	randomReads  = 2000
	randomBudget = 40 * time.Second
	copySize     = "size=1g" // of the tmpfs that small files are copied to
)

// readers runs the rows that read what the steps stored.
func (b *bench) readers(ctx context.Context, n int, order []tool, dir string) error {
	if b.rows["restore"] {
		if err := b.restoreAll(ctx, n, order, dir); err != nil {
			return err
		}
	}
	if b.rows["mount"] {
		if err := b.mountAll(ctx, n, order, dir); err != nil {
			return err
		}
	}
	if b.rows["copy"] {
		return b.copyAll(ctx, n, order, dir)
	}
	return nil
}

// restoreAll restores by every tool, and copies the sparse file by cp for comparison.
func (b *bench) restoreAll(ctx context.Context, n int, order []tool, dir string) error {
	plain := func(ctx context.Context, to string) (usage, string, error) {
		file := filepath.Join(to, "vda.raw")
		u, err := run(ctx, command{path: "cp", args: []string{"--sparse=always", b.newest(), file}})
		return u, file, err
	}
	for _, t := range order {
		if err := b.restore(ctx, n, t.Name(), dir, t.Restore); err != nil {
			return fmt.Errorf("%s: restore: %w", t.Name(), err)
		}
	}
	return b.restore(ctx, n, "cp", dir, plain)
}

func (b *bench) restore(ctx context.Context, n int, name, dir string, do func(context.Context, string) (usage, string, error)) error {
	to, err := os.MkdirTemp(dir, "restore-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(to)
	if err := dropCaches(); err != nil {
		return err
	}
	u, file, err := do(ctx, to)
	if err != nil {
		return err
	}
	v, flush := u.values(), time.Now()
	settle()
	v[durableS] = (u.wall + time.Since(flush)).Seconds()
	b.add(n, "restore", name, v)
	if n > 0 {
		return nil
	}
	same, err := sameContent(file, b.newest())
	if err == nil {
		b.check("restore", name+"'s disk equals the corpus", same, b.newest())
	}
	return err
}

// mounting mounts with cold caches, lets use measure, and adds what the server cost meanwhile.
func (b *bench) mounting(ctx context.Context, n int, row string, t tool, dir string, use func(*mounted) (values, error)) error {
	if err := dropCaches(); err != nil {
		return err
	}
	m, err := t.Mount(ctx, filepath.Join(dir, "mnt"))
	if err != nil {
		return err
	}
	v, err := b.charged(m, use)
	if err != nil {
		return errors.Join(err, m.abandon())
	}
	u, err := m.unmount()
	if err != nil {
		return err
	}
	b.add(n, "open", t.Name(), m.opened)
	v[rssBytes] = max(float64(u.rss), v[rssBytes])
	b.add(n, row, t.Name(), v)
	return nil
}

func (b *bench) charged(m *mounted, use func(*mounted) (values, error)) (values, error) {
	before, err := m.serverCPU()
	if err != nil {
		return nil, err
	}
	v, err := use(m)
	if err != nil {
		return nil, err
	}
	after, err := m.serverCPU()
	if err == nil {
		v[serverCPUS] = (after - before).Seconds()
	}
	return v, err
}

func (b *bench) mountAll(ctx context.Context, n int, order []tool, dir string) error {
	f, err := os.Open(b.newest())
	if err != nil {
		return err
	}
	extents, err := dataExtents(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	offsets := randomOffsets(extents, randomReads, int64(n)+1)
	err = b.each(order, func(t tool) error {
		return b.mounting(ctx, n, "seq", t, dir, func(m *mounted) (values, error) { return readSequential(m.disk) })
	})
	if err != nil {
		return err
	}
	if b.cairn != nil {
		if err := b.openByKey(ctx, n, "open-key", b.cairn, dir, "web01", nil); err != nil {
			return err
		}
	}
	return b.each(order, func(t tool) error {
		return b.mounting(ctx, n, "rand", t, dir, func(m *mounted) (values, error) { return readRandom(m.disk, offsets, randomBudget) })
	})
}

// openByKey measures only how long cairn's mount takes to answer when it is opened by a key, not by a passphrase.
func (b *bench) openByKey(ctx context.Context, n int, row string, c *cairn, dir, vm string, more values) error {
	return b.open(ctx, n, row, c, dir, vm, more, "--password-file", filepath.Join(c.dir, keyFile))
}

// open measures only how long cairn's mount takes to answer; more is added to the sample.
func (b *bench) open(ctx context.Context, n int, row string, c *cairn, dir, vm string, more values, flags ...string) error {
	if err := dropCaches(); err != nil {
		return err
	}
	m, err := c.mountOf(ctx, filepath.Join(dir, "mnt"), vm, flags...)
	if err != nil {
		return err
	}
	u, err := m.unmount()
	if err != nil {
		return err
	}
	v := m.opened
	v[rssBytes] = float64(u.rss)
	maps.Copy(v, more)
	b.add(n, row, c.Name(), v)
	return nil
}

// copyAll copies the small files: from the kernel's loop mount of the image, from cairn's own reading of the guest's
// filesystem, and from the kernel's loop mount of the file in a peer's mount.
func (b *bench) copyAll(ctx context.Context, n int, order []tool, dir string) (err error) {
	kernel := func() error {
		if err := dropCaches(); err != nil {
			return err
		}
		v, err := b.copyLoop(ctx, b.newest(), dir)
		if err != nil {
			return fmt.Errorf("kernel: %w", err)
		}
		b.add(n, "copy", "kernel", v)
		return nil
	}
	if n%2 == 0 { // first and last in turn; first in the first round, whose digest the others are compared with
		if err := kernel(); err != nil {
			return err
		}
	} else {
		defer func() { err = firstError(err, kernel()) }()
	}
	return b.each(order, func(t tool) error {
		return b.mounting(ctx, n, "copy", t, dir, func(m *mounted) (values, error) {
			if t != tool(b.cairn) {
				return b.copyLoop(ctx, m.disk, dir)
			}
			from, err := smallTree(m)
			if err != nil {
				return nil, err
			}
			return b.copy(ctx, "cairn", from, dir)
		})
	})
}

func (b *bench) copyLoop(ctx context.Context, image, dir string) (v values, err error) {
	at := filepath.Join(dir, "loop")
	if err := loopMount(ctx, image, at); err != nil {
		return nil, err
	}
	defer func() { err = firstError(err, syscall.Unmount(at, 0)) }()
	return b.copy(ctx, image, filepath.Join(at, "srv/small"), dir)
}

// copy runs cp -a into an empty tmpfs and compares what arrived with what the kernel's loop mount gave.
func (b *bench) copy(ctx context.Context, name, from, dir string) (v values, err error) {
	to := filepath.Join(dir, "copy")
	if err := os.MkdirAll(to, 0o700); err != nil {
		return nil, err
	}
	if err := syscall.Mount("tmpfs", to, "tmpfs", 0, copySize); err != nil {
		return nil, fmt.Errorf("mount a tmpfs: %w", err)
	}
	defer func() { err = firstError(err, syscall.Unmount(to, 0)) }()
	u, err := run(ctx, command{path: "cp", args: []string{"-a", from, filepath.Join(to, "small")}})
	if err != nil {
		return nil, err
	}
	digest, files, err := treeDigest(to)
	if err != nil {
		return nil, err
	}
	if b.digest == "" {
		b.digest = digest
		b.check("copy", "the kernel's mount gave all files", files == smallFiles, fmt.Sprint(files))
	} else if digest != b.digest || name == "cairn" {
		b.check("copy", "same names, modes, times and contents as by the kernel's mount of the raw file", digest == b.digest, fmt.Sprintf("%s, %d files", name, files))
	}
	v = values{wallS: u.wall.Seconds(), cpuS: u.cpu.Seconds(), filesPerS: float64(files) / u.wall.Seconds()}
	return v, nil
}
