package integration

import (
	"strings"
	"syscall"
	"testing"

	"cairn/integration/lab/labtest"
)

// TestForget: whichever points are forgotten, also the newest, also while a
// backup builds on it, the next points have every byte.
func TestForget(t *testing.T) {
	h := bareHost(t)
	h.init(t)
	g := startVM(t, h)
	change := func(name string) {
		labtest.Shell(t, g, "head -c 300000 /dev/urandom >/srv/"+name+"; echo "+name+" >>/home/anna/notes.md; sync")
	}
	first := h.backup(t)
	change("second")
	second := h.backup(t)
	change("third")
	third := h.backup(t)
	change("fourth")

	// The bitmap of the point before the newest is still there.
	h.run(t, exitOK, "forget", third.Point)
	fourth := backupPaused(t, h, g)
	if fourth.Read != "incremental" {
		t.Errorf("after the newest was forgotten: %+v", fourth)
	}
	list := h.points(t)
	if n := len(list); n != 3 || list[2].Parent != second.Point {
		t.Errorf("points %+v", list)
	}

	// That of an older one is not: the reason says what happened.
	change("fifth")
	h.run(t, exitOK, "forget", second.Point, fourth.Point)
	fifth := backupPaused(t, h, g)
	if fifth.Read != "full" || !strings.Contains(fifth.Reason, "were forgotten") {
		t.Errorf("after all but the oldest were forgotten: %+v", fifth)
	}

	// A parent that is forgotten while the backup reads.
	change("sixth")
	r := h.start(t, "backup", vmName, "--json")
	if !h.awaitStep(t, r, "read") {
		t.Fatalf("the run ended before it read: %+v", r.wait())
	}
	r.signal(t, syscall.SIGSTOP)
	h.run(t, exitOK, "forget", fifth.Point)
	r.signal(t, syscall.SIGCONT)
	if got := r.wait(); got.code != exitOK {
		t.Errorf("the backup whose parent was forgotten: exit code %d\n%s", got.code, got.stderr)
	}
	list = h.points(t)
	if n := len(list); n != 2 || list[0].ID != first.Point || list[1].Parent != fifth.Point {
		t.Fatalf("points %+v", list)
	}
	change("seventh")
	if seventh := backupPaused(t, h, g); seventh.Read != "incremental" {
		t.Errorf("the point after it: %+v", seventh)
	}
	h.run(t, exitOK, "check", "--read-data").mentions(t, "no damage")

	h.run(t, exitOK, "pin", first.Point, "--reason", "the first")
	h.run(t, exitOK, "forget", "--keep-last", "1", "--force")
	list = h.points(t)
	if n := len(list); n != 2 || list[0].ID != first.Point {
		t.Errorf("points %+v", list)
	}
	h.run(t, exitOK, "check").mentions(t, "checked 2 points")
	isAlive(t, g)
}
