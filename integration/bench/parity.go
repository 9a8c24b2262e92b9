package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const (
	parityRuns  = 5
	parityShape = "4+2"
	// onePlace is cairn into one folder, as the row names it.
	onePlace = "one-place"
)

// parity measures a full backup into six folders with parity against one into one folder, in turns: of the same disk,
// each into a new repository. All lie on one filesystem here, so that what six devices would share out one does.
func (b *bench) parity(ctx context.Context) error {
	names := []string{b.cairn.Name(), onePlace}
	for n := range parityRuns {
		for _, name := range rotate(names, n) {
			dir := filepath.Join(b.work, fmt.Sprintf("parity-%d-%s", n, name))
			v, err := b.parityRun(ctx, dir, name != onePlace)
			if err != nil {
				return err
			}
			b.add(n, "parity", name, v)
		}
	}
	return nil
}

// parityRun is one backup into a new repository.
func (b *bench) parityRun(ctx context.Context, dir string, spread bool) (_ values, err error) {
	c := *b.cairn
	if spread {
		c.shards = parityShape
	}
	defer func() { err = errors.Join(err, c.End()) }()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := c.Begin(ctx, dir); err != nil {
		return nil, err
	}
	return c.Backup(ctx, stepFull)
}
