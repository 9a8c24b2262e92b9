package runs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, dir string) *Book {
	t.Helper()
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func began(vm string, at time.Time) Run {
	return Run{ID: NewID(), Kind: Backup, Job: "nightly", VM: vm, Repository: "main", Due: at, Cause: "daily", Attempt: 1, Started: at}
}

func ended(r Run, o Outcome) Run {
	r.Ended, r.Outcome, r.Log = r.Started.Add(time.Minute), o, []string{"probe", "read"}
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestBookSurvivesAKill(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	good, bad, killed := began("web", noon), began("web", noon.Add(time.Hour)), began("db", noon.Add(2*time.Hour))
	for _, r := range []Run{good, bad, killed} {
		must(t, b.Begin(r))
	}
	must(t, b.End(ended(good, Warned)))
	must(t, b.End(ended(bad, Failed)))
	// The kill came while a line was written.
	name := filepath.Join(dir, "2026-11-29.jsonl")
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString(`{"id":"torn","kind":"bac`)
	must(t, err)
	must(t, f.Close())

	b = open(t, dir)
	if got := b.Unfinished(); len(got) != 1 || got[0].ID != killed.ID {
		t.Errorf("unfinished: %v", got)
	}
	if r, ok := b.Last(Backup, "web"); !ok || r.ID != bad.ID {
		t.Errorf("last: %v", r)
	}
	if r, ok := b.LastGood(Backup, "web"); !ok || r.ID != good.ID {
		t.Errorf("last good: %v", r)
	}
	if r, ok, err := b.Find(good.ID); err != nil || !ok || len(r.Log) != 2 {
		t.Errorf("found %v %v, %v", r, ok, err)
	}
	must(t, b.End(ended(killed, Interrupted)))
	b = open(t, dir)
	if got := b.Unfinished(); len(got) != 0 {
		t.Errorf("behind a torn line: unfinished %v", got)
	}
	if list := b.Runs(10, nil); len(list) != 3 || list[0].ID != killed.ID || list[0].Log != nil {
		t.Errorf("runs: %v", list)
	}
	if b.Damaged() != 1 { // the torn line, ended by the next one
		t.Errorf("%d damaged lines", b.Damaged())
	}
}

func TestBookKeepsTheLastOfEachVM(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	old := began("rare", noon.AddDate(-2, 0, 0))
	must(t, b.Begin(old))
	must(t, b.End(ended(old, Done)))
	for i := range 5 {
		r := began("web", noon.AddDate(0, 0, i))
		must(t, b.Begin(r))
		must(t, b.End(ended(r, Done)))
	}
	if !b.Whole() {
		t.Error("nothing is gone, and the book is not whole")
	}
	must(t, b.Tidy(noon.AddDate(0, 0, 5)))
	if b.Whole() {
		t.Error("a day is gone, and the book is whole")
	}
	if _, err := os.Stat(filepath.Join(dir, "2024-11-29.jsonl")); !os.IsNotExist(err) {
		t.Errorf("an old day is still there: %v", err)
	}
	must(t, b.tidy(noon.AddDate(0, 0, 5), 1)) // by size: all but the day that is written to
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	must(t, err)
	if len(files) != 1 {
		t.Errorf("left: %v", files)
	}
	b = open(t, dir)
	if b.Whole() {
		t.Error("opened again: a day is gone, and the book is whole")
	}
	if r, ok := b.LastGood(Backup, "rare"); !ok || r.ID != old.ID {
		t.Errorf("the last good run is forgotten: %v", r)
	}
	if r, ok := b.Last(Backup, "web"); !ok || !r.Started.Equal(noon.AddDate(0, 0, 4)) {
		t.Errorf("last: %v", r)
	}
}

func TestBookShortensLogs(t *testing.T) {
	b := open(t, t.TempDir())
	r := ended(began("web", noon), Done)
	r.Log = []string{"first", strings.Repeat("x", 5*MaxLog)}
	for i := range 20_000 {
		r.Log = append(r.Log, fmt.Sprint("line ", i))
	}
	must(t, b.End(r))
	got, ok, err := b.Find(r.ID)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if n := len(strings.Join(got.Log, "\n")); n > MaxLog || got.Log[0] != "first" || got.Log[len(got.Log)-1] != "line 19999" {
		t.Errorf("%d bytes, from %q to %q", n, got.Log[0], got.Log[len(got.Log)-1])
	}
	if err := b.End(began("web", noon)); err == nil {
		t.Error("a run ended without an end")
	}
}

func TestBookTellsOfChanges(t *testing.T) {
	b := open(t, t.TempDir())
	c := b.Changed()
	select {
	case <-c:
		t.Fatal("changed before anything was written")
	default:
	}
	must(t, b.Begin(began("web", noon)))
	select {
	case <-c:
	case <-time.After(time.Second):
		t.Fatal("not told")
	}
}

func FuzzBook(f *testing.F) {
	f.Add([]byte(`{"id":"a","kind":"backup","started":"2026-11-29T12:00:00Z"}` + "\n\n{}\nrubbish\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "2026-11-29.jsonl"), body, 0o600))
		b := open(t, dir)
		r := began("web", noon)
		must(t, b.Begin(r))
		must(t, b.End(ended(r, Done)))
		b = open(t, dir)
		if got, ok := b.Last(Backup, "web"); !ok || got.ID != r.ID {
			t.Errorf("written behind %q and not found: %v", body, got)
		}
	})
}

// A run is known to each job that it was for, also behind one that was skipped,
// and when its day is gone.
func TestBookKnowsEachJobsNewest(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	both := began("web", noon.AddDate(-2, 0, 0))
	both.Also = []Slot{{"weekly", both.Due.Add(-time.Hour)}}
	skipped := began("web", noon)
	for _, r := range []Run{ended(both, Done), ended(skipped, Skipped)} {
		must(t, b.Begin(r))
		must(t, b.End(r))
	}
	look := func(when string) {
		t.Helper()
		if r, ok := b.NewestFor(Backup, "weekly", "web"); !ok || r.ID != both.ID || r.Job != "weekly" || !r.Due.Equal(both.Due.Add(-time.Hour)) {
			t.Errorf("%s: weekly: %+v", when, r)
		}
		if r, ok := b.NewestFor(Backup, "nightly", "web"); !ok || r.ID != skipped.ID {
			t.Errorf("%s: nightly: %+v", when, r)
		}
		if r, ok := b.NewestGoodFor(Backup, "nightly", "web"); !ok || r.ID != both.ID {
			t.Errorf("%s: nightly's good: %+v", when, r)
		}
		if r, ok := b.Last(Backup, "web"); !ok || r.ID != both.ID {
			t.Errorf("%s: last: %+v", when, r)
		}
	}
	look("written")
	b = open(t, dir)
	look("read")
	must(t, b.Tidy(noon))
	b = open(t, dir)
	look("tidied")
}

// What a full disk cut is ended before the next line.
func TestBookGoesOnBehindAFailedWrite(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	must(t, b.Begin(began("web", noon)))
	if _, err := b.file.WriteString(`{"id":"half`); err != nil {
		t.Fatal(err)
	}
	must(t, b.file.Close()) // so that the next write fails
	if err := b.Begin(began("db", noon)); err == nil {
		t.Fatal("written into a closed file")
	}
	r := ended(began("mail", noon), Done)
	must(t, b.End(r))
	b = open(t, dir)
	if got, ok := b.Last(Backup, "mail"); !ok || got.ID != r.ID || b.Damaged() != 1 {
		t.Errorf("found %+v; %d damaged", got, b.Damaged())
	}
}
