package receive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"cairn/guest"
	"cairn/guest/archive"
)

// writer makes files of a stream, in the stages of its targets. Nothing that it
// makes is touched by anybody else: only root can enter a stage.
type writer struct {
	put    *guest.Put
	stages []*stage
	report *report
	pieces chan<- piece
	direct *direct

	target  int   // of the tree at hand
	entries int64 // so far, of it
	bytes   int64
	open    []int    // directories that were entered, the stage's first
	names   []string // of the same, without the stage's
	skip    int      // directories entered in one that could not be made
	file    *file    // being written; nil when its contents are thrown away
	record  archive.Record
	last    int64 // offset up to which the verifier knows of file
	end     int64 // of its data
}

// run reads a stream to its end. The error ends the put; what only concerns
// one entry is in the report.
func (w *writer) run(ctx context.Context, stream io.Reader) error {
	defer w.close()
	r := archive.NewReader(stream)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var rec archive.Record
		if err := r.Next(&rec); err != nil {
			return streamError(ctx, err)
		}
		if rec.Kind == archive.Finish {
			break
		}
		if err := w.take(&rec); err != nil {
			return err
		}
	}
	if w.target != len(w.stages) {
		return refuse(guest.CodeInvalid, "%d of %d trees came", w.target, len(w.stages))
	}
	return nil
}

func streamError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, archive.ErrInvalid):
		return refuse(guest.CodeInvalid, "%v", err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return refuse(guest.CodeFailed, "the host stopped sending before the end")
	}
	return fmt.Errorf("read from the host: %w", err)
}

// close closes what is open when the stream has ended somewhere.
func (w *writer) close() {
	for len(w.open) > 0 {
		w.pop()
	}
	if w.file != nil && w.last == 0 {
		w.file.f.Close() // the verifier has never seen it
	}
}

// dir is the directory that entries are made in, and name what an entry is
// called there.
func (w *writer) dir() int {
	if len(w.open) == 0 {
		return w.stages[w.target].dir
	}
	return w.open[len(w.open)-1]
}

func (w *writer) name(rec *archive.Record) string {
	if len(w.open) == 0 {
		return newName
	}
	return rec.Name
}

// shown is an entry's path, for people.
func (w *writer) shown(rec *archive.Record) string {
	top := w.stages[min(w.target, len(w.stages)-1)].place.path()
	if len(w.open) == 0 {
		return show(top, nil, "")
	}
	return show(top, w.names[1:], rec.Name)
}

// take takes one record.
func (w *writer) take(rec *archive.Record) error {
	top := len(w.open) == 0 && w.skip == 0
	switch rec.Kind {
	case archive.Data:
		return w.data(rec)
	case archive.End:
		return w.endFile(rec)
	case archive.Broken:
		w.broken()
		return nil
	case archive.Leave:
		return w.leave(rec)
	case archive.Lost:
		w.report.count(func(r *guest.PutResult) { r.Lost++ })
		if top {
			w.next()
		}
		return nil
	}
	if err := w.announced(rec, top); err != nil {
		return err
	}
	if w.skip > 0 {
		if rec.Kind == archive.Enter {
			w.skip++
		}
		return nil
	}
	err := w.entry(rec)
	if fatal(err) {
		return failure(w.shown(rec), err)
	}
	if err != nil {
		w.report.lost(w.shown(rec), err)
		if rec.Kind == archive.Enter {
			w.skip++
			return nil
		}
	}
	if top && rec.Kind != archive.Enter && rec.Kind != archive.File {
		w.next()
	}
	return nil
}

// announced compares with what the host said before: its space was checked.
func (w *writer) announced(rec *archive.Record, top bool) error {
	if top && w.target >= len(w.stages) {
		return refuse(guest.CodeInvalid, "more than %d trees came", len(w.stages))
	}
	t := &w.put.Targets[w.target]
	if top && t.Dir != (rec.Kind == archive.Enter) {
		return refuse(guest.CodeInvalid, "%q was announced as another type of file", t.Path)
	}
	if rec.Kind == archive.Link {
		return nil
	}
	if w.entries++; w.entries > t.Entries {
		return refuse(guest.CodeInvalid, "more than the %d files came that were announced for %q", t.Entries, t.Path)
	}
	return nil
}

// next goes on to the next target.
func (w *writer) next() {
	w.target++
	w.entries, w.bytes = 0, 0
}

// entry makes an entry.
func (w *writer) entry(rec *archive.Record) error {
	switch rec.Kind {
	case archive.Enter:
		return w.enter(rec)
	case archive.File:
		return w.create(rec)
	case archive.Link:
		if err := unix.Linkat(w.stages[w.target].links, linkName(rec), w.dir(), w.name(rec), 0); err != nil {
			return fmt.Errorf("make a further name: %w", twice(err))
		}
		w.report.count(func(r *guest.PutResult) { r.Links++ })
		return nil
	case archive.Symlink:
		if err := unix.Symlinkat(rec.Target, w.dir(), w.name(rec)); err != nil {
			return fmt.Errorf("make a symbolic link: %w", twice(err))
		}
		w.report.count(func(r *guest.PutResult) { r.Links++ })
	case archive.Special:
		a := &rec.Attr
		if err := unix.Mknodat(w.dir(), w.name(rec), a.Mode&unix.S_IFMT|0o600, int(unix.Mkdev(a.Major, a.Minor))); err != nil {
			return fmt.Errorf("make a special file: %w", twice(err))
		}
		w.report.count(func(r *guest.PutResult) { r.Others++ })
	}
	if err := w.set(object{fd: -1, dir: w.dir(), name: w.name(rec)}, rec, w.shown(rec)); err != nil {
		return err
	}
	return w.keepLink(rec)
}

