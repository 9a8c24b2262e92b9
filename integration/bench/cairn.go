package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// cairn is the program under test, used as an operator would.
type cairn struct {
	program   string
	corpus    corpus
	dir       string
	web, next *machine // the first and the second VM; nil when not running
	report    func(row, name string, ok bool, detail string)
	verified  bool   // the incremental's restored disk was compared once
	shards    string // parity of the repository, as --shards; "" is one folder
}

// backupSummary is a line of `cairn backup --json`.
type backupSummary struct {
	Type        string `json:"message_type"`
	VM          string `json:"vm"`
	Read        string `json:"read"`
	Reason      string `json:"reason"`
	Dirty       int64  `json:"bytes_dirty"`
	BytesRead   int64  `json:"bytes_read"`
	Stored      int64  `json:"bytes_stored"`
	PausedUs    int64  `json:"paused_us"`
	Consistency string `json:"consistency"`
	DurationMs  int64  `json:"duration_ms"`
}

// UUIDs of the VMs; they need only differ.
const (
	webUUID  = "33333333-3333-4333-8333-333333333333"
	nextUUID = "44444444-4444-4444-8444-444444444444"
	idleUUID = "55555555-5555-4555-8555-555555555555"
	manyUUID = "66666666-6666-4666-8666-666666666666"
)

func (c *cairn) Name() string { return "cairn" }

func (c *cairn) command(args ...string) command {
	return command{path: c.program, args: args, env: []string{
		"CAIRN_REPOSITORY=" + filepath.Join(c.dir, "repo"),
		"CAIRN_PASSWORD_FILE=" + filepath.Join(c.dir, "password"),
		"CAIRN_CONFIG_DIR=" + filepath.Join(c.dir, "config"),
		"CAIRN_CACHE_DIR=" + filepath.Join(c.dir, "cache"),
		"CAIRN_STATE_DIR=" + filepath.Join(c.dir, "state"),
	}}
}

func (c *cairn) Begin(ctx context.Context, dir string) error {
	c.dir = dir
	if err := os.WriteFile(filepath.Join(dir, "password"), []byte("bench\n"), 0o600); err != nil {
		return err
	}
	init := []string{"init", "-r", filepath.Join(dir, "repo"), "--password-file", filepath.Join(dir, "password")}
	if c.shards != "" {
		init = append(init, "--shards", c.shards)
		for i := range 6 {
			init = append(init, "--place", filepath.Join(dir, fmt.Sprint("place", i)))
		}
	}
	u, err := run(ctx, c.command(init...))
	if err != nil {
		return err
	}
	key := recoveryKey.Find(u.stdout)
	if key == nil {
		return errors.New("cairn init printed no recovery key")
	}
	return os.WriteFile(filepath.Join(dir, keyFile), append(key, '\n'), 0o600)
}

// recoveryKey is an age identity, as init prints it once. As a secret it needs no slow derivation.
var recoveryKey = regexp.MustCompile(`AGE-SECRET-KEY-1[0-9A-Z]+`)

const keyFile = "key" // the recovery key, as a --password-file

// start makes a qcow2 disk of a raw image and runs a VM on it.
func (c *cairn) start(ctx context.Context, name, image, uuid string) (*machine, error) {
	disk := filepath.Join(c.dir, name+".qcow2")
	if _, err := run(ctx, command{path: "qemu-img", args: []string{"convert", "-f", "raw", "-O", "qcow2", image, disk}}); err != nil {
		return nil, err
	}
	return c.startOn(ctx, name, disk, uuid)
}

func (c *cairn) startOn(ctx context.Context, name, disk, uuid string, more ...string) (*machine, error) {
	m, err := startMachine(ctx, name, c.dir, disk, uuid, more...)
	if err != nil {
		return nil, err
	}
	if _, err := run(ctx, c.command("vm", "add", name, "--qmp", m.socket)); err != nil {
		return nil, errors.Join(err, m.stop())
	}
	return m, nil
}

