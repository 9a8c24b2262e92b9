package disktrouble

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// init makes a repository without encryption in a folder.
func (h *host) init(t *testing.T, repo string) {
	t.Helper()
	h.run(t, exitOK, "init", "--no-encryption", repo)
}

// TestCopyToAFullRepository: the target fills. It is without damage, and the same
// command ends well when there is room.
func TestCopyToAFullRepository(t *testing.T) {
	h := newHost(t)
	want := h.image(t)
	dir := filepath.Join(h.dir, "offsite")
	grow := small(t, dir, "3m")
	there := *h
	there.repo = filepath.Join(dir, "repo")
	h.init(t, there.repo)
	for range 2 {
		said := h.run(t, exitFailed, "copy", "web01@latest", "--to", there.repo)
		mentions(t, said, there.repo, "the place is full", "make space there and run again")
		mentions(t, there.run(t, exitOK, "points"), "no restore points yet")
		there.sound(t)
	}
	grow("64m")
	said := h.limited(t, exitFailed, "5000000", "copy", "web01@latest", "--to", there.repo) // as a quota has it
	mentions(t, said, there.repo, "file too large", "ulimit -f")
	there.sound(t)
	h.run(t, exitOK, "copy", "web01@latest", "--to", there.repo)
	if !bytes.Equal(there.image(t), want) {
		t.Error("the copied disk is another one")
	}
	there.sound(t)
	h.sound(t)
}

// TestCatalogueInAFullRepository: its place is full while a catalogue of files is
// made.
func TestCatalogueInAFullRepository(t *testing.T) {
	h := newHost(t)
	dir := filepath.Join(h.dir, "place")
	grow := small(t, dir, "64m")
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", h.repo, dir+"/repo").CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	h.repo = filepath.Join(dir, "repo")
	squeeze(t, dir, 0)
	said := h.run(t, exitFailed, "catalogue", "web01@latest")
	mentions(t, said, h.repo, "the place is full", "make space there and run again")
	h.sound(t)
	grow("64m")
	h.run(t, exitOK, "catalogue", "web01@latest")
	mentions(t, h.run(t, exitOK, "catalogue"), "stored")
	h.sound(t)
}

// moveToASmallDisk gives the host a copy of its repository on a disk of 64 MiB; what
// it had is the mirror.
func (h *host) moveToASmallDisk(t *testing.T) (dir, mirror string, grow func(size string)) {
	t.Helper()
	dir, mirror = filepath.Join(h.dir, "place"), h.repo
	grow = small(t, dir, "64m")
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", mirror, dir+"/repo").CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	h.repo = filepath.Join(dir, "repo")
	return dir, mirror, grow
}

// TestRepairInAFullRepository: a pack is damaged and another one missing, and their
// place has no room for any: what was readable is so still, and when there is room
// all is made good.
func TestRepairInAFullRepository(t *testing.T) {
	h := newHost(t)
	want := h.image(t)
	dir, mirror, grow := h.moveToASmallDisk(t)
	data, maps := h.packs(t)
	b := read(t, maps)
	b[len(b)/2] ^= 1
	must(t, os.Chmod(maps, 0o600))
	must(t, os.WriteFile(maps, b, 0o600))
	must(t, os.Remove(data))
	repair := []string{"check", "--read-data", "--repair", "--from", mirror}

	squeeze(t, dir, 0) // not even for a repair's intent
	mentions(t, h.run(t, exitDamage, repair...), filepath.Base(maps), h.repo, "the place is full", "make space there and run again")
	if !bytes.Equal(read(t, maps), b) {
		t.Error("the damaged pack is not what it was")
	}
	squeeze(t, dir, 64) // and for what is put in the place of the damaged one
	mentions(t, h.run(t, exitDamage, repair...), "repaired: packs/", filepath.Base(data), h.repo, "the place is full", "make space there and run again")
	if !bytes.Equal(read(t, maps), read(t, filepath.Join(mirror, strings.TrimPrefix(maps, h.repo)))) {
		t.Error("the damaged pack was not repaired")
	}
	grow("64m")
	h.run(t, exitWarnings, repair...)
	h.sound(t)
	if !bytes.Equal(h.image(t), want) {
		t.Error("the disk is another one")
	}
}

