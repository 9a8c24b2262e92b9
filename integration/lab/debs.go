package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"
)

// debs are the two Debian packages that the guest is made of.
type debs struct {
	kernel string // linux-image-…-cloud-amd64_….deb
	agent  string // qemu-guest-agent_….deb
}

// maxPackedFile bounds one file taken out of a package.
const maxPackedFile = 64 << 20

// findDebs returns the packages of dir and downloads those that are missing.
// What was once downloaded is used for ever, so later runs need no network.
func findDebs(ctx context.Context, dir string, progress io.Writer) (debs, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return debs{}, err
	}
	kernel, err := findDeb(dir, "linux-image-*-cloud-amd64_*.deb")
	if err != nil {
		return debs{}, err
	}
	if kernel == "" {
		if kernel, err = downloadDeb(ctx, dir, "linux-image-*-cloud-amd64_*.deb", cloudKernelPackage, progress); err != nil {
			return debs{}, err
		}
	}
	agent, err := findDeb(dir, "qemu-guest-agent_*.deb")
	if err != nil {
		return debs{}, err
	}
	if agent == "" {
		name := func(context.Context) (string, error) { return "qemu-guest-agent", nil }
		if agent, err = downloadDeb(ctx, dir, "qemu-guest-agent_*.deb", name, progress); err != nil {
			return debs{}, err
		}
	}
	return debs{kernel: kernel, agent: agent}, nil
}

func findDeb(dir, pattern string) (string, error) {
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) == 0 {
		return "", err
	}
	sort.Strings(found)
	return found[len(found)-1], nil
}

// downloadDeb lets apt fetch a package, which also checks its signature. A
// machine without package lists gets them first.
func downloadDeb(ctx context.Context, dir, pattern string, name func(context.Context) (string, error), progress io.Writer) (string, error) {
	work, err := os.MkdirTemp(dir, "download-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	err = aptDownload(ctx, work, name, progress)
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(progress, "lab: refreshing the package lists (apt-get update)")
		if _, uerr := run(ctx, "", "apt-get", "-q", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30", "update"); uerr != nil {
			return "", fmt.Errorf("the lab needs Debian's packages once: %w", errors.Join(err, uerr))
		}
		err = aptDownload(ctx, work, name, progress)
	}
	if err != nil {
		return "", fmt.Errorf("the lab needs Debian's packages once: %w", err)
	}
	got, err := findDeb(work, pattern)
	if err != nil {
		return "", err
	}
	if got == "" {
		return "", fmt.Errorf("apt-get download left no %s in %s", pattern, work)
	}
	final := filepath.Join(dir, filepath.Base(got))
	return final, os.Rename(got, final)
}

func aptDownload(ctx context.Context, dir string, name func(context.Context) (string, error), progress io.Writer) error {
	pkg, err := name(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(progress, "lab: downloading %s\n", pkg)
	_, err = run(ctx, dir, "apt-get", "-q", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30", "-o", "APT::Sandbox::User=root", "download", pkg)
	return err
}

// cloudKernelPackage asks which kernel linux-image-cloud-amd64 stands for.
// It is the *cloud* kernel because there ext4 is built in.
func cloudKernelPackage(ctx context.Context) (string, error) {
	out, err := run(ctx, "", "apt-cache", "depends", "--important", "linux-image-cloud-amd64")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if _, pkg, ok := strings.Cut(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(pkg, "linux-image-") {
			return pkg, nil
		}
	}
	return "", errors.New("apt knows no package linux-image-cloud-amd64; the lab needs Debian 12 or later")
}

// readDeb returns the regular files of a package that want accepts, by their
// path without the leading slash.
func readDeb(ctx context.Context, deb string, want func(name string) bool) (map[string][]byte, error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	files, readErr := readTar(tar.NewReader(stdout), want)
	// The rest must be taken too, or dpkg-deb ends with a broken pipe.
	_, drainErr := io.Copy(io.Discard, stdout)
	if err := errors.Join(readErr, drainErr, cmd.Wait()); err != nil {
		return nil, fmt.Errorf("package %s: %w: %s", deb, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return files, nil
}

func readTar(r *tar.Reader, want func(name string) bool) (map[string][]byte, error) {
	files := make(map[string][]byte)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "./"))
		if h.Typeflag != tar.TypeReg || !want(name) {
			continue
		}
		if h.Size > maxPackedFile {
			return nil, fmt.Errorf("file %s has %d bytes, more than %d", name, h.Size, maxPackedFile)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		files[name] = data
	}
}