func (c *cairn) Backup(ctx context.Context, s step) (values, error) {
	m, err := c.prepare(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := warm(m.disk); err != nil {
		return nil, err
	}
	settle()
	v, sum, err := c.backup(ctx, m)
	if err != nil {
		return nil, err
	}
	c.judge(s, sum)
	if s == stepDay && !c.verified {
		c.verified = true
		return v, c.compareDay(ctx)
	}
	return v, nil
}

// prepare brings a VM's disk into the state that the step backs up.
func (c *cairn) prepare(ctx context.Context, s step) (*machine, error) {
	var err error
	switch s {
	case stepFull:
		c.web, err = c.start(ctx, "web01", c.corpus.base, webUUID)
	case stepSecond:
		c.next, err = c.start(ctx, "web02", c.corpus.clone, nextUUID)
		return c.next, err
	case stepDay:
		err = c.web.write(ctx, c.corpus.day, c.corpus.dirty)
	case stepLost:
		if err = c.web.write(ctx, c.corpus.base, c.corpus.dirty); err == nil {
			var lost int
			lost, err = c.web.loseBitmaps()
			c.report("lost", "there was a bitmap to lose", lost > 0, fmt.Sprintf("%d removed", lost))
		}
	}
	return c.web, err
}

// backup runs `cairn backup` once.
func (c *cairn) backup(ctx context.Context, m *machine) (values, backupSummary, error) {
	before, err := m.cpu()
	if err != nil {
		return nil, backupSummary{}, err
	}
	do := c.command("backup", m.name, "--json")
	do.warned = 3 // without an agent in the guest no point is better than crash-consistent, which is a warning
	u, err := run(ctx, do)
	if err != nil {
		return nil, backupSummary{}, err
	}
	after, err := m.cpu()
	if err != nil {
		return nil, backupSummary{}, err
	}
	sum, err := parseSummary(u.stdout)
	if err != nil {
		return nil, backupSummary{}, err
	}
	v := u.values()
	v[qemuCPUS] = (after - before).Seconds()
	v[readBytes], v[dirtyBytes], v[storedBytes] = float64(sum.BytesRead), float64(sum.Dirty), float64(sum.Stored)
	v[pausedS] = float64(sum.PausedUs) / 1e6
	v[selfS] = float64(sum.DurationMs) / 1e3
	return v, sum, nil
}

// parseSummary finds the summary among the JSON lines of a backup.
func parseSummary(out []byte) (backupSummary, error) {
	lines := jsonLines(out)
	for i := len(lines) - 1; i >= 0; i-- {
		var sum backupSummary
		if json.Unmarshal(lines[i], &sum) == nil && sum.Type == "summary" {
			return sum, nil
		}
	}
	return backupSummary{}, fmt.Errorf("cairn printed no summary: %.300s", out)
}

// jsonLines splits an output into its lines that begin an object.
func jsonLines(out []byte) [][]byte {
	var lines [][]byte
	for line := range bytes.Lines(out) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] == '{' {
			lines = append(lines, line)
		}
	}
	return lines
}

// judge checks that a step was the kind of run that it claims to measure.
func (c *cairn) judge(s step, sum backupSummary) {
	kind := map[step]string{stepFull: "full", stepDay: "incremental", stepLost: "full", stepSecond: "full"}[s]
	c.report(s.String(), "the run was "+kind, sum.Read == kind, fmt.Sprintf("%s: %s", sum.Read, sum.Reason))
	if s == stepDay {
		want := c.corpus.dirtyBytes()
		c.report("day", "bytes_read equals bytes_dirty equals what was written", sum.BytesRead == sum.Dirty && sum.Dirty == want,
			fmt.Sprintf("read %d, dirty %d, written %d", sum.BytesRead, sum.Dirty, want))
	}
}

// compareDay restores what the incremental made and compares it with the corpus.
func (c *cairn) compareDay(ctx context.Context) error {
	dir, err := os.MkdirTemp(c.dir, "day-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	_, file, err := c.Restore(ctx, dir)
	if err != nil {
		return err
	}
	same, err := sameContent(file, c.corpus.day)
	if err == nil {
		c.report("day", "the restored disk equals day1.raw", same, file)
	}
	return err
}

func (c *cairn) Stored() (int64, error) { return treeBytes(filepath.Join(c.dir, "repo")) }

func (c *cairn) Restore(ctx context.Context, dir string) (usage, string, error) {
	file := filepath.Join(dir, "vda.raw")
	u, err := run(ctx, c.command("restore", "web01@latest", "--disk", "vda", "--to", file))
	return u, file, err
}

func (c *cairn) Mount(ctx context.Context, dir string) (*mounted, error) {
	return c.mountOf(ctx, dir, "web01")
}

// mountOf looks for a VM's disk; flags are added to the command.
func (c *cairn) mountOf(ctx context.Context, dir, vm string, flags ...string) (*mounted, error) {
	return mount(ctx, c.command(append([]string{"mount", "--foreground", dir}, flags...)...), dir, filepath.Join(dir, vm, "latest", "disks", "vda.raw"))
}

func (c *cairn) End() error {
	var errs []error
	for _, m := range []**machine{&c.web, &c.next} {
		if *m != nil {
			errs = append(errs, (*m).stop())
			*m = nil
		}
	}
	return firstError(append(errs, os.RemoveAll(c.dir))...)
}

// smallTree finds /srv/small in a mount: in the guest's own view, or else in the one volume that holds it.
func smallTree(m *mounted) (string, error) {
	point := filepath.Dir(filepath.Dir(m.disk))
	for _, pattern := range []string{"fs/srv/small", "volumes/*/srv/small"} {
		found, err := filepath.Glob(filepath.Join(point, pattern))
		if err != nil {
			return "", err
		}
		if len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("no srv/small in fs or in a volume of %s", point)
}

// idle backs up a VM with a 1 TiB disk that nobody writes to, and so makes many points cheaply.
func (c *cairn) idle(ctx context.Context, runs int, each func(values, backupSummary)) (err error) {
	disk := filepath.Join(c.dir, "idle.qcow2")
	if _, err := run(ctx, command{path: "qemu-img", args: []string{"create", "-q", "-f", "qcow2", disk, "1T"}}); err != nil {
		return err
	}
	m, err := c.startOn(ctx, "idle", disk, idleUUID)
	if err != nil {
		return err
	}
	defer func() { err = firstError(err, m.stop()) }()
	for range runs + 1 { // the first is full
		v, sum, err := c.backup(ctx, m)
		if err != nil {
			return err
		}
		each(v, sum)
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
