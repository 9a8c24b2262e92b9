package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// writePrograms puts busybox, the guest agent, the tools of the host with the
// libraries of them all, and the kernel modules into the tree.
func writePrograms(ctx context.Context, t *tree, pkgs *packages) error {
	if err := writeTools(ctx, t, pkgs.agent); err != nil {
		return err
	}
	t.file("usr/bin/busybox", 0o755, string(pkgs.busybox))
	applets, err := run(ctx, "", busyboxPath, "--list")
	if err != nil {
		return err
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if !t.has("usr/bin/"+applet) && !t.has("usr/sbin/"+applet) {
			t.symlink("usr/bin/"+applet, "busybox")
		}
	}
	t.symlink("usr/sbin/init", "../bin/busybox")
	for _, tool := range []string{"modprobe", "poweroff"} { // the kernel and inittab call them there
		t.symlink("usr/sbin/"+tool, "../bin/busybox")
	}
	modules := "usr/lib/modules/" + pkgs.kernelVersion
	for _, name := range rootModules {
		data := pkgs.modules[name]
		if data == nil {
			return fmt.Errorf("the kernel package has no module %s", name)
		}
		t.file(modules+"/"+name, 0o644, string(data))
	}
	if t.err != nil {
		return t.err
	}
	_, err = run(ctx, "", busyboxPath, "depmod", "-b", t.path("usr"), pkgs.kernelVersion)
	return err
}

func (t *tree) has(name string) bool {
	_, err := os.Lstat(t.path(name))
	return err == nil
}

// writeTools copies programs with shared libraries, and then the libraries.
func writeTools(ctx context.Context, t *tree, agent []byte) error {
	t.file("usr/sbin/qemu-ga", 0o755, string(agent))
	if t.err != nil {
		return t.err
	}
	programs := []string{t.path("usr/sbin/qemu-ga")}
	for _, tool := range guestTools {
		from, err := lookTool(tool)
		if err != nil {
			return err
		}
		programs = append(programs, from)
		if err := copyFile(t.path("usr/sbin/"+tool), from, 0o755); err != nil {
			return err
		}
	}
	for _, program := range programs {
		libs, err := libraries(ctx, program)
		if err != nil {
			return err
		}
		for _, lib := range libs {
			// Every tree is a merged /usr: /lib/… and /usr/lib/… are one place.
			to := t.path(filepath.Join("usr", strings.TrimPrefix(lib, "/usr")))
			if _, err := os.Lstat(to); err == nil {
				continue
			}
			if err := copyFile(to, lib, 0o755); err != nil {
				return err
			}
		}
	}
	return nil
}

// libraries lists the shared libraries of a program, the loader included.
func libraries(ctx context.Context, program string) ([]string, error) {
	out, err := run(ctx, "", "ldd", program)
	if err != nil {
		if strings.Contains(string(out), "not a dynamic executable") {
			return nil, nil
		}
		return nil, err
	}
	var libs []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "not found") {
			return nil, fmt.Errorf("program %s needs a library that this machine lacks: %s; `make deps` installs QEMU, which brings it", program, strings.TrimSpace(line))
		}
		for field := range strings.FieldsSeq(line) {
			if strings.HasPrefix(field, "/") {
				libs = append(libs, field)
			}
		}
	}
	return libs, nil
}
