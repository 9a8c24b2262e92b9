package web

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net/http"
	"strconv"
	"time"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"

	"cairn/cmd/internal/library"
	"cairn/fs/tree"
	"cairn/guest/filesystem"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// lastName is the file at the end of an archive that says what it lacks. The
// capitals bring it to the top of a listing.
const lastName = "CAIRN-NOT-READ.txt"

// headerFailures is a trailer: how many files could not be read.
const headerFailures = "Cairn-Not-Read"

// archive streams a folder as tar.gz or zip.
func (s *site) archive(w http.ResponseWriter, r *http.Request) {
	form, readable := r.URL.Query().Get("form"), r.URL.Query().Get("damaged") == "leave-out"
	s.sending(w, r, func(_ *library.Snapshot, p restorepoint.Summary, at place, o opening) error {
		if !o.attr.IsDir() {
			return errAsked("%s is a %s, not a folder: download it by itself", at, "file")
		}
		name := at.base(p.VM)
		if !nameable(name) || len(name) > 255 {
			name = "files"
		}
		file := fmt.Sprintf("%s-%s-%s", p.VM, restorepoint.DirName(p.Time), name)
		if at.in == "/" {
			file = fmt.Sprintf("%s-%s", p.VM, restorepoint.DirName(p.Time))
		}
		w.Header().Set("Trailer", headerFailures)
		if r.Method == http.MethodHead {
			attach(w, file, "application/octet-stream")
			return nil
		}
		out := &paced{w: w, out: http.NewResponseController(w)}
		var done tree.Copied
		var err error
		switch form {
		case "", "tar.gz":
			attach(w, file+".tar.gz", "application/gzip")
			done, err = tarGzip(r.Context(), out, o, name)
		case "zip":
			attach(w, file+".zip", "application/zip")
			done, err = zipOut(r.Context(), out, o, name)
		default:
			return errAsked("the form is tar.gz or zip")
		}
		failures := int64(len(done.Failures)) + done.MoreFailures
		w.Header().Set(headerFailures, strconv.FormatInt(failures, 10))
		switch {
		case err != nil && r.Context().Err() == nil:
			s.Log.Warn("an archive broke off", "point", p.ID, "path", at.String(), "error", err)
			panic(http.ErrAbortHandler) // nothing takes what was sent for an archive
		case failures > 0:
			s.Log.Warn("an archive lacks what cannot be read", "point", p.ID, "path", at.String(), "files", failures)
			if !readable {
				_ = out.out.Flush()         // all of it, with the list, reaches the reader
				panic(http.ErrAbortHandler) // and nothing takes it for whole
			}
		}
		return nil
	})
}

// paced gives the receiver its time anew for each piece.
type paced struct {
	w   io.Writer
	out *http.ResponseController
}

func (p *paced) Write(b []byte) (int, error) {
	_ = p.out.SetWriteDeadline(time.Now().Add(writeTime)) // a writer without deadlines has none
	return p.w.Write(b)
}

// notRead is the text of lastName; "" when all was read.
func notRead(done tree.Copied) string {
	failures := int64(len(done.Failures)) + done.MoreFailures
	if failures == 0 && len(done.NotKept) == 0 {
		return ""
	}
	var b bytes.Buffer
	if failures > 0 {
		fmt.Fprintf(&b, "This archive is NOT whole. %s not be read or kept:\n\n", countOf(int(failures), "thing could", "things could"))
		for _, f := range done.Failures {
			fmt.Fprintf(&b, "%s\n    %v\n", catalogue.Printable(f.Path), f.Err)
		}
		if done.MoreFailures > 0 {
			fmt.Fprintf(&b, "and %d more\n", done.MoreFailures)
		}
	}
	for _, l := range done.NotKept {
		fmt.Fprintf(&b, "\nNot kept: %s, %d times (%s), for example of %s\n", l.What, l.Count, l.Why, catalogue.Printable(l.Example))
	}
	return b.String()
}

func last(done tree.Copied) (string, []byte) {
	text := notRead(done)
	if text == "" {
		return "", nil
	}
	return lastName, []byte(text)
}

func tarGzip(ctx context.Context, w io.Writer, o opening, name string) (tree.Copied, error) {
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return tree.Copied{}, err
	}
	out := bufio.NewWriterSize(z, 256<<10)
	done, err := tree.TarOutWith(ctx, o.view, o.at, out, name, tree.TarOptions{Damaged: damaged, Last: last})
	if err != nil {
		return done, err
	}
	return done, errors.Join(out.Flush(), z.Close())
}

// zipOut writes a folder as zip. Owners, extended attributes and hard links are
// not in it, and of special files only symbolic links: the rest is listed.
func zipOut(ctx context.Context, w io.Writer, o opening, name string) (tree.Copied, error) {
	z := &zipper{ctx: ctx, view: o.view, w: zip.NewWriter(w), buffer: make([]byte, 1<<20)}
	z.w.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestSpeed) })
	if err := tree.Visit(ctx, o.view, o.at, name, z); err != nil {
		return z.done, err
	}
	if last, body := last(z.done); last != "" {
		f, err := z.w.Create(name + "/" + last)
		if err == nil {
			_, err = f.Write(body)
		}
		if err != nil {
			return z.done, err
		}
	}
	return z.done, z.w.Close()
}

