package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"cairn/integration/lab"
)

// Engine is a server that can be built, or was installed.
type Engine struct {
	name, module, command, version string
	// find gives the program of an engine that is not built; nil: it is.
	find func(ctx context.Context, progress io.Writer) (string, error)
	// start gives the command of the server itself, and launches what that needs
	// beside it.
	start func(ctx context.Context, binary string, s *Server, dir string) (*exec.Cmd, error)
	// user gives the command that makes a user without rights; nil: there is none.
	user func(s *Server, access, secret string) *exec.Cmd
}

// String names the engine.
func (e Engine) String() string { return e.name }

// ErrBuild: the server could not be built here. The text says why.
var ErrBuild = errors.New("the object storage server for the tests cannot be built")

// binary gives an engine's program, and builds it if it is not in the cache:
// 45 seconds of processor time for versitygw and 130 for MinIO, more if the
// go command has to compile the standard library, too.
func (e Engine) binary(ctx context.Context, progress io.Writer) (string, error) {
	if e.find != nil {
		return e.find(ctx, progress)
	}
	cache, err := lab.Cache()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "s3", e.name+"-"+e.version)
	file := filepath.Join(dir, e.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lab.LockCache(ctx, dir, progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(file); err == nil {
		return file, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	work, err := os.MkdirTemp(dir, "building-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	fmt.Fprintf(progress, "lab: building %s %s, once\n", e.name, e.version)
	started := time.Now()
	cmd := exec.CommandContext(ctx, "nice", "-n", "5", "go", "install", "-ldflags", "-s -w", e.module+"/"+e.command+"@"+e.version)
	if e.command == "" {
		cmd.Args[len(cmd.Args)-1] = e.module + "@" + e.version
	}
	cmd.Dir = work // not in a module
	cmd.Env = append(os.Environ(), "GOBIN="+work, "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s: %w: %s", ErrBuild, strings.Join(cmd.Args, " "), err, lastLines(out))
	}
	if err := os.Rename(filepath.Join(work, e.name), file); err != nil {
		return "", err
	}
	fmt.Fprintf(progress, "lab: %s is built, %.0f s, kept in %s\n", e.name, time.Since(started).Seconds(), file)
	return file, nil
}

func lastLines(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}
