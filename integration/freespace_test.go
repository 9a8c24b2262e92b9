package integration

import (
	"os/exec"
	"strings"
	"testing"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// testFreeSpace: a full read leaves out what the guest has deleted, says so,
// and nobody but who reads the raw disk can tell.
func testFreeSpace(t *testing.T, h *host, g *lab.Guest) {
	h.sparing = true
	defer func() { h.sparing = false }()
	const junk = 24 << 20
	labtest.Shell(t, g, "head -c 25165824 /dev/urandom >/srv/junk; echo kept >/srv/kept; sync; rm /srv/junk; sync")
	s := h.backup(t, "--full-read")
	if s.BytesFree < junk*9/10 || s.BytesSwap != 0 || s.Read != "full" || s.BytesStored > 4<<20 {
		t.Errorf("a full read after a deletion: %+v", s)
	}
	h.run(t, exitOK, "show", s.Point).mentions(t, "left out")
	if out := h.run(t, exitOK, "cat", s.Point+":/srv/kept").stdout; out != "kept\n" {
		t.Errorf("the file beside it: %q", out)
	}
	// Clean to the last count: what was left out is free in the bitmaps, too.
	restored := h.restoreDisk(t, s.Point, "vdb")
	if out, err := exec.Command("e2fsck", "-f", "-n", restored).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}

	// The holes are no lie of the bitmaps.
	labtest.Shell(t, g, "echo more >/srv/more; sync")
	next := h.backup(t, "--audit", "100")
	if next.Read != "incremental" || next.Audited == 0 || next.Wrong != 0 || len(next.Warnings) > 0 {
		t.Errorf("the incremental one, with an audit of everything: %+v", next)
	}

	// A guest that was not frozen may have contents on the disk whose maps are
	// not there yet: the next incremental point would have the maps alone.
	crash := h.backup(t, "--full-read", "--no-freeze")
	if crash.BytesFree != 0 || crash.BytesRead < s.BytesRead+junk*9/10 {
		t.Errorf("not frozen: %+v, frozen %+v", crash, s)
	}

	// Asking for every block gets it, also after a point that lacks some.
	if lacks := h.backup(t, "--full-read"); lacks.BytesFree < junk*9/10 {
		t.Errorf("frozen again: %+v", lacks)
	}
	if every := h.backup(t, "--every-block"); every.Read != "full" || every.BytesFree != 0 {
		t.Errorf("every block after a point that lacks some: %+v", every)
	}

	// All of it, when asked for: byte for byte the disk.
	all := backupPaused(t, h, g, "--full-read", "--every-block")
	if all.BytesFree != 0 || all.BytesRead < s.BytesRead+junk*9/10 {
		t.Errorf("with --every-block: %+v, without it %+v", all, s)
	}
	if r := h.run(t, exitOK, "show", all.Point); strings.Contains(r.stdout, "left out") {
		t.Errorf("a whole point says that it leaves something out:\n%s", r.stdout)
	}
}
