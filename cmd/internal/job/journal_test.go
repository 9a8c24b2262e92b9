package job

import (
	"errors"
	"fmt"
	"testing"
)

// The journal outlives a run that has left something in QEMU or in the guest,
// also one that made its point: without it the next run does not look for
// scratch files.
func TestJournalStaysWhileSomethingIsLeft(t *testing.T) {
	for _, c := range []struct {
		name string
		left bool
		err  error
		dead bool
	}{
		{name: "a good run"},
		{name: "a failed run", err: errors.New("no space")},
		{name: "a guest not thawed", err: fmt.Errorf("thaw: %w", ErrNotReleased), dead: true},
		{name: "a good run, its fleece not released", left: true, dead: true},
		{name: "a failed run, its fleece not released", left: true, err: errors.New("no space"), dead: true},
	} {
		state := t.TempDir()
		j, err := openJournal(state, "web01")
		if err != nil {
			t.Fatal(err)
		}
		b := Backup{journal: j, left: c.left}
		if err := b.step("commit"); err != nil {
			t.Fatal(err)
		}
		if err := b.clearIfSafe(c.err); err != nil {
			t.Fatal(err)
		}
		j.close()
		next, err := openJournal(state, "web01")
		if err != nil {
			t.Fatal(err)
		}
		if (next.Dead != nil) != c.dead {
			t.Errorf("%s: the journal stays: %v, want %v", c.name, next.Dead != nil, c.dead)
		}
		next.close()
	}
}

// Two runs of one VM are refused also within one process, as in a worker of cairn
// serve.
func TestOneRunOfAVMInAProcess(t *testing.T) {
	dir := t.TempDir()
	first, err := openJournal(dir, "web01")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openJournal(dir, "web01"); !errors.Is(err, ErrBusy) {
		t.Errorf("a second run: %v", err)
	}
	other, err := openJournal(dir, "web02")
	if err != nil {
		t.Fatal(err)
	}
	other.close()
	first.close()
	again, err := openJournal(dir, "web01")
	if err != nil {
		t.Fatal(err)
	}
	again.close()
}
