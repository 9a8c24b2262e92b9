package runs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/cmd/internal/durable"
)

// Bounds of a book.
const (
	MaxLog    = 64 << 10 // bytes of one run's log
	maxLine   = 1 << 20  // bytes of one line in a file
	maxMemory = 20_000   // runs
	maxAge    = 400 * 24 * time.Hour
	maxBytes  = 1 << 30 // of all files
)

const (
	dayFormat = "2006-01-02"
	suffix    = ".jsonl"
	// keptName holds the newest runs of VMs whose day is gone.
	keptName = "kept.json"
)

// Book is the record of runs in one folder. One process has it open for
// writing, and uses it from many goroutines.
type Book struct {
	dir string

	mu      sync.Mutex
	runs    []Run // ended ones, oldest end first, without logs
	open    map[string]Run
	last    map[key]Run // by VM or repository; ended
	good    map[key]Run
	slots   map[slotKey]Run // ended, skipped ones too; the newest
	damaged int
	cut     bool // runs were ended that are neither in memory nor counted
	day     string
	file    *os.File
	changed chan struct{} // closed with the next change
}

// key is what a run is about.
type key struct {
	kind Kind
	name string
}

func keyOf(r Run) key { return key{r.Kind, cmp.Or(r.VM, r.Repository)} }

// slotKey is what is due: a job for a VM, or what is done for a job's points or
// a repository.
type slotKey struct {
	kind     Kind
	job      string
	what     string
	goodOnly bool
}

// Open reads the book in dir, and makes it if there is none.
func Open(dir string) (*Book, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	b := &Book{dir: dir, open: map[string]Run{}, last: map[key]Run{}, good: map[key]Run{}, slots: map[slotKey]Run{}, changed: make(chan struct{})}
	if err := b.readKept(); err != nil {
		return nil, err
	}
	days, err := b.days()
	if err != nil {
		return nil, err
	}
	for _, d := range days {
		body, err := os.ReadFile(d.path)
		if err != nil {
			return nil, err
		}
		b.read(body)
	}
	return b, nil
}

// read takes the lines of one file.
func (b *Book) read(body []byte) {
	for len(body) > 0 {
		line, rest, whole := bytes.Cut(body, []byte{'\n'})
		body = rest
		if !whole {
			return // what a kill left
		}
		var r Run
		if len(line) == 0 {
			continue // before it was the end of a torn one
		}
		if len(line) > maxLine || json.Unmarshal(line, &r) != nil || r.ID == "" {
			b.damaged++
			continue
		}
		b.take(r)
	}
}

// take puts a line into memory.
func (b *Book) take(r Run) {
	r.Log = nil
	if r.Ended.IsZero() {
		b.open[r.ID] = r
		return
	}
	delete(b.open, r.ID)
	b.runs = append(b.runs, r)
	if len(b.runs) > maxMemory+maxMemory/10 {
		b.runs, b.cut = slices.Clone(b.runs[len(b.runs)-maxMemory:]), true
	}
	b.newest(r)
}

func (b *Book) newest(r Run) {
	if r.Outcome != Skipped {
		b.last[keyOf(r)] = r
	}
	if r.Good() {
		b.good[keyOf(r)] = r
	}
	for _, s := range r.Slots() {
		own := r
		own.Job, own.Due = s.Job, s.Due
		b.slots[slotKey{r.Kind, s.Job, keyOf(r).name, false}] = own
		if r.Good() {
			b.slots[slotKey{r.Kind, s.Job, keyOf(r).name, true}] = own
		}
	}
}

// Begin writes that a run begins.
func (b *Book) Begin(r Run) error { return b.write(r) }

// End writes how a run ended. Its log is shortened to MaxLog.
func (b *Book) End(r Run) error {
	if r.Ended.IsZero() || r.Outcome == "" {
		return errors.New("a run that ends has a time and an outcome")
	}
	r.Log = shorten(r.Log)
	return b.write(r)
}

