package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const (
	randomReads  = 2000
	randomBudget = 40 * time.Second
	idleRuns     = 10 // those that are measured; further ones only make points
	manyOpens    = 3
	copySize     = "size=1g" // of the tmpfs that small files are copied to
)

// bench is one sitting.
type bench struct {
	corpus corpus
	tools  []tool
	cairn  *cairn // nil when only peers are measured
	rows   map[string]bool
	work   string // a fresh directory on a real filesystem
	points int    // for the mount with many points
	log    *log.Logger
	out    *outcome
	digest string // of the small files as the kernel reads them
}

// run measures all rounds, then the rows that have no peers.
func (b *bench) run(ctx context.Context, rounds int) error {
	for n := range rounds {
		if len(b.steps()) == 0 {
			break
		}
		if err := b.round(ctx, n); err != nil {
			return fmt.Errorf("round %d: %w", n+1, err)
		}
		b.out.Rounds = n + 1
	}
	if b.cairn != nil && (b.rows["idle"] || b.rows["mount"] && b.points > 0) {
		return b.idle(ctx)
	}
	return nil
}

// steps are the backups that the chosen rows need; the idle row needs none of them.
func (b *bench) steps() []step {
	r := b.rows
	if !(r["full"] || r["day"] || r["lost"] || r["second"] || r["restore"] || r["mount"] || r["copy"]) {
		return nil
	}
	needed := []step{stepFull}
	if r["day"] || r["lost"] { // without the day before, a peer would find its file unchanged and read nothing
		needed = append(needed, stepDay)
	}
	if r["lost"] {
		needed = append(needed, stepLost)
	}
	if r["second"] {
		needed = append(needed, stepSecond)
	}
	return needed
}

// newest is what the first VM's disk holds after the steps.
func (b *bench) newest() string {
	if b.rows["day"] && !b.rows["lost"] {
		return b.corpus.day
	}
	return b.corpus.base
}

// round runs every chosen row once with fresh repositories. The tools alternate within each row.
func (b *bench) round(ctx context.Context, n int) (err error) {
	dir, err := os.MkdirTemp(b.work, "r")
	if err != nil {
		return err
	}
	defer func() { err = firstError(err, os.RemoveAll(dir)) }()
	order := rotate(b.tools, n)
	for _, t := range order {
		own := filepath.Join(dir, t.Name())
		if err := os.Mkdir(own, 0o700); err != nil {
			return err
		}
		defer func() { err = firstError(err, t.End()) }()
		if err := t.Begin(ctx, own); err != nil {
			return fmt.Errorf("%s: %w", t.Name(), err)
		}
	}
	for _, s := range b.steps() {
		if err := b.each(order, func(t tool) error { return b.backup(ctx, n, t, s) }); err != nil {
			return err
		}
	}
	return b.readers(ctx, n, order, dir)
}

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

func rotate[T any](s []T, by int) []T {
	if len(s) == 0 {
		return nil
	}
	by %= len(s)
	return append(slices.Clone(s[by:]), s[:by]...)
}

func (b *bench) each(tools []tool, do func(tool) error) error {
	for _, t := range tools {
		if err := do(t); err != nil {
			return fmt.Errorf("%s: %w", t.Name(), err)
		}
	}
	return nil
}

// add records a sample.
func (b *bench) add(n int, row, tool string, v values) {
	b.out.Samples = append(b.out.Samples, sample{Row: row, Tool: tool, Round: n, Load: load(), Values: v})
	b.log.Printf("round %d %-9s %-7s %v", n+1, row, tool, v)
}

// check records a comparison.
func (b *bench) check(row, name string, ok bool, detail string) {
	b.out.Checks = append(b.out.Checks, check{row, name, ok, detail})
	if !ok {
		b.log.Printf("FAILED: %s: %s (%s)", row, name, detail)
	}
}

func (b *bench) backup(ctx context.Context, n int, t tool, s step) error {
	before, err := t.Stored()
	if err != nil {
		return err
	}
	v, err := t.Backup(ctx, s)
	if err != nil {
		return err
	}
	after, err := t.Stored()
	if err != nil {
		return err
	}
	v[growthBytes], v[repoBytes] = float64(after-before), float64(after)
	b.add(n, s.String(), t.Name(), v)
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
	return b.each(order, func(t tool) error {
		return b.mounting(ctx, n, "rand", t, dir, func(m *mounted) (values, error) { return readRandom(m.disk, offsets, randomBudget) })
	})
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

// idle measures the incremental of a large disk that nobody writes to, and the mount of the points that this makes.
func (b *bench) idle(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.work, "i")
	if err != nil {
		return err
	}
	c := *b.cairn
	defer func() { err = firstError(err, c.End()) }()
	if err := c.Begin(ctx, dir); err != nil {
		return err
	}
	run, allIncremental := 0, true
	err = c.idle(ctx, max(idleRuns, b.points-1), func(v values, sum backupSummary) {
		if run > 0 && run <= idleRuns {
			b.add(0, "idle", c.Name(), v)
		}
		allIncremental = allIncremental && (run == 0 || sum.Read == "incremental" && sum.Dirty == 0)
		run++
	})
	if err != nil {
		return err
	}
	b.check("idle", "every further run was incremental and found nothing dirty", allIncremental, fmt.Sprintf("%d runs", run-1))
	if !b.rows["mount"] || b.points == 0 {
		return nil
	}
	return b.openMany(ctx, &c, dir, run)
}

func (b *bench) openMany(ctx context.Context, c *cairn, dir string, points int) error {
	for range manyOpens {
		if err := dropCaches(); err != nil {
			return err
		}
		m, err := c.mountOf(ctx, filepath.Join(dir, "mnt"), "idle")
		if err != nil {
			return err
		}
		u, err := m.unmount()
		if err != nil {
			return err
		}
		v := m.opened
		v[rssBytes], v[pointsCount] = float64(u.rss), float64(points)
		b.add(0, "open-many", c.Name(), v)
	}
	return nil
}