// TestRepairWhereDeletingFreesNothing: a snapshot of the file system holds what is
// deleted, and there is no room for a good pack beside the damaged one: that stays, for
// a part of it may be readable.
func TestRepairWhereDeletingFreesNothing(t *testing.T) {
	h := newHost(t)
	want := h.image(t)
	dir, mirror, grow := h.moveToASmallDisk(t)
	data, _ := h.packs(t)
	b := read(t, data)
	b[len(b)/2] ^= 1
	must(t, os.Chmod(data, 0o600))
	must(t, os.WriteFile(data, b, 0o600))
	must(t, os.Link(data, filepath.Join(dir, "snapshot")))
	squeeze(t, dir, 64)
	repair := []string{"check", "--read-data", "--repair", "--from", mirror}
	mentions(t, h.run(t, exitDamage, repair...), filepath.Base(data), h.repo, "the place is full", "make space there and run again")
	if got, err := os.ReadFile(data); err != nil || !bytes.Equal(got, b) {
		t.Errorf("the damaged pack is gone, or another one: %v", err)
	}
	grow("64m")
	h.run(t, exitWarnings, repair...)
	h.sound(t)
	if !bytes.Equal(h.image(t), want) {
		t.Error("the disk is another one")
	}
}

// packs gives the repository's only data pack and its only map pack.
func (h *host) packs(t *testing.T) (data, maps string) {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(h.repo, "packs/*/*"))
	must(t, err)
	if len(list) != 2 {
		t.Fatalf("packs: %q", list)
	}
	if len(read(t, list[0])) < len(read(t, list[1])) {
		return list[1], list[0]
	}
	return list[0], list[1]
}

// TestFullCache: this host's cache has no room for an index, or loses it while
// there is one.
func TestFullCache(t *testing.T) {
	h := newHost(t)
	want := h.image(t)
	h.cache = filepath.Join(h.dir, "smallcache")
	grow := small(t, h.cache, "100m")
	there := *h
	there.repo = filepath.Join(h.dir, "offsite")
	h.init(t, there.repo)
	args := []string{"copy", "web01@latest", "--to", there.repo}
	mentions(t, h.run(t, exitFailed, args...), h.cache, "too little free space for the index", "make room there, or put the cache directory elsewhere")
	mentions(t, there.run(t, exitOK, "points"), "no restore points yet")

	grow("300m")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := h.command(ctx, append(args, "--write-limit", "4MiB")...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	must(t, cmd.Start())
	for begun := false; !begun; time.Sleep(time.Millisecond) {
		packs, _ := filepath.Glob(filepath.Join(there.repo, "packs/*/*"))
		begun = len(packs) > 0
	}
	squeeze(t, h.cache, 0)
	if err := cmd.Wait(); err != nil { // its point is none of the cache's
		t.Fatalf("%v: %s", err, said.String())
	}
	mentions(t, said.String(), h.cache, "the index is not used any more in this run", "make room there")
	must(t, os.RemoveAll(there.repo))
	h.init(t, there.repo)
	grow("300m")
	h.run(t, exitOK, args...)
	if !bytes.Equal(there.image(t), want) {
		t.Error("the copied disk is another one")
	}
	there.sound(t)

	// Without any room at all what needs no index goes on.
	squeeze(t, h.cache, 0)
	h.run(t, exitOK, "catalogue", "web01@latest")
	h.run(t, exitOK, "points")
	h.run(t, exitOK, "cat", "web01@latest:/etc/hostname")
	h.run(t, exitOK, "find", "web01", "*.conf")
	h.sound(t)
}
