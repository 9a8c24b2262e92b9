package webdav

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/webdav"

	"cairn/fs"
	"cairn/fs/tree"
	"cairn/guest/filesystem"
)

// session is one request's view of the tree. It implements webdav.FileSystem, and
// remembers what it has looked up: the library asks for each thing several times.
// Calls into the tree run in goroutines of their own (within), one after the other;
// when one is given up the session is over, since it goes on to use what is here.
type session struct {
	h      *handler
	ctx    context.Context
	spots  map[string]*spot // folders and files that were looked up, by path
	infos  map[string]*info // by path; also of what was only listed
	below  []*info          // what is in the folder listed
	listed string           // its path
	file   *file            // that is read

	over   bool  // a call was given up
	failed error // the first error behind the beginning of the answer

	mu       sync.Mutex
	ended    bool
	running  int // calls
	releases []func()
	browsers map[string]*fs.Browser // by repository
}

// end gives the catalogues back when no call uses them any more.
func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.releaseIfDone()
}

// releaseIfDone needs s.mu.
func (s *session) releaseIfDone() {
	if s.ended && s.running == 0 {
		for _, release := range s.releases {
			release()
		}
		s.releases = nil
	}
}

// within calls into the tree, for as long as a request may wait.
func (s *session) within(call func(ctx context.Context) error) error {
	if s.over {
		return errSlow
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.h.o.Deadline)
	defer cancel()
	err := s.start(ctx, call)
	select {
	case err := <-err:
		return err
	case <-ctx.Done():
		s.over = true
		if s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		return errSlow
	}
}

// start begins a call, and gives where its error comes.
func (s *session) start(ctx context.Context, call func(ctx context.Context) error) <-chan error {
	done := make(chan error, 1)
	select {
	case s.h.calls <- struct{}{}:
	default:
		done <- errBusy
		return done
	}
	s.mu.Lock()
	s.running++
	s.mu.Unlock()
	go func() { // ends when the tree answers; h.calls bounds how many do not
		defer func() {
			<-s.h.calls
			s.mu.Lock()
			defer s.mu.Unlock()
			s.running--
			s.releaseIfDone()
		}()
		done <- call(ctx)
	}()
	return done
}

// browser opens a repository, once.
func (s *session) browser(ctx context.Context, repository string) (*fs.Browser, error) {
	if b := s.browsers[repository]; b != nil {
		return b, nil
	}
	b, release, err := s.h.browse(ctx, repository)
	if err != nil {
		return nil, err
	}
	if s.browsers == nil {
		s.browsers = map[string]*fs.Browser{}
	}
	s.browsers[repository] = b
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releases = append(s.releases, release)
	return b, nil
}

// clean gives a path as it is remembered.
func clean(name string) string { return path.Clean("/" + name) }

