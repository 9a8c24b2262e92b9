package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// restic is measured with its defaults: compression auto, local backend.
type restic struct {
	program     string
	corpus      corpus
	dir         string
	first, next stage  // the first VM's and the second VM's disk
	newest      string // the first VM's newest snapshot
}

func (r *restic) Name() string { return "restic" }

func (r *restic) command(args ...string) command {
	return command{path: r.program, args: args, env: []string{
		"RESTIC_REPOSITORY=" + filepath.Join(r.dir, "repo"),
		"RESTIC_PASSWORD=bench",
		"RESTIC_CACHE_DIR=" + filepath.Join(r.dir, "cache"),
	}}
}

func (r *restic) Begin(ctx context.Context, dir string) error {
	r.dir, r.first.dir, r.next.dir = dir, filepath.Join(dir, "web01"), filepath.Join(dir, "web02")
	_, err := run(ctx, r.command("init"))
	return err
}

func (r *restic) Backup(ctx context.Context, s step) (values, error) {
	from := &r.first
	if s == stepSecond {
		from = &r.next
	}
	if err := from.show(s.image(r.corpus)); err != nil {
		return nil, err
	}
	if err := warm(from.file()); err != nil {
		return nil, err
	}
	settle()
	u, err := run(ctx, r.command("backup", "--json", "--quiet", "--host", "bench", from.dir))
	if err != nil {
		return nil, err
	}
	id, err := resticSnapshot(u.stdout)
	if err != nil {
		return nil, err
	}
	if s != stepSecond {
		r.newest = id
	}
	return u.values(), nil
}

// resticSnapshot finds the new snapshot's id in the JSON lines of `restic backup --json`.
func resticSnapshot(out []byte) (string, error) {
	var summary struct {
		Type string `json:"message_type"`
		ID   string `json:"snapshot_id"`
	}
	for _, line := range jsonLines(out) {
		if json.Unmarshal(line, &summary) == nil && summary.Type == "summary" && len(summary.ID) >= 8 {
			return summary.ID, nil
		}
	}
	return "", fmt.Errorf("restic named no snapshot: %.200s", out)
}

func (r *restic) Stored() (int64, error) { return treeBytes(filepath.Join(r.dir, "repo")) }

func (r *restic) Restore(ctx context.Context, dir string) (usage, string, error) {
	u, err := run(ctx, r.command("restore", "--quiet", "--sparse", "--target", dir, r.newest+":"+r.first.dir))
	return u, filepath.Join(dir, "vda.raw"), err
}

func (r *restic) Mount(ctx context.Context, dir string) (*mounted, error) {
	disk := filepath.Join(dir, "ids", r.newest[:8], r.first.dir, "vda.raw") // restic's short ids have 8 digits
	return mount(ctx, r.command("mount", dir), dir, disk)
}

func (r *restic) End() error {
	return firstError(r.first.hide(), r.next.hide(), os.RemoveAll(r.dir))
}
