package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// QEMU is one version of QEMU to test with.
type QEMU struct {
	Version string // "10.0.2"
	Program string // for Options.QEMU, and for whoever starts QEMU by hand
}

const (
	qemuProgram = "qemu-system-x86_64"
	qemuFolder  = "qemu-backports" // in the lab's cache
	qemuWrapper = "qemu"           // in qemuFolder: the program with the folders of its firmware
)

// qemuPackages hold the program, its modules, and its firmware.
var qemuPackages = []string{"qemu-system-x86", "qemu-system-common", "qemu-system-data"}

// InstalledQEMU is the one that is installed on this machine.
func InstalledQEMU(ctx context.Context) (QEMU, error) {
	path, err := lookTool(qemuProgram)
	if err != nil {
		return QEMU{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return askVersion(ctx, path)
}

// BackportsQEMU is the one of Debian's backports: a newer one, beside the
// installed one. Nothing is installed: its packages are unpacked into the
// lab's cache, 13 MB by apt the first time ever. It runs with the libraries
// that the installed QEMU brought.
func BackportsQEMU(ctx context.Context, progress io.Writer) (QEMU, error) {
	if progress == nil {
		progress = io.Discard
	}
	cache, err := cacheDir()
	if err != nil {
		return QEMU{}, err
	}
	unlock, err := lockCache(ctx, cache, progress)
	if err != nil {
		return QEMU{}, err
	}
	defer unlock()
	wrapper := filepath.Join(cache, qemuFolder, qemuWrapper)
	if _, err := os.Stat(wrapper); errors.Is(err, fs.ErrNotExist) {
		err = unpackQEMU(ctx, filepath.Join(cache, qemuFolder), progress)
		if err != nil {
			return QEMU{}, fmt.Errorf("QEMU of Debian's backports: %w", err)
		}
	} else if err != nil {
		return QEMU{}, err
	}
	return askVersion(ctx, wrapper)
}

func askVersion(ctx context.Context, program string) (QEMU, error) {
	out, err := run(ctx, "", program, "--version")
	if err != nil {
		return QEMU{}, err
	}
	version, ok := parseVersion(string(out))
	if !ok {
		return QEMU{}, fmt.Errorf("%s --version says no version: %s", program, tail(out, 200))
	}
	return QEMU{Version: version, Program: program}, nil
}

// parseVersion takes "7.2.22" out of "QEMU emulator version 7.2.22 (Debian …)".
func parseVersion(text string) (string, bool) {
	_, rest, ok := strings.Cut(text, "version ")
	version := strings.FieldsFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if !ok || len(version) == 0 || !strings.HasPrefix(rest, version[0]) {
		return "", false
	}
	return version[0], true
}

// unpackQEMU builds beside the final directory and renames at the end.
func unpackQEMU(ctx context.Context, final string, progress io.Writer) error {
	work, err := os.MkdirTemp(filepath.Dir(final), "building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	debs, err := downloadBackports(ctx, filepath.Join(work, "apt"), progress)
	if err != nil {
		return err
	}
	out := filepath.Join(work, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	for _, deb := range debs {
		if _, err := run(ctx, "", "dpkg-deb", "-x", deb, out); err != nil {
			return err
		}
	}
	// The firmware is looked for in its own packages, then in those that the
	// installed QEMU brought: SeaBIOS is a package of its own.
	script := fmt.Sprintf("#!/bin/sh\nexec %s/usr/bin/%s -L %s/usr/share/qemu -L /usr/share/seabios -L /usr/share/qemu \"$@\"\n",
		final, qemuProgram, final)
	if err := os.WriteFile(filepath.Join(out, qemuWrapper), []byte(script), 0o755); err != nil {
		return err
	}
	return os.Rename(out, final)
}

// downloadBackports fetches the packages by lists of its own, so that the
// machine's stay as they are. apt checks the signatures.
func downloadBackports(ctx context.Context, dir string, progress io.Writer) ([]string, error) {
	for _, d := range []string{"lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	source, err := backportsSource(ctx)
	if err != nil {
		return nil, err
	}
	list := filepath.Join(dir, "sources.list")
	if err := os.WriteFile(list, []byte(source+"\n"), 0o644); err != nil {
		return nil, err
	}
	apt := []string{"-q", "-o", "Dir::Etc::sourcelist=" + list, "-o", "Dir::Etc::sourceparts=/dev/null", "-o", "Dir::State::lists=" + dir + "/lists",
		"-o", "Dir::Cache=" + dir + "/cache", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30"}
	fmt.Fprintf(progress, "lab: downloading %s (%s)\n", strings.Join(qemuPackages, ", "), source)
	if _, err := run(ctx, "", "apt-get", append(apt, "update")...); err != nil {
		return nil, err
	}
	debs := filepath.Join(dir, "debs")
	if _, err := run(ctx, debs, "apt-get", append(append(apt, "download"), qemuPackages...)...); err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err == nil && len(found) != len(qemuPackages) {
		err = fmt.Errorf("apt-get download left %d packages, %d were asked for", len(found), len(qemuPackages))
	}
	return found, err
}

// backportsSource is the backports' line of sources.list, on the mirror that
// the machine uses for this release of Debian.
func backportsSource(ctx context.Context) (string, error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	codename := ""
	for line := range bytes.Lines(release) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "VERSION_CODENAME="); ok {
			codename = strings.Trim(name, `"`)
		}
	}
	out, err := run(ctx, "", "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages")
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(out) {
		if f := strings.Fields(string(line)); len(f) == 3 && f[1] == codename && f[2] == "main" {
			return fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s-backports main", f[0], codename), nil
		}
	}
	return "", fmt.Errorf("apt has no source for the release %q of Debian", codename)
}