func (b *Book) write(r Run) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(line) > maxLine {
		r.Log, r.Warnings = nil, []string{"there were too many warnings to keep"}
		if line, err = json.Marshal(r); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	at := r.Ended
	if at.IsZero() {
		at = r.Started
	}
	if err := b.toDay(at.UTC().Format(dayFormat)); err != nil {
		return fmt.Errorf("the book of runs: %w", err)
	}
	_, err = b.file.Write(append(line, '\n'))
	if err == nil {
		err = b.file.Sync()
	}
	if err != nil { // a part of the line may be there: the next write ends it
		_ = b.file.Close()
		b.file = nil
		return fmt.Errorf("the book of runs: %w", err)
	}
	b.take(r)
	close(b.changed)
	b.changed = make(chan struct{})
	return nil
}

// toDay makes a day's file the one to write to. It needs b.mu.
func (b *Book) toDay(day string) error {
	if b.file != nil && b.day == day {
		return nil
	}
	if b.file != nil {
		_ = b.file.Close() // every line is durable
		b.file = nil
	}
	path := filepath.Join(b.dir, day+suffix)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := endLine(f); err != nil {
		return errors.Join(err, f.Close())
	}
	d, err := os.Open(b.dir)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	b.file, b.day = f, day
	return nil
}

// endLine makes sure that a torn line at the end of a file is not made longer.
func endLine(f *os.File) error {
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], st.Size()-1); err != nil {
		return err
	}
	if last[0] != '\n' {
		_, err = f.Write([]byte{'\n'})
	}
	return err
}

// shorten keeps the beginning and the end of a log.
func shorten(log []string) []string {
	total := 0
	for _, l := range log {
		total += len(l) + 1
	}
	if total <= MaxLog {
		return log
	}
	cut := func(l string) string { return l[:min(len(l), 1000)] }
	var head, tail []string
	n := 0
	for _, l := range log {
		if l = cut(l); n+len(l) > MaxLog/4 {
			break
		}
		n += len(l) + 1
		head = append(head, l)
	}
	n = 0
	for i := len(log) - 1; i >= len(head); i-- {
		l := cut(log[i])
		if n+len(l) > MaxLog/2 {
			break
		}
		n += len(l) + 1
		tail = append(tail, l)
	}
	slices.Reverse(tail)
	return append(append(head, fmt.Sprintf("… %d lines are left out …", len(log)-len(head)-len(tail))), tail...)
}

// Unfinished gives the runs that began and did not end, oldest first.
func (b *Book) Unfinished() []Run {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]Run, 0, len(b.open))
	for _, r := range b.open {
		list = append(list, r)
	}
	slices.SortFunc(list, func(x, y Run) int { return cmp.Or(x.Started.Compare(y.Started), cmp.Compare(x.ID, y.ID)) })
	return list
}

// Last gives the newest run that ended of a kind, of a VM or a repository; one
// that was skipped does not count.
func (b *Book) Last(kind Kind, name string) (Run, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, ok := b.last[key{kind, name}]
	return r, ok
}

// LastGood is Last of those that were good.
func (b *Book) LastGood(kind Kind, name string) (Run, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, ok := b.good[key{kind, name}]
	return r, ok
}

// NewestFor gives the newest run that ended, also one that was skipped, of a kind
// that a job asked for ("" if none), of a VM or a repository. If it was for several
// jobs it is given as this one's.
func (b *Book) NewestFor(kind Kind, job, name string) (Run, bool) {
	return b.newestFor(kind, job, name, false)
}

// NewestGoodFor is NewestFor of those that were good.
func (b *Book) NewestGoodFor(kind Kind, job, name string) (Run, bool) {
	return b.newestFor(kind, job, name, true)
}

func (b *Book) newestFor(kind Kind, job, name string, good bool) (Run, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, ok := b.slots[slotKey{kind, job, name, good}]
	return r, ok
}

// Runs gives runs that ended, newest first, without logs: those for which keep
// says yes (nil: all), at most limit.
func (b *Book) Runs(limit int, keep func(Run) bool) []Run {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []Run
	for i := len(b.runs) - 1; i >= 0 && len(list) < limit; i-- {
		if keep == nil || keep(b.runs[i]) {
			list = append(list, b.runs[i])
		}
	}
	return list
}

