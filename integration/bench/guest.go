package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"cairn/integration/lab"
)

const (
	guestTurns   = 3
	guestTurn    = 10 * time.Second // of writing, without backups and then with them
	guestVM      = "guest"
	guestLedger  = "64M"
	writerInject = "/run/inject/scribe"
)

// guest measures what a backup costs a guest: a program in it writes 4 KiB and flushes, again and again, and notes how
// long each took; without a backup, and while incremental backups run one behind the other.
func (b *bench) guest(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.work, "g")
	if err != nil {
		return err
	}
	c := *b.cairn
	defer func() { err = firstError(err, c.End()) }()
	if err := c.Begin(ctx, dir); err != nil {
		return err
	}
	g, err := b.bootGuest(ctx, dir)
	if err != nil {
		return err
	}
	defer g.Close()
	if _, err := run(ctx, c.command("vm", "add", guestVM, "--qmp", g.QMPSocket)); err != nil {
		return err
	}
	do := c.command("backup", guestVM, "--json")
	do.warned = 3
	if _, err := run(ctx, do); err != nil { // the full one
		return err
	}
	runs := 0
	for n := range guestTurns {
		idle, err := writeLatencies(ctx, g, func() error { return nil })
		if err != nil {
			return err
		}
		b.add(n, "guest", "idle", idle)
		busy, err := writeLatencies(ctx, g, func() error { runs++; _, err := run(ctx, do); return err })
		if err != nil {
			return err
		}
		b.add(n, "guest", c.Name(), busy)
	}
	b.check("guest", "backups ran while the guest wrote", runs >= guestTurns, fmt.Sprintf("%d runs", runs))
	return nil
}

// bootGuest boots the lab's guest with one more disk, which is allocated: what is measured is no growth of an image.
func (b *bench) bootGuest(ctx context.Context, dir string) (*lab.Guest, error) {
	assets, err := lab.Build(ctx, b.log.Writer())
	if err != nil {
		return nil, err
	}
	disks, err := assets.Disks(ctx, dir)
	if err != nil {
		return nil, err
	}
	ledger := lab.Disk{ID: "vdc", Format: "qcow2", Path: filepath.Join(dir, "vdc.qcow2")}
	if _, err := run(ctx, command{path: "qemu-img", args: []string{"create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", ledger.Path, guestLedger}}); err != nil {
		return nil, err
	}
	scribe := filepath.Join(dir, "scribe")
	build := command{path: "go", args: []string{"build", "-o", scribe, "cairn/integration/lab/ledger/scribe"}, env: []string{"CGO_ENABLED=0"}}
	if _, err := run(ctx, build); err != nil {
		return nil, err
	}
	return lab.Start(ctx, lab.Options{Dir: filepath.Join(dir, "vm"), Assets: assets, Disks: append(disks, ledger), Inject: map[string]string{"scribe": scribe}})
}

// writeLatencies lets the guest write for a turn, and calls meanwhile again and again until the turn is over.
func writeLatencies(ctx context.Context, g *lab.Guest, meanwhile func() error) (values, error) {
	_, err := g.Shell(ctx, fmt.Sprintf("rm -f /run/writes.done; (%s -sync-every 1 -duration %v -latencies /run/writes /dev/vdc >/run/scribe.log 2>&1; echo $? >/run/writes.done) </dev/null >/dev/null 2>&1 &", writerInject, guestTurn))
	if err != nil {
		return nil, err
	}
	for start := time.Now(); time.Since(start) < guestTurn; {
		if err := meanwhile(); err != nil {
			return nil, err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
	out, err := g.Shell(ctx, "for i in $(seq 100); do [ -e /run/writes.done ] && break; usleep 100000; done; cat /run/scribe.log; [ \"$(cat /run/writes.done)\" = 0 ] && cat /run/writes")
	if err != nil {
		return nil, err
	}
	return latencies(out)
}

// latencies reads the program's file: microseconds, one a line.
func latencies(text string) (values, error) {
	var ms []float64
	for line := range strings.Lines(text) {
		us, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("the guest's writer says: %w", err)
		}
		ms = append(ms, float64(us)/1000)
	}
	if len(ms) < 100 {
		return nil, errors.New("the guest wrote fewer than a hundred times: that is no measurement")
	}
	slices.Sort(ms)
	return values{writeP50Ms: percentile(ms, 50), writeP99Ms: percentile(ms, 99)}, nil
}
