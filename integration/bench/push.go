package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"cairn/guest"
	"cairn/integration/lab"
)

const (
	pushBytes  = 128 << 20 // put back by cairn
	writeBytes = 4 << 20   // written by the stock agent, which takes its time
	pushTurns  = 3
)

// push measures how fast a file goes back into a running guest: by cairn
// restore --into, all of it, verified; and by the stock agent's guest-file-write.
func (b *bench) push(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.work, "p")
	if err != nil {
		return err
	}
	c := *b.cairn
	defer func() { err = firstError(err, c.End()) }()
	if err := c.Begin(ctx, dir); err != nil {
		return err
	}
	agent := filepath.Join(dir, "cairn-agent")
	build := command{path: "go", args: []string{"build", "-o", agent, "cairn/cmd/cairn-agent"}, env: []string{"CGO_ENABLED=0"}}
	if _, err := run(ctx, build); err != nil {
		return err
	}
	assets, err := lab.Build(ctx, b.log.Writer())
	if err != nil {
		return err
	}
	disks, err := assets.Disks(ctx, dir)
	if err != nil {
		return err
	}
	g, err := lab.Start(ctx, lab.Options{Dir: filepath.Join(dir, "vm"), Assets: assets, Disks: disks, Inject: map[string]string{"cairn-agent": agent}})
	if err != nil {
		return err
	}
	defer g.Close()
	if _, err := run(ctx, c.command("vm", "add", guestVM, "--qmp", g.QMPSocket)); err != nil {
		return err
	}
	if _, err := g.Shell(ctx, fmt.Sprintf("head -c %d /dev/urandom >/srv/film && sync && sha256sum </srv/film >/run/sum", pushBytes)); err != nil {
		return err
	}
	do := c.command("backup", guestVM, "--json")
	do.warned = 3
	if _, err := run(ctx, do); err != nil {
		return err
	}
	for n := range pushTurns {
		if _, err := g.Shell(ctx, "rm /srv/film; sync"); err != nil {
			return err
		}
		start := time.Now()
		if _, err := run(ctx, c.command("restore", guestVM+"@latest:/srv/film", "--into", guestVM)); err != nil {
			return err
		}
		b.add(n, "push", c.Name(), values{pushMBs: pushBytes / 1e6 / time.Since(start).Seconds()})
		rate, err := stockRate(ctx, g.QGASocket)
		if err != nil {
			return err
		}
		b.add(n, "push", "qemu-ga", values{pushMBs: rate})
	}
	out, err := g.Shell(ctx, "sha256sum </srv/film | cmp - /run/sum && echo same")
	if err != nil {
		return err
	}
	b.check("push", "the file came back as it was", out == "same\n" || out == "same", out)
	return nil
}

// stockRate writes a file by the stock agent.
func stockRate(ctx context.Context, socket string) (float64, error) {
	a, err := guest.Dial(ctx, socket)
	if err != nil {
		return 0, err
	}
	defer a.Close()
	start := time.Now()
	random := rand.NewChaCha8([32]byte{1})
	if err := a.WriteFile(ctx, "/srv/stock", io.LimitReader(random, writeBytes), nil); err != nil {
		return 0, err
	}
	return writeBytes / 1e6 / time.Since(start).Seconds(), nil
}