// Find gives a run that ended, with its log, from its file. ok is false if there is none.
func (b *Book) Find(id string) (found Run, ok bool, err error) {
	days, err := b.days()
	if err != nil {
		return Run{}, false, err
	}
	if name := b.dayOf(id); name != "" { // its file is known: not all are read
		days = slices.DeleteFunc(days, func(d day) bool { return filepath.Base(d.path) != name })
	}
	needle := []byte(`"id":` + fmt.Sprintf("%q", id))
	for i := len(days) - 1; i >= 0 && !ok; i-- {
		body, err := os.ReadFile(days[i].path)
		if err != nil {
			return Run{}, false, err
		}
		for line := range bytes.Lines(body) {
			var r Run
			if bytes.Contains(line, needle) && json.Unmarshal(line, &r) == nil && r.ID == id && !r.Ended.IsZero() {
				found, ok = r, true
			}
		}
	}
	return found, ok, nil
}

// Whole says whether Runs can give all runs that ever ended: none is gone with
// its day, and there are not too many for memory.
func (b *Book) Whole() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.cut
}

// dayOf gives the name of the file in which the end of a run is, if the run is in
// memory; else "".
func (b *Book) dayOf(id string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(b.runs) - 1; i >= 0; i-- {
		if b.runs[i].ID == id {
			return b.runs[i].Ended.UTC().Format(dayFormat) + suffix
		}
	}
	return ""
}

// Damaged is how many lines could not be read when the book was opened.
func (b *Book) Damaged() int { return b.damaged }

// Changed is closed when something is written after the call.
func (b *Book) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// Close closes the book.
func (b *Book) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil {
		return nil
	}
	err := b.file.Close()
	b.file = nil
	return err
}

// day is one file.
type day struct {
	path string
	date time.Time
	size int64
}

// days lists the files, oldest first.
func (b *Book) days() (list []day, err error) {
	entries, err := os.ReadDir(b.dir) // by name
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		date, derr := time.Parse(dayFormat, name)
		info, ierr := e.Info()
		if !ok || derr != nil || errors.Is(ierr, fs.ErrNotExist) {
			continue
		}
		if ierr != nil {
			return nil, ierr
		}
		list = append(list, day{filepath.Join(b.dir, e.Name()), date, info.Size()})
	}
	return list, nil
}

// Tidy removes days that are too old, and the oldest of too many bytes.
func (b *Book) Tidy(now time.Time) error { return b.tidy(now, maxBytes) }

func (b *Book) tidy(now time.Time, most int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	days, err := b.days()
	if err != nil {
		return err
	}
	var total int64
	for _, d := range days {
		total += d.size
	}
	wrote := false
	for _, d := range days {
		if (now.Sub(d.date) <= maxAge && total <= most) || filepath.Base(d.path) == b.day+suffix {
			break
		}
		if !wrote {
			if err := b.writeKept(); err != nil {
				return err
			}
			wrote, b.cut = true, true
		}
		if err := os.Remove(d.path); err != nil {
			return err
		}
		total -= d.size
	}
	return nil
}

// kept is what outlives its day.
type kept struct {
	Last []Run `json:"last"`
	Good []Run `json:"good"`
	For  []Run `json:"for,omitempty"` // the newest of each job
}

// writeKept needs b.mu.
func (b *Book) writeKept() error {
	var k kept
	for _, r := range b.last {
		k.Last = append(k.Last, r)
	}
	for _, r := range b.good {
		k.Good = append(k.Good, r)
	}
	for _, r := range b.slots {
		k.For = append(k.For, r)
	}
	body, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return durable.Replace(filepath.Join(b.dir, keptName), body)
}

func (b *Book) readKept() error {
	body, err := os.ReadFile(filepath.Join(b.dir, keptName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	b.cut = true
	var k kept
	if json.Unmarshal(body, &k) != nil {
		b.damaged++
		return nil
	}
	// Oldest first: the newest of each stays.
	all := slices.Concat(k.For, k.Last, k.Good)
	slices.SortStableFunc(all, func(x, y Run) int { return x.Ended.Compare(y.Ended) })
	for _, r := range all {
		b.newest(r)
	}
	return nil
}
