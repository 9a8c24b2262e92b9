package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"cairn/chunkstore/pack"
	"cairn/cmd/internal/library"
	"cairn/cmd/internal/wire"
	"cairn/fs/tree"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// opening is something of a point that is about to be sent.
type opening struct {
	view *tree.View
	at   *tree.Place
	attr filesystem.Attr
	file filesystem.File // of a regular file
}

// sending prepares a download: it finds what is asked for, and says what the
// browser may do with it (save it). The catalogue is given back by release.
func (s *site) sending(w http.ResponseWriter, r *http.Request, f func(snap *library.Snapshot, p restorepoint.Summary, at place, o opening) error) {
	fail := func(err error) {
		s.show(w, r, s.errorView(r, err))
	}
	select {
	case s.send <- struct{}{}:
		defer func() { <-s.send }()
	default:
		fail(problem{http.StatusServiceUnavailable, fmt.Sprintf("%d downloads are under way: try again when one has ended", maxDownloads)})
		return
	}
	snap, p, err := s.findPoint(r)
	if err != nil {
		fail(err)
		return
	}
	at, err := parsePlace(r.URL.Query().Get("path"))
	if err != nil {
		fail(err)
		return
	}
	// The repository stays open as long as something of it is sent.
	_, release, err := s.Library.Catalogue(r.Context(), snap.Repository)
	if err != nil {
		fail(err)
		return
	}
	defer release()
	o, err := ask(r.Context(), s, snap.Repository, func(ctx context.Context, cat *wire.Catalogue) (o opening, err error) {
		if err := cat.MayRead(); err != nil {
			return o, err
		}
		open, err := s.points.open(ctx, cat, p.ID)
		if err != nil {
			return o, err
		}
		if o.view, err = at.view(ctx, open.tree); err != nil {
			return o, err
		}
		if o.at, err = o.view.Walk(ctx, o.view.Root(), at.in, true); err != nil {
			return o, err
		}
		if o.attr, err = open.tree.Attr(ctx, o.at.Node); err != nil {
			return o, err
		}
		if o.attr.IsRegular() {
			o.file, err = open.tree.Open(ctx, o.at.Node)
		}
		return o, err
	})
	if err != nil {
		fail(err)
		return
	}
	if err := f(snap, p, at, o); err != nil {
		fail(err)
	}
}

// attach says that what comes is a file to be saved.
func attach(w http.ResponseWriter, name, kind string) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Disposition", disposition(name))
	h.Set("Content-Security-Policy", sandbox)
	h.Set("X-Content-Type-Options", "nosniff")
}

// maxFileName is as much of a file's name as a browser is told, bytes.
const maxFileName = 200

// disposition names an attachment (RFC 6266): in ASCII for old readers, and as it
// is, by RFC 8187. What could mean something to the reader's system is replaced.
func disposition(name string) string {
	clean := strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || strings.ContainsRune(`/\:*?"<>|%`, r) || !unicode.IsPrint(r) && r != ' ' {
			return '_'
		}
		return r
	}, strings.ToValidUTF8(name, "_"))
	for len(clean) > maxFileName {
		_, n := utf8.DecodeLastRuneInString(clean)
		clean = clean[:len(clean)-n]
	}
	clean = strings.TrimRight(strings.TrimSpace(clean), ". ")
	if clean == "" {
		clean = "file"
	}
	plain := strings.Map(func(r rune) rune {
		if r >= 0x7f || r < 0x20 {
			return '_'
		}
		return r
	}, clean)
	var quoted strings.Builder
	for i := range len(clean) {
		c := clean[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$&+-.^_`|~", c) >= 0 {
			quoted.WriteByte(c)
		} else {
			fmt.Fprintf(&quoted, "%%%02X", c)
		}
	}
	return `attachment; filename="` + plain + `"; filename*=UTF-8''` + quoted.String()
}

// file sends one file, or ranges of it.
func (s *site) file(w http.ResponseWriter, r *http.Request) {
	s.sending(w, r, func(_ *library.Snapshot, p restorepoint.Summary, at place, o opening) error {
		if o.file == nil {
			return errAsked("%s is a %s, not a file: only folders and files can be downloaded", at, wire.TypeName(o.attr.Mode))
		}
		attach(w, at.base(p.VM), "application/octet-stream")
		// A point never changes, and so does nothing in it.
		w.Header().Set("ETag", fmt.Sprintf(`"%s-%d-%d"`, p.ID, o.at.Node.Volume, o.at.Node.Ino))
		in := &fileReader{ctx: r.Context(), f: o.file, out: http.NewResponseController(w)}
		http.ServeContent(w, r, "", time.Unix(o.attr.Mtime.Sec, 0), in)
		if in.err != nil && r.Context().Err() == nil {
			s.Log.Warn("a download broke off", "point", p.ID, "path", at.String(), "error", in.err)
			panic(http.ErrAbortHandler) // what was sent is not the file: the connection breaks
		}
		return nil
	})
}

// fileReader is a file of a guest for http.ServeContent.
type fileReader struct {
	ctx context.Context
	f   filesystem.File
	out *http.ResponseController
	at  int64
	err error // the first of a read
}

// Read implements io.Reader. Each piece gives the receiver its time anew.
func (f *fileReader) Read(p []byte) (int, error) {
	if err := f.ctx.Err(); err != nil {
		return 0, err
	}
	left := f.f.Size() - f.at
	if left <= 0 {
		return 0, io.EOF
	}
	_ = f.out.SetWriteDeadline(time.Now().Add(writeTime)) // a writer without deadlines has none
	p = p[:min(int64(len(p)), left)]
	n, err := f.f.ReadAt(p, f.at)
	f.at += int64(n)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	f.err = fmt.Errorf("read at byte %d: %w", f.at, err)
	return n, f.err
}

// Seek implements io.Seeker.
func (f *fileReader) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += f.at
	case io.SeekEnd:
		off += f.f.Size()
	}
	if off < 0 {
		return f.at, errors.New("before the beginning")
	}
	f.at = off
	return off, nil
}

// damaged says whether an error is of the file, and will not pass.
func damaged(err error) bool { return tree.Lasting(err) || pack.IsDamage(err) }
