package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// kopia is measured with zstd-fastest, which its users choose for disk images; its default is no compression.
type kopia struct {
	program     string
	corpus      corpus
	dir         string
	first, next stage
	newest      string // the first VM's newest root object
}

func (k *kopia) Name() string { return "kopia" }

func (k *kopia) command(args ...string) command {
	return command{path: k.program, args: append([]string{"--no-progress"}, args...), env: []string{
		"KOPIA_PASSWORD=bench",
		"KOPIA_CONFIG_PATH=" + filepath.Join(k.dir, "repository.config"),
		"KOPIA_CACHE_DIRECTORY=" + filepath.Join(k.dir, "cache"),
		"KOPIA_LOG_DIR=" + filepath.Join(k.dir, "log"),
		"KOPIA_CHECK_FOR_UPDATES=false",
	}}
}

func (k *kopia) Begin(ctx context.Context, dir string) error {
	k.dir, k.first.dir, k.next.dir = dir, filepath.Join(dir, "web01"), filepath.Join(dir, "web02")
	if _, err := run(ctx, k.command("repository", "create", "filesystem", "--path", filepath.Join(dir, "repo"))); err != nil {
		return err
	}
	_, err := run(ctx, k.command("policy", "set", "--global", "--compression=zstd-fastest"))
	return err
}

func (k *kopia) Backup(ctx context.Context, s step) (values, error) {
	from := &k.first
	if s == stepSecond {
		from = &k.next
	}
	if err := from.show(s.image(k.corpus)); err != nil {
		return nil, err
	}
	if err := warm(from.file()); err != nil {
		return nil, err
	}
	settle()
	u, err := run(ctx, k.command("snapshot", "create", "--json", from.dir))
	if err != nil {
		return nil, err
	}
	root, err := kopiaRoot(u.stdout)
	if err != nil {
		return nil, err
	}
	if s != stepSecond {
		k.newest = root
	}
	return u.values(), nil
}

// kopiaRoot finds the root object in the JSON object of `kopia snapshot create --json`.
func kopiaRoot(out []byte) (string, error) {
	var snapshot struct {
		Root struct {
			Object string `json:"obj"`
		} `json:"rootEntry"`
	}
	for _, line := range jsonLines(out) {
		if json.Unmarshal(line, &snapshot) == nil && snapshot.Root.Object != "" {
			return snapshot.Root.Object, nil
		}
	}
	return "", fmt.Errorf("kopia named no root object: %.200s", out)
}

func (k *kopia) Stored() (int64, error) { return treeBytes(filepath.Join(k.dir, "repo")) }

func (k *kopia) Restore(ctx context.Context, dir string) (usage, string, error) {
	u, err := run(ctx, k.command("restore", "--write-sparse-files", k.newest, dir))
	return u, filepath.Join(dir, "vda.raw"), err
}

func (k *kopia) Mount(ctx context.Context, dir string) (*mounted, error) {
	return mount(ctx, k.command("mount", k.newest, dir), dir, filepath.Join(dir, "vda.raw"))
}

func (k *kopia) End() error {
	return firstError(k.first.hide(), k.next.hide(), os.RemoveAll(k.dir))
}
