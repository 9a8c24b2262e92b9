package discover

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"path"
	"slices"
	"strings"
	"syscall"

	"cairn/guest/object"
)

// What one look for one kind of object may cost.
const (
	maxCalls  = 20_000   // of the Root
	maxBytes  = 64 << 20 // read from files
	maxConfig = 1 << 20  // of one configuration file
	maxNames  = 4096     // of one directory
	maxMatch  = 1000     // of one pattern
	maxMissed = 32       // complaints
	maxNested = 16       // files that include each other
)

// search is one look through a tree. It counts what it costs, and remembers
// what it could not see: an object that is not there, and one that could not be
// read, are not the same.
type search struct {
	root   Root
	calls  int   // still to be made
	bytes  int64 // still to be read
	missed []error
}

func look(root Root) *search { return &search{root: root, calls: maxCalls, bytes: maxBytes} }

// err is all that was missed, or nil.
func (s *search) err() error { return errors.Join(s.missed...) }

// miss remembers an error, unless it says that nothing is there, or that we are
// not to look.
func (s *search) miss(err error) {
	if err == nil || absent(err) || len(s.missed) > maxMissed {
		return
	}
	if len(s.missed) == maxMissed {
		err = errors.New("and more: the guest has an unusual number of files that cannot be read")
	}
	for _, before := range s.missed {
		if before.Error() == err.Error() {
			return
		}
	}
	s.missed = append(s.missed, err)
}

func absent(err error) bool {
	return errors.Is(err, iofs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, ErrExcluded)
}

// pay says whether one more call may be made.
func (s *search) pay(ctx context.Context) bool {
	if err := ctx.Err(); err != nil {
		s.miss(fmt.Errorf("the search was not finished: %w", err))
		return false
	}
	if s.calls--; s.calls < 0 || s.bytes < 0 {
		s.miss(errors.New("the search was given up: it led to too many files"))
		return false
	}
	return true
}

// read gives a file's contents; nil when it is not there or cannot be read.
func (s *search) read(ctx context.Context, name string, limit int64) []byte {
	if !s.pay(ctx) {
		return nil
	}
	b, err := s.root.ReadFile(name, min(limit, s.bytes))
	if err != nil {
		s.miss(named(name, err))
		return nil
	}
	s.bytes -= int64(len(b))
	return b
}

// line gives the first line of a small file, without the space around it.
func (s *search) line(ctx context.Context, name string) string {
	first, _, _ := strings.Cut(string(s.read(ctx, name, object.MaxText)), "\n")
	return object.Text(strings.TrimSpace(first))
}

// list gives the names in a directory.
func (s *search) list(ctx context.Context, name string) []string {
	if !s.pay(ctx) {
		return nil
	}
	names, err := s.root.ReadDir(name, maxNames)
	if err != nil {
		s.miss(named(name, err))
	}
	for _, n := range names {
		s.bytes -= int64(len(n))
	}
	return names
}

// stat gives what a name leads to, with its path.
func (s *search) stat(ctx context.Context, name string) (Info, bool) {
	if !s.pay(ctx) {
		return Info{}, false
	}
	info, err := s.root.Stat(name)
	if err != nil {
		s.miss(named(name, err))
		return Info{}, false
	}
	if info.Path == "" {
		info.Path = path.Clean(name)
	}
	return info, true
}

// dir gives the path of the directory that a name leads to.
func (s *search) dir(ctx context.Context, name string) (string, bool) {
	info, ok := s.stat(ctx, name)
	return info.Path, ok && info.Dir
}

func (s *search) exists(ctx context.Context, name string) bool {
	_, ok := s.stat(ctx, name)
	return ok
}

// glob gives the names that a pattern fits, sorted, as a shell would.
func (s *search) glob(ctx context.Context, pattern string) []string {
	found := []string{"/"}
	for part := range strings.SplitSeq(path.Clean("/"+pattern), "/") {
		if part == "" {
			continue
		}
		var next []string
		for _, dir := range found {
			if len(next) > maxMatch {
				break
			}
			if !strings.ContainsAny(part, `*?[\`) {
				next = append(next, path.Join(dir, part)) // the last one may not be there
				continue
			}
			for _, name := range s.list(ctx, dir) {
				ok, err := path.Match(part, name)
				if err == nil && ok && (name[0] != '.' || part[0] == '.') {
					next = append(next, path.Join(dir, name))
				}
			}
		}
		if found = next; len(found) > maxMatch {
			s.miss(fmt.Errorf("%s leads to more than %d files", pattern, maxMatch))
			found = found[:maxMatch]
		}
	}
	slices.Sort(found)
	return found
}

// named makes an error say which file it is about, once.
func named(name string, err error) error {
	var p *iofs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return fmt.Errorf("%s: %w", name, err)
}