// stat looks up what a path names.
func (s *session) stat(name string) (i *info, err error) {
	if s.over {
		return nil, errSlow
	}
	name = clean(name)
	if known := s.infos[name]; known != nil {
		return known, nil
	}
	err = s.within(func(ctx context.Context) error {
		at, err := s.walk(ctx, name)
		if err != nil {
			return err
		}
		i, err = s.infoOf(ctx, at, path.Base(name))
		if err == nil {
			s.infos[name] = i
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return i, nil
}

// infoOf says what is at a spot, under the name that led there.
func (s *session) infoOf(ctx context.Context, at *spot, name string) (*info, error) {
	if at.place == nil {
		return &info{name: "/", dir: true}, nil
	}
	a, err := at.place.node.Attr(ctx)
	if err != nil {
		return nil, err
	}
	return newInfo(name, a), nil
}

// open opens a file for reading.
func (s *session) open(name string) error {
	name = clean(name)
	return s.within(func(ctx context.Context) error {
		at, err := s.walk(ctx, name)
		if err != nil {
			return err
		}
		content, err := at.place.node.Content(ctx)
		if err != nil {
			return err
		}
		i := *s.infos[name]
		i.size = content.Size() // a document may be another one by now
		s.infos[name] = &i
		s.file = &file{s: s, info: &i, content: content}
		return nil
	})
}

// Stat implements webdav.FileSystem.
func (s *session) Stat(_ context.Context, name string) (os.FileInfo, error) {
	i, err := s.stat(name)
	if err != nil {
		return nil, s.fails(err)
	}
	return i, nil
}

// OpenFile implements webdav.FileSystem. What was only listed is not opened: the
// library asks for its properties.
func (s *session) OpenFile(_ context.Context, name string, flag int, _ os.FileMode) (webdav.File, error) {
	if flag != os.O_RDONLY {
		return nil, os.ErrPermission
	}
	i, err := s.stat(name)
	if err != nil {
		return nil, s.fails(err)
	}
	if s.file != nil && s.file.info == i {
		return s.file, nil
	}
	return &file{s: s, info: i, path: clean(name)}, nil
}

// fails remembers that the answer cannot be what it should be.
func (s *session) fails(err error) error {
	if s.failed == nil {
		s.failed = err
	}
	return err
}

// Mkdir implements webdav.FileSystem, as the two below: nothing is written.
func (s *session) Mkdir(context.Context, string, os.FileMode) error { return os.ErrPermission }

// RemoveAll implements webdav.FileSystem.
func (s *session) RemoveAll(context.Context, string) error { return os.ErrPermission }

// Rename implements webdav.FileSystem.
func (s *session) Rename(context.Context, string, string) error { return os.ErrPermission }

// place is a node where it really is, behind all links.
type place struct {
	node  fs.Node
	above *place // nil: the top of a repository
	path  string // with the repository's name
}

// spot is a place by the path that led there.
type spot struct {
	place *place // nil: the folder of repositories
	up    *spot
	links int // to folders, on the path
}

// maxDirLinks is how many links to folders a path may go through.
const maxDirLinks = 8

// walk finds what a path names.
func (s *session) walk(ctx context.Context, name string) (*spot, error) {
	if known := s.spots[name]; known != nil {
		return known, nil
	}
	if name == "/" {
		return &spot{}, nil
	}
	up, err := s.walk(ctx, path.Dir(name))
	if err != nil {
		return nil, err
	}
	at, err := s.step(ctx, up, path.Base(name))
	if err != nil {
		return nil, err
	}
	s.spots[name] = at
	return at, nil
}

// step goes to a name in a folder.
func (s *session) step(ctx context.Context, up *spot, name string) (*spot, error) {
	if up.place == nil {
		b, err := s.browser(ctx, name)
		if err != nil {
			return nil, err
		}
		return &spot{place: &place{node: b.Root(), path: name}, up: up}, nil
	}
	hops := 0
	p, linked, err := enter(ctx, up.place, name, &hops)
	if err != nil {
		return nil, err
	}
	at := &spot{place: p, up: up, links: up.links}
	if p.node.Kind() != filesystem.ModeDir {
		return at, nil
	}
	if linked {
		at.links++
	}
	if at.links > maxDirLinks {
		return nil, fmt.Errorf("more than %d links to folders on the path: %w", maxDirLinks, tree.ErrLoop)
	}
	if up.through(p) {
		return nil, fmt.Errorf("%q is a folder that the path has been through: %w", name, tree.ErrLoop)
	}
	return at, nil
}

// through says whether the path to a spot has been through a folder: by a link, or
// since a damaged image has it in itself.
func (at *spot) through(p *place) bool {
	for u := at; u.place != nil; u = u.up {
		if u.place.path == p.path || u.place.node.Ino() == p.node.Ino() {
			return true
		}
	}
	return false
}

// enter finds a name in a folder, and follows it if it is a link.
func enter(ctx context.Context, in *place, name string, hops *int) (p *place, linked bool, err error) {
	if len(in.path)+len(name) > maxPath {
		return nil, false, tree.ErrTooLong
	}
	n, err := in.node.Child(ctx, name)
	if err != nil {
		return nil, false, err
	}
	if n.Kind() != filesystem.ModeSymlink {
		return &place{node: n, above: in, path: in.path + "/" + name}, false, nil
	}
	if *hops++; *hops > tree.MaxLinks {
		return nil, true, tree.ErrLoop
	}
	target, err := n.Target(ctx)
	if err != nil {
		return nil, true, err
	}
	if strings.HasPrefix(target, "/") { // none is: they are contained
		return nil, true, filesystem.ErrNotExist
	}
	at := in
	for _, part := range strings.Split(target, "/") {
		switch {
		case part == "" || part == ".":
		case part == ".." && at.above == nil:
			return nil, true, filesystem.ErrNotExist
		case part == "..":
			at = at.above
		default:
			if at, _, err = enter(ctx, at, part, hops); err != nil {
				return nil, true, err
			}
		}
		if ctx.Err() != nil {
			return nil, true, ctx.Err()
		}
	}
	return at, true, nil
}

// maxPath bounds a path, in bytes.
const maxPath = 32 << 10

// documentWait is how long a listing waits for a document that is made.
const documentWait = 2 * time.Second

// list gives what is in a folder.
func (s *session) list(name string) (list []*info, err error) {
	if s.over {
		return nil, errSlow
	}
	name = clean(name)
	if s.listed == name {
		return s.below, nil
	}
	err = s.within(func(ctx context.Context) error {
		at, err := s.walk(ctx, name)
		if err != nil {
			return err
		}
		if at.place == nil {
			for _, r := range s.h.repositories() {
				list = append(list, &info{name: r, dir: true})
			}
		} else if list, err = s.children(ctx, at, s.infos[name].mtime); err != nil {
			return err
		}
		for _, i := range list {
			s.infos[path.Join(name, i.name)] = i
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.below, s.listed = list, name
	return list, nil
}

// children lists a folder; what has no time of its own yet gets stamp.
func (s *session) children(ctx context.Context, at *spot, stamp time.Time) (list []*info, err error) {
	var nodes []fs.Node
	wide := false
	err = at.place.node.Children(ctx, func(n fs.Node) bool {
		wide = len(nodes) == maxEntries
		nodes = append(nodes, n)
		return !wide && ctx.Err() == nil
	})
	switch {
	case wide:
		return nil, errWide
	case err == nil:
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		i, err := s.look(ctx, at, n, stamp)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			return nil, err
		case i != nil:
			list = append(list, i)
		}
	}
	return list, nil
}

// look says what a node of a folder is; nothing if it is not to be listed.
func (s *session) look(ctx context.Context, at *spot, n fs.Node, stamp time.Time) (*info, error) {
	switch n.Kind() {
	case filesystem.ModeDir:
		if at.through(&place{node: n}) {
			return nil, nil
		}
		if n.Costly() {
			return &info{name: n.Name(), dir: true, mtime: stamp}, nil
		}
	case filesystem.ModeSymlink:
		return s.listedLink(ctx, at, n.Name())
	case filesystem.ModeRegular:
		if n.Costly() {
			return s.listedDocument(n)
		}
	case 0: // looking it up tells the error
	default:
		return nil, nil
	}
	a, err := n.Attr(ctx)
	switch kind := a.Mode & filesystem.ModeType; {
	case err == nil && kind == filesystem.ModeSymlink: // a version that is one
		return s.listedLink(ctx, at, n.Name())
	case err == nil && kind != filesystem.ModeDir && kind != filesystem.ModeRegular:
		return nil, nil
	case err == nil:
		return newInfo(n.Name(), a), nil
	case tree.Lasting(err):
		return &info{name: n.Name(), dir: n.Kind() == filesystem.ModeDir, mtime: stamp}, nil
	}
	return nil, err
}

// listedLink says what a link leads to.
func (s *session) listedLink(ctx context.Context, at *spot, name string) (*info, error) {
	to, err := s.step(ctx, at, name)
	var i *info
	if err == nil {
		i, err = s.infoOf(ctx, to, name)
	}
	switch {
	case err == nil && (i.dir || to.place.node.Kind() == filesystem.ModeRegular):
		return i, nil
	case err == nil, fs.IsMissing(err), errors.Is(err, tree.ErrLoop), errors.Is(err, tree.ErrTooLong):
		return nil, nil
	case tree.Lasting(err): // there is something, and it is damaged
		return &info{name: name}, nil
	}
	return nil, err
}

// listedDocument says how large a document is, if that is soon known. It goes on to
// be made for those who come later, for as long as one request may wait.
func (s *session) listedDocument(n fs.Node) (*info, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), s.h.o.Deadline)
	var i *info
	err := s.start(ctx, func(ctx context.Context) error {
		defer cancel()
		a, err := n.Attr(ctx)
		if err == nil && a.Mode&filesystem.ModeType == filesystem.ModeRegular {
			i = newInfo(n.Name(), a)
		}
		return err
	})
	select {
	case err := <-err:
		cancel()
		if errors.Is(err, errBusy) || err != nil && tree.Lasting(err) {
			return &info{name: n.Name()}, nil
		}
		return i, err
	case <-time.After(documentWait):
		return nil, nil
	}
}
