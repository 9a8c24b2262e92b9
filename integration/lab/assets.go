package lab

import (
	"bufio"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// buildSources is everything that decides what a build holds; it is part of
// the cache's key, so a change of it makes a new build.
//
//go:embed files tree.go programs.go image.go bootrd.go cpio.go
var buildSources embed.FS

// Assets is one finished build of the guest. Its files are shared by every
// guest that runs and must not be changed.
type Assets struct {
	Dir           string // where the files lie
	Kernel        string // ELF vmlinux, or the bzImage if that could not be unpacked
	Bootrd        string // first root: mounts the root disk
	RootImage     string // qcow2, base of vda
	DataImage     string // qcow2, base of vdb
	KernelVersion string // as in uname -r
}

// packages is what the build takes out of Debian's packages and this machine.
type packages struct {
	kernelVersion string
	vmlinuz       []byte
	modules       map[string][]byte // "kernel/fs/xfs/xfs.ko" → contents
	agent         []byte            // qemu-ga
	busybox       []byte
}

// Build returns the guest's kernel and images, and makes them if they are not in
// the cache: seconds of work and, the first time ever, a download of 27 MB by
// apt. Progress gets a line per step; nil discards them.
func Build(ctx context.Context, progress io.Writer) (*Assets, error) {
	if progress == nil {
		progress = io.Discard
	}
	if err := Available(); err != nil {
		return nil, err
	}
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	unlock, err := lockCache(ctx, cache, progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	found, err := findDebs(ctx, filepath.Join(cache, "debs"), progress)
	if err != nil {
		return nil, err
	}
	key, err := cacheKey(found)
	if err != nil {
		return nil, err
	}
	final := filepath.Join(cache, "guest-"+key)
	if a, err := openAssets(final); err == nil {
		return a, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	start := time.Now()
	if err := buildInto(ctx, final, found, progress); err != nil {
		return nil, fmt.Errorf("building the lab's guest in %s: %w", cache, err)
	}
	fmt.Fprintf(progress, "lab: the guest is built, %.1f s, kept in %s\n", time.Since(start).Seconds(), final)
	return openAssets(final)
}

// cacheDir returns a directory that can be written to, and makes it.
func cacheDir() (string, error) {
	if dir := os.Getenv("CAIRN_LAB_CACHE"); dir != "" {
		return dir, os.MkdirAll(dir, 0o755)
	}
	const system = "/var/cache/cairn-lab"
	if err := os.MkdirAll(system, 0o755); err == nil && unix.Access(system, unix.W_OK) == nil {
		return system, nil
	}
	home, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for the lab's cache; set CAIRN_LAB_CACHE: %w", err)
	}
	dir := filepath.Join(home, "cairn-lab")
	return dir, os.MkdirAll(dir, 0o755)
}

// lockCache keeps two processes from building the same thing.
func lockCache(ctx context.Context, cache string, progress io.Writer) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	told := false
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("locking the lab's cache %s: %w", cache, err)
		}
		if !told {
			told = true
			fmt.Fprintln(progress, "lab: waiting for another process that builds the guest")
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for the lab's cache %s: %w", cache, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// cacheKey names a build by what goes into it.
func cacheKey(d debs) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, filepath.Base(d.kernel), filepath.Base(d.agent))
	info, err := os.Stat(busyboxPath)
	if err != nil {
		return "", err
	}
	fmt.Fprintln(h, info.Size())
	err = fs.WalkDir(buildSources, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := buildSources.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(data), data)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)[:8]), err
}

// openAssets opens a finished build; fs.ErrNotExist if there is none.
func openAssets(dir string) (*Assets, error) {
	version, err := os.ReadFile(filepath.Join(dir, "kernel-version"))
	if err != nil {
		return nil, err
	}
	return &Assets{
		Dir: dir, Kernel: filepath.Join(dir, "vmlinux"), Bootrd: filepath.Join(dir, "bootrd.cpio"),
		RootImage: filepath.Join(dir, "root.qcow2"), DataImage: filepath.Join(dir, "srv.qcow2"),
		KernelVersion: strings.TrimSpace(string(version)),
	}, nil
}

// buildInto builds beside the final directory and renames at the end, so that
// an interrupted build leaves nothing that looks finished.
func buildInto(ctx context.Context, final string, d debs, progress io.Writer) error {
	work, err := os.MkdirTemp(filepath.Dir(final), "building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	out := filepath.Join(work, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	fmt.Fprintln(progress, "lab: unpacking the kernel and the guest agent")
	pkgs, err := readPackages(ctx, d)
	if err != nil {
		return err
	}
	if err := writeKernel(out, pkgs, progress); err != nil {
		return err
	}
	fmt.Fprintln(progress, "lab: making the guest's disks")
	if err := buildRootImage(ctx, work, filepath.Join(out, "root.qcow2"), pkgs); err != nil {
		return err
	}
	if err := buildDataImage(ctx, work, filepath.Join(out, "srv.qcow2")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "kernel-version"), []byte(pkgs.kernelVersion+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(out, final)
}

func readPackages(ctx context.Context, d debs) (*packages, error) {
	files, err := readDeb(ctx, d.kernel, func(name string) bool {
		return strings.HasPrefix(name, "boot/vmlinuz-") || strings.HasSuffix(name, ".ko") && wantedModule(name)
	})
	if err != nil {
		return nil, err
	}
	p := &packages{modules: make(map[string][]byte)}
	for name, data := range files {
		if version, ok := strings.CutPrefix(name, "boot/vmlinuz-"); ok {
			p.kernelVersion, p.vmlinuz = version, data
			continue
		}
		_, module, _ := strings.Cut(name, "/kernel/")
		p.modules["kernel/"+module] = data
	}
	if p.vmlinuz == nil {
		return nil, fmt.Errorf("package %s holds no kernel", d.kernel)
	}
	agent, err := readDeb(ctx, d.agent, func(name string) bool { return name == "usr/sbin/qemu-ga" })
	if err != nil {
		return nil, err
	}
	if p.agent = agent["usr/sbin/qemu-ga"]; p.agent == nil {
		return nil, fmt.Errorf("package %s holds no usr/sbin/qemu-ga", d.agent)
	}
	p.busybox, err = os.ReadFile(busyboxPath)
	return p, err
}

func wantedModule(name string) bool {
	for _, m := range bootModules {
		if strings.HasSuffix(name, "/kernel/drivers/"+m+".ko") {
			return true
		}
	}
	for _, m := range rootModules {
		if strings.HasSuffix(name, "/"+m) {
			return true
		}
	}
	return false
}

func writeKernel(out string, p *packages, progress io.Writer) error {
	kernel, err := unpackKernel(p.vmlinuz)
	if errors.Is(err, errNotLZ4) {
		fmt.Fprintf(progress, "lab: %v; the guest boots the packed kernel, a second slower\n", err)
		kernel, err = p.vmlinuz, nil
	}
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "vmlinux"), kernel, 0o644); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(out, "bootrd.cpio"))
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	err = writeBootrd(w, p.busybox, p.modules)
	return errors.Join(err, w.Flush(), f.Close())
}
