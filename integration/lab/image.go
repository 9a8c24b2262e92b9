package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Geometry of the base images, in bytes.
const (
	rootDiskBytes      = 512 << 20
	rootPartitionStart = 2 << 20 // behind 1 MiB of GPT and 1 MiB of partition 1
	dataDiskBytes      = 256 << 20
	gptTail            = 1 << 20 // left free for the second GPT
)

// buildRootImage makes vda: partition table, dummy boot partition, filesystem.
func buildRootImage(ctx context.Context, work, out string, pkgs *packages) error {
	dir := filepath.Join(work, "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := writeRootTree(ctx, dir, pkgs); err != nil {
		return fmt.Errorf("the guest's root tree: %w", err)
	}
	raw := filepath.Join(work, "root.raw")
	if err := sparseFile(raw, rootDiskBytes); err != nil {
		return err
	}
	if _, err := run(ctx, "", "sgdisk", "--clear", "--set-alignment=8",
		"--disk-guid=0c41a12e-5a0b-4a0e-9d53-1ab0000000d0",
		"--new=1:2048:4095", "--typecode=1:ef02", "--change-name=1:boot", "--partition-guid=1:0c41a12e-5a0b-4a0e-9d53-1ab0000000d1",
		fmt.Sprintf("--new=2:%d:%d", rootPartitionStart/512, (rootDiskBytes-gptTail)/512-1), "--typecode=2:8300", "--change-name=2:root",
		"--partition-guid=2:0c41a12e-5a0b-4a0e-9d53-1ab0000000d2", raw); err != nil {
		return err
	}
	if err := writeAt(raw, 1<<20, bytes.Repeat([]byte("not a boot loader, but somebody's bytes\n"), 500)); err != nil {
		return err
	}
	if err := mkfs(ctx, raw, dir, "root", RootUUID, rootPartitionStart, rootDiskBytes-gptTail-rootPartitionStart); err != nil {
		return err
	}
	// Inside the image, because a container may not make device nodes.
	script := "cd /var/lib/awkward\nmknod device-char c 1 3\nmknod device-block b 254 99\n" +
		"set_inode_field device-char mode 020644\nset_inode_field device-block mode 060640\n"
	if err := debugfs(ctx, raw, rootPartitionStart, script); err != nil {
		return err
	}
	return toQcow2(ctx, raw, out)
}

// buildDataImage makes vdb: a filesystem without a partition table.
func buildDataImage(ctx context.Context, work, out string) error {
	dir := filepath.Join(work, "srv")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := writeDataTree(dir); err != nil {
		return fmt.Errorf("the guest's data tree: %w", err)
	}
	raw := filepath.Join(work, "srv.raw")
	if err := sparseFile(raw, dataDiskBytes); err != nil {
		return err
	}
	if err := mkfs(ctx, raw, dir, "srv", DataUUID, 0, dataDiskBytes); err != nil {
		return err
	}
	return toQcow2(ctx, raw, out)
}

// mkfs makes an ext4 filesystem of the tree. Nothing is left to the guest's
// lazy initialisation: it would dirty the disk behind a test's back. Blocks of
// 4 KiB, as on every real disk; mkfs would choose 1 KiB for so small a one.
func mkfs(ctx context.Context, raw, dir, label, uuid string, offset, size int64) error {
	_, err := run(ctx, "", "mkfs.ext4", "-F", "-q", "-b", "4096", "-L", label, "-U", uuid, "-d", dir,
		"-E", fmt.Sprintf("offset=%d,nodiscard,lazy_itable_init=0,lazy_journal_init=0,hash_seed=%s", offset, uuid),
		raw, fmt.Sprintf("%dk", size>>10))
	return err
}

func debugfs(ctx context.Context, raw string, offset int64, script string) error {
	file := raw + ".debugfs"
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		return err
	}
	out, err := run(ctx, "", "debugfs", "-w", "-f", file, fmt.Sprintf("%s?offset=%d", raw, offset))
	if err != nil {
		return err
	}
	// debugfs ends with 0 whatever happened; its commands are echoed, and
	// anything else is a complaint.
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "debugfs:") && !strings.HasPrefix(line, "Allocated inode:") {
			return fmt.Errorf("debugfs: %s", line)
		}
	}
	return nil
}

func toQcow2(ctx context.Context, raw, out string) error {
	_, err := run(ctx, "", "qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw, out)
	return err
}

func sparseFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func writeAt(path string, offset int64, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(data, offset); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
