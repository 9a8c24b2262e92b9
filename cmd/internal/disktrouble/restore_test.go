package disktrouble

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// image gives the point's disk, restored where there is room.
func (h *host) image(t *testing.T) []byte {
	t.Helper()
	name := filepath.Join(h.dir, "whole.raw")
	h.run(t, exitOK, "restore", "web01@latest", "--disk", "vda", "--to", name, "--overwrite")
	return read(t, name)
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	return b
}

// same wants a qcow2 that holds a disk.
func same(t *testing.T, qcow2 string, want []byte) {
	t.Helper()
	raw := qcow2 + ".raw"
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-f", "qcow2", "-O", "raw", qcow2, raw).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	if !bytes.Equal(read(t, raw), want) {
		t.Error("the restored disk is another one")
	}
	must(t, os.Remove(raw))
}

// TestRestoreToAFullDisk: new files, whole VMs and files of the guest.
func TestRestoreToAFullDisk(t *testing.T) {
	h := newHost(t)
	want := h.image(t)
	for _, c := range []struct {
		name, size string
		args       []string // to what is made in the folder
		made       string   // there, as a disk
	}{
		{"raw", "4m", []string{"--disk", "vda", "--to", "web01.raw"}, "web01.raw"},
		{"qcow2", "4m", []string{"--disk", "vda", "--format", "qcow2", "--to", "web01.qcow2"}, "web01.qcow2"},
		{"vm", "14m", []string{"--vm", "--to", "web02"}, "web02/vdb.raw"}, // of two disks one fits
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(h.dir, c.name)
			grow := small(t, dir, c.size)
			args := append([]string{"restore", "web01@latest"}, c.args...)
			to := filepath.Join(dir, args[len(args)-1])
			args[len(args)-1] = to
			said := h.run(t, exitFailed, args...)
			mentions(t, said, to, "no space left", "make room", "again")
			if left, _ := filepath.Glob(dir + "/web*/*"); len(left) > 0 || c.name != "vm" && len(list(t, dir)) > 0 {
				t.Errorf("left there: %q, %q", list(t, dir), left)
			}
			grow("64m")
			h.run(t, exitOK, args...)
			if c.name == "qcow2" {
				same(t, filepath.Join(dir, c.made), want)
			} else if !bytes.Equal(read(t, filepath.Join(dir, c.made)), want) {
				t.Error("the restored disk is another one")
			}
		})
	}
	t.Run("ext4", func(t *testing.T) { // direct writes
		dir := filepath.Join(h.dir, "ext4")
		grow := smallExt4(t, dir, 4)
		file := filepath.Join(dir, "web01.raw")
		args := []string{"restore", "web01@latest", "--disk", "vda", "--to", file}
		said := h.run(t, exitFailed, args...)
		mentions(t, said, file, "no space left", "make room")
		if left := list(t, dir); len(left) > 0 {
			t.Errorf("left there: %q", left)
		}
		grow()
		h.run(t, exitOK, args...)
		if !bytes.Equal(read(t, file), want) {
			t.Error("the restored disk is another one")
		}
	})
	t.Run("overwrite", func(t *testing.T) { // what was there stays
		dir := filepath.Join(h.dir, "overwrite")
		grow := small(t, dir, "6m")
		file, old := filepath.Join(dir, "web01.raw"), bytes.Repeat([]byte("old"), 100)
		must(t, os.WriteFile(file, old, 0o600))
		args := []string{"restore", "web01@latest", "--disk", "vda", "--to", file, "--overwrite"}
		mentions(t, h.run(t, exitFailed, args...), file, "no space left", "make room")
		if !bytes.Equal(read(t, file), old) || len(list(t, dir)) != 1 {
			t.Errorf("what was there is another one, or there is more: %q", list(t, dir))
		}
		grow("64m")
		h.run(t, exitOK, args...)
		if !bytes.Equal(read(t, file), want) {
			t.Error("the restored disk is another one")
		}
	})
	t.Run("delta", func(t *testing.T) { // in place: a half image stays, and it says so
		dir := filepath.Join(h.dir, "delta")
		grow := small(t, dir, "6m")
		file := filepath.Join(dir, "web01.raw")
		must(t, os.WriteFile(file, nil, 0o600))
		args := []string{"restore", "web01@latest", "--disk", "vda", "--to", file, "--delta"}
		said := h.run(t, exitFailed, args...)
		mentions(t, said, file, "no space left", "make room", "neither what it was nor the point")
		grow("64m")
		h.run(t, exitOK, args...)
		if !bytes.Equal(read(t, file), want) {
			t.Error("the restored disk is another one")
		}
	})
	t.Run("delta of a qcow2", func(t *testing.T) { // written by qemu-nbd
		dir := filepath.Join(h.dir, "delta-qcow2")
		grow := small(t, dir, "6m")
		file := filepath.Join(dir, "web01.qcow2")
		if out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", file, "24M").CombinedOutput(); err != nil {
			t.Skipf("qemu-img: %v: %s", err, out)
		}
		args := []string{"restore", "web01@latest", "--disk", "vda", "--to", file, "--delta", "--format", "qcow2"}
		said := h.run(t, exitFailed, args...)
		mentions(t, said, file, "no space left", "make room", "neither what it was nor the point")
		grow("64m")
		h.run(t, exitOK, args...)
		same(t, file, want)
	})
	t.Run("limit", func(t *testing.T) { // as ulimit -f has it: the kernel would end the process
		file := filepath.Join(h.dir, "limited.raw")
		args := []string{"restore", "web01@latest", "--disk", "vda", "--to", file}
		said := h.limited(t, exitFailed, "4000000", args...)
		mentions(t, said, file, "file too large")
		if _, err := os.Stat(file); err == nil {
			t.Error("a half file is there")
		}
		if left, _ := filepath.Glob(file + "*"); len(left) > 0 {
			t.Errorf("left there: %q", left)
		}
		h.run(t, exitOK, args...)

		// Of files the one that is too large is named; the others are restored.
		to := filepath.Join(h.dir, "limited")
		said = h.limited(t, exitWarnings, "4000000", "restore", "web01@latest:/srv", "--to", to)
		mentions(t, said, "not restored: srv/big.bin", "file too large")
		if _, err := os.Stat(filepath.Join(to, "srv/big.bin")); err == nil {
			t.Error("a half file is there")
		}
		if b := read(t, filepath.Join(to, "srv/projects/thesis.txt")); len(b) == 0 {
			t.Error("the others are not restored")
		}
		h.run(t, exitWarnings, "restore", "web01@latest:/srv", "--to", to, "--resume")
		if !bytes.Equal(read(t, filepath.Join(to, "srv/big.bin")), h.big) {
			t.Error("the restored file is another one")
		}
	})
	t.Run("files", func(t *testing.T) {
		dir := filepath.Join(h.dir, "files")
		grow := small(t, dir, "5m")
		args := []string{"restore", "web01@latest:/srv", "--to", dir}
		said := h.run(t, exitFailed, args...)
		mentions(t, said, dir, "no space left", "make room", "--resume")
		if _, err := os.Stat(filepath.Join(dir, "srv/big.bin")); err == nil {
			t.Error("a half file has its name")
		}
		grow("64m")
		h.run(t, exitWarnings, append(args, "--resume")...) // the guest has damaged files
		if !bytes.Equal(read(t, filepath.Join(dir, "srv/big.bin")), h.big) {
			t.Error("the restored file is another one")
		}
		for _, name := range list(t, filepath.Join(dir, "srv")) {
			if len(name) > 0 && name[0] == '.' {
				t.Errorf("left there: %s", name)
			}
		}
	})
	t.Run("one file", func(t *testing.T) {
		dir := filepath.Join(h.dir, "file")
		grow := small(t, dir, "1m")
		args := []string{"restore", "web01@latest:/srv/big.bin", "--to", dir}
		said := h.run(t, exitFailed, args...)
		mentions(t, said, dir, "no space left", "make room")
		if left := list(t, dir); len(left) > 0 {
			t.Errorf("left there: %q", left)
		}
		grow("64m")
		h.run(t, exitOK, args...)
		if !bytes.Equal(read(t, filepath.Join(dir, "big.bin")), h.big) {
			t.Error("the restored file is another one")
		}
	})
	t.Run("standard output", func(t *testing.T) {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		must(t, err)
		defer full.Close()
		for _, args := range [][]string{{"cat", "web01@latest:/srv/big.bin"}, {"cat", "web01@latest:/srv/"}, {"points"}, {"points", "--json"}, {"show", "web01@latest"}, {"ls", "web01@latest:/"}, {"ls", "web01@latest:/", "--json"}, {"find", "web01", "*.bin"}} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			cmd := h.command(ctx, args...)
			cmd.Stdout = full
			said := h.ends(t, exitFailed, cmd)
			mentions(t, said, "no space left")
			cancel()
		}
	})
	h.sound(t)
}

// TestCopyOutOfAMountToAFullDisk: cp fails, the mount does not notice.
func TestCopyOutOfAMountToAFullDisk(t *testing.T) {
	h := newHost(t)
	at, dir := filepath.Join(h.dir, "mnt"), filepath.Join(h.dir, "target")
	must(t, os.Mkdir(at, 0o700))
	grow := small(t, dir, "3m")
	h.run(t, exitOK, "mount", at)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	from, to := filepath.Join(at, "web01/latest/fs/srv/big.bin"), filepath.Join(dir, "big.bin")
	if out, err := exec.CommandContext(t.Context(), "cp", from, to).CombinedOutput(); err == nil || !bytes.Contains(out, []byte("No space left")) {
		t.Fatalf("%v: %s", err, out)
	}
	grow("64m")
	if out, err := exec.CommandContext(t.Context(), "cp", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !bytes.Equal(read(t, to), h.big) {
		t.Error("the copied file is another one")
	}
}
