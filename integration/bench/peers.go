package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
)

// peer is a program we compare with, built from the Go module proxy.
type peer struct{ name, module, version, pkg string }

func peers() []peer {
	return []peer{
		{"restic", "github.com/restic/restic", "v0.18.1", "./cmd/restic"},
		{"kopia", "github.com/kopia/kopia", "v0.22.3", "."},
	}
}

func findPeer(name string) (peer, error) {
	for _, p := range peers() {
		if p.name == name {
			return p, nil
		}
	}
	return peer{}, fmt.Errorf("no peer called %q: restic and kopia are", name)
}

// build answers the path of the peer's program and builds it when the cache has none. The module's folder is copied
// first: `go install module@version` is refused for modules with replace directives.
func (p peer) build(ctx context.Context, cache string) (string, error) {
	program := filepath.Join(cache, "bin", p.name+"-"+p.version)
	if _, err := os.Stat(program); err == nil || !errors.Is(err, iofs.ErrNotExist) {
		return program, err
	}
	u, err := run(ctx, command{path: "go", args: []string{"mod", "download", "-json", p.module + "@" + p.version}, env: []string{"GOWORK=off"}})
	if err != nil {
		return "", err
	}
	var got struct{ Dir string }
	if err := json.Unmarshal(u.stdout, &got); err != nil || got.Dir == "" {
		return "", fmt.Errorf("go mod download %s: no folder in its answer: %w", p.module, err)
	}
	source, err := os.MkdirTemp("", "cairn-bench-"+p.name+"-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(source)
	if err := os.CopyFS(source, os.DirFS(got.Dir)); err != nil {
		return "", err
	}
	// Nice: building kopia keeps two cores busy for minutes. -C must be the first flag.
	_, err = run(ctx, command{path: "nice", args: []string{"-n", "10", "go", "build", "-C", source, "-o", program, p.pkg}})
	return program, err
}
