package lab

import (
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// bootModules is loaded by the first root in this order: each needs those
// before it. ext4 and tmpfs are built into the cloud kernel.
var bootModules = []string{
	"virtio/virtio_ring", "virtio/virtio", "virtio/virtio_pci_legacy_dev", "virtio/virtio_pci_modern_dev",
	"virtio/virtio_pci", "block/virtio_blk", "char/virtio_console",
}

// bootApplets are the busybox programs that bootrd-init calls.
var bootApplets = []string{"sh", "mount", "umount", "insmod", "findfs", "cat", "ls", "tr", "cp", "usleep", "switch_root", "poweroff", "echo"}

// writeBootrd writes the memory root that mounts the root disk.
func writeBootrd(w io.Writer, busybox []byte, modules map[string][]byte) error {
	c := &cpioWriter{w: w}
	for _, dir := range []string{"bin", "dev", "proc", "sys", "modules", "root"} {
		c.dir(dir)
	}
	// Without a console node init has no output before devtmpfs is there.
	c.char("dev/console", 0o600, 5, 1)
	c.char("dev/null", 0o666, 1, 3)
	c.file("bin/busybox", 0o755, busybox)
	for _, applet := range bootApplets {
		c.symlink("bin/"+applet, "busybox")
	}
	var order strings.Builder
	for _, m := range bootModules {
		name := path.Base(m) + ".ko"
		data := modules["kernel/drivers/"+m+".ko"]
		if data == nil {
			return fmt.Errorf("the kernel package has no module %s", m)
		}
		c.file("modules/"+name, 0o644, data)
		order.WriteString(name + "\n")
	}
	c.file("modules/order", 0o644, []byte(order.String()))
	init, err := guestFiles.ReadFile("files/bootrd-init")
	if err != nil {
		return err
	}
	c.file("init", 0o755, init)
	return c.close()
}

// writeInject writes an archive that puts host files under /inject; the kernel
// unpacks it over the first root, whose init copies it to /run/inject.
func writeInject(w io.Writer, files map[string]string) error {
	c := &cpioWriter{w: w}
	c.dir("inject")
	made := map[string]bool{".": true}
	for _, name := range sortedKeys(files) {
		clean := path.Clean(name)
		if path.IsAbs(clean) || clean == "." || clean == ".." || strings.HasPrefix(clean, "../") {
			return fmt.Errorf("injected file %q: the name must lie below /run/inject", name)
		}
		data, err := os.ReadFile(files[name])
		if err != nil {
			return err
		}
		info, err := os.Stat(files[name])
		if err != nil {
			return err
		}
		parts := strings.Split(path.Dir(clean), "/")
		for i := range parts {
			if dir := path.Join(parts[:i+1]...); !made[dir] {
				c.dir("inject/" + dir)
				made[dir] = true
			}
		}
		c.file("inject/"+clean, uint32(info.Mode().Perm()), data)
	}
	return c.close()
}