// zipper is one zipOut: the Sink of a Visit.
type zipper struct {
	ctx    context.Context
	view   *tree.View
	w      *zip.Writer
	done   tree.Copied
	buffer []byte
	fatal  error
}

// maxFailures bounds how many are listed.
const maxFailures = 1000

// Failed implements tree.Sink.
func (z *zipper) Failed(path string, why error) error {
	if z.fatal != nil {
		return fmt.Errorf("%s: %w", path, z.fatal)
	}
	if len(z.done.Failures) < maxFailures {
		z.done.Failures = append(z.done.Failures, tree.Failure{Path: path, Err: why})
	} else {
		z.done.MoreFailures++
	}
	return nil
}

func (z *zipper) header(i *tree.Item, mode iofs.FileMode) *zip.FileHeader {
	h := &zip.FileHeader{Name: i.Path, Method: zip.Deflate, Modified: time.Unix(i.Attr.Mtime.Sec, 0).UTC()}
	perm := iofs.FileMode(i.Attr.Mode & 0o777)
	for bit, set := range map[uint32]iofs.FileMode{0o4000: iofs.ModeSetuid, 0o2000: iofs.ModeSetgid, 0o1000: iofs.ModeSticky} {
		if i.Attr.Mode&bit != 0 {
			perm |= set
		}
	}
	h.SetMode(mode | perm)
	return h
}

// maxZipName is how long a name in a zip can be, bytes.
const maxZipName = 65535

var errZipName = errors.New("its path is too long for zip: take tar.gz")

func (z *zipper) create(h *zip.FileHeader) (io.Writer, error) {
	if len(h.Name) > maxZipName {
		return nil, errZipName
	}
	w, err := z.w.CreateHeader(h)
	z.fatal = err
	return w, err
}

// Enter implements tree.Sink.
func (z *zipper) Enter(i *tree.Item) error {
	h := z.header(i, iofs.ModeDir)
	h.Name, h.Method = h.Name+"/", zip.Store
	z.done.Dirs++
	_, err := z.create(h)
	return err
}

// Leave implements tree.Sink.
func (z *zipper) Leave(*tree.Item) error { return nil }

var errNotInZip = errors.New("zip cannot hold devices, pipes and sockets: take tar.gz")

// Take implements tree.Sink.
func (z *zipper) Take(i *tree.Item) error {
	switch i.Attr.Mode & filesystem.ModeType {
	case filesystem.ModeRegular:
		return z.regular(i)
	case filesystem.ModeSymlink:
		target, err := z.view.Target(z.ctx, i.Node)
		if err != nil {
			return err
		}
		w, err := z.create(z.header(i, iofs.ModeSymlink))
		if err != nil {
			return err
		}
		z.done.Links++
		_, z.fatal = io.WriteString(w, target)
		return z.fatal
	}
	return errNotInZip
}

// regular writes a file. One that is small is read before it is begun, so that it
// is left out when it is damaged; of a larger one what cannot be read is zeros.
func (z *zipper) regular(i *tree.Item) error {
	f, err := z.view.Tree().Open(z.ctx, i.Node)
	if err != nil {
		return err
	}
	size := f.Size()
	read := func(p []byte, off int64) error {
		n, err := f.ReadAt(p, off)
		if n < len(p) {
			return fmt.Errorf("read at byte %d: %w", off+int64(n), errors.Join(err, io.ErrUnexpectedEOF))
		}
		return nil
	}
	if size <= int64(len(z.buffer)) {
		if err := read(z.buffer[:size], 0); err != nil {
			z.fatal = notDamage(err)
			return err
		}
	}
	w, err := z.create(z.header(i, 0))
	if err != nil {
		return err
	}
	z.done.Files++
	var hole error
	var filled int64
	for off := int64(0); off < size; {
		if z.fatal = z.ctx.Err(); z.fatal != nil {
			return z.fatal
		}
		p := z.buffer[:min(int64(len(z.buffer)), size-off)]
		if err := read(p, off); err != nil {
			if z.fatal = notDamage(err); z.fatal != nil {
				return z.fatal
			}
			const block = 4096
			for at := int64(0); at < int64(len(p)); at += block {
				piece := p[at:min(at+block, int64(len(p)))]
				if err := read(piece, off+at); err != nil {
					if z.fatal = notDamage(err); z.fatal != nil {
						return z.fatal
					}
					clear(piece)
					filled += int64(len(piece))
					hole = err
				}
			}
		}
		if _, z.fatal = w.Write(p); z.fatal != nil {
			return z.fatal
		}
		off += int64(len(p))
		z.done.Bytes += int64(len(p))
	}
	if hole != nil {
		return fmt.Errorf("%d bytes of it cannot be read and are zeros in the archive: %w", filled, hole)
	}
	return nil
}

// notDamage gives an error that is not of the file: it ends the archive.
func notDamage(err error) error {
	if damaged(err) {
		return nil
	}
	return err
}