// twice says what it means that something is there already: a stage was empty.
func twice(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("two files of one name in a folder: %w", err)
	}
	return err
}

// set gives an object its attributes. What cannot be kept is noted; the error,
// of a full filesystem or a quota, ends the put.
func (w *writer) set(o object, rec *archive.Record, shown string) error {
	var failed error
	o.set(rec, func(err error) {
		if fatal(err) {
			failed = errors.Join(failed, failure(shown, err))
		} else {
			w.report.note(shown, err)
		}
	})
	return failed
}

func linkName(rec *archive.Record) string { return strconv.FormatUint(rec.Link, 10) }

// keepLink keeps an entry at hand that has further names. Its number is its
// name in a folder, so that a million of them need no memory.
func (w *writer) keepLink(rec *archive.Record) error {
	if rec.Link == 0 {
		return nil
	}
	if err := unix.Linkat(w.dir(), w.name(rec), w.stages[w.target].links, linkName(rec), 0); err != nil {
		return fmt.Errorf("keep it at hand for further names: %w", err)
	}
	return nil
}

func (w *writer) enter(rec *archive.Record) error {
	if err := unix.Mkdirat(w.dir(), w.name(rec), 0o700); err != nil {
		return fmt.Errorf("make a folder: %w", twice(err))
	}
	fd, err := unix.Openat(w.dir(), w.name(rec), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a folder: %w", err)
	}
	w.open = append(w.open, fd)
	w.names = append(w.names, rec.Name)
	return nil
}

// leave gives a directory its attributes: last, because writing into it moves
// its times.
func (w *writer) leave(rec *archive.Record) error {
	if w.skip > 0 {
		if w.skip--; w.skip == 0 && len(w.open) == 0 {
			w.next()
		}
		return nil
	}
	fd, name := w.open[len(w.open)-1], w.names[len(w.names)-1]
	shown := w.shown(&archive.Record{})
	o := object{fd: fd, name: name}
	if len(w.open) == 1 {
		o.dir, o.name = w.stages[w.target].dir, newName
	} else {
		o.dir = w.open[len(w.open)-2]
	}
	if err := w.set(o, rec, shown); err != nil {
		return err
	}
	w.report.count(func(r *guest.PutResult) { r.Dirs++ })
	w.pop()
	if len(w.open) == 0 {
		w.next()
	}
	return nil
}

func (w *writer) pop() {
	unix.Close(w.open[len(w.open)-1])
	w.open = w.open[:len(w.open)-1]
	w.names = w.names[:len(w.names)-1]
}

// create begins a file.
func (w *writer) create(rec *archive.Record) error {
	w.record, w.file, w.last, w.end = *rec, nil, 0, 0
	fd, err := unix.Openat(w.dir(), w.name(rec), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_NOATIME|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make a file: %w", twice(err))
	}
	shown := w.shown(rec)
	f := os.NewFile(uintptr(fd), shown)
	if err := unix.Ftruncate(fd, rec.Attr.Size); err != nil {
		f.Close()
		_ = unix.Unlinkat(w.dir(), w.name(rec), 0) // it is lost
		return fmt.Errorf("make a file of %d bytes: %w", rec.Attr.Size, err)
	}
	w.file = &file{f: f, shown: shown, size: rec.Attr.Size}
	w.direct.use(w.file, unix.O_WRONLY)
	return nil
}

func (w *writer) data(rec *archive.Record) error {
	t := &w.put.Targets[w.target]
	if w.bytes += int64(len(rec.Data)); w.bytes > t.Bytes {
		return refuse(guest.CodeInvalid, "more than the %d bytes came that were announced for %q", t.Bytes, t.Path)
	}
	if w.file == nil {
		return nil
	}
	n := w.direct.write(rec.Data, rec.Offset)
	if _, err := w.file.f.WriteAt(rec.Data[n:], rec.Offset+int64(n)); err != nil {
		if fatal(err) {
			return failure(w.file.shown, err)
		}
		w.report.lost(w.file.shown, err)
		w.discard()
		return nil
	}
	w.report.count(func(r *guest.PutResult) { r.Bytes += int64(len(rec.Data)) })
	if w.end = rec.Offset + int64(len(rec.Data)); w.end-w.last >= verifyBytes {
		w.pieces <- piece{file: w.file, to: w.end}
		w.last = w.end
	}
	return nil
}

// endFile gives a file its attributes and hands it to the verifier.
func (w *writer) endFile(rec *archive.Record) error {
	w.direct.release()
	top := len(w.open) == 0 && w.skip == 0
	if w.file != nil {
		name := w.name(&w.record)
		if err := w.keepLink(&w.record); err != nil {
			w.report.note(w.file.shown, err) // its further names will be lost
		}
		if err := w.set(object{fd: int(w.file.f.Fd()), dir: w.dir(), name: name}, &w.record, w.file.shown); err != nil {
			return err
		}
		w.report.count(func(r *guest.PutResult) { r.Files++ })
		w.pieces <- piece{file: w.file, to: w.end, end: true, digest: rec.Digest}
		w.file = nil
	}
	if top {
		w.next()
	}
	return nil
}

// broken takes a file away that the host could not read to its end.
func (w *writer) broken() {
	w.report.count(func(r *guest.PutResult) { r.Lost++ })
	w.discard()
	if len(w.open) == 0 && w.skip == 0 {
		w.next()
	}
}

// discard gives the file at hand up.
func (w *writer) discard() {
	w.direct.release()
	if w.file == nil {
		return
	}
	_ = unix.Unlinkat(w.dir(), w.name(&w.record), 0) // it goes with the stage, too
	if w.last == 0 {
		w.file.f.Close()
	} else {
		w.pieces <- piece{file: w.file, drop: true}
	}
	w.file = nil
}
