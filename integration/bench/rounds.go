package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
)

const (
	idleRuns  = 10 // those that are measured; further ones only make points
	manyOpens = 3
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
	if b.cairn == nil {
		return nil
	}
	if b.rows["idle"] || b.rows["mount"] && b.points > 0 {
		if err := b.idle(ctx); err != nil {
			return err
		}
	}
	for row, measure := range map[string]func(context.Context) error{"disks": b.disks, "nbd": b.nbd, "guest": b.guest, "push": b.push, "tree": b.tree, "parity": b.parity} {
		if !b.rows[row] {
			continue
		}
		if err := measure(ctx); err != nil {
			return fmt.Errorf("row %s: %w", row, err)
		}
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

// openMany mounts by passphrase and by key.
func (b *bench) openMany(ctx context.Context, c *cairn, dir string, points int) error {
	more := values{pointsCount: float64(points)}
	for range manyOpens {
		if err := b.open(ctx, 0, "open-many", c, dir, "idle", more); err != nil {
			return err
		}
		if err := b.openByKey(ctx, 0, "open-many-key", c, dir, "idle", more); err != nil {
			return err
		}
	}
	return nil
}
