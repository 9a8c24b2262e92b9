package fs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/fs/tree"
	"cairn/guest/filesystem"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// historyName is the directory of a VM that mirrors the paths of all points.
const historyName = "history"

// gapsName is a file at the top of a history that says what it does not show.
const gapsName = "not-shown.txt"

// Bounds of what histories keep.
const (
	maxHistories = 8       // VMs whose catalogues stay open
	maxUnions    = 100_000 // names of directories that were listed lately, of one VM
	maxVersions  = 20_000  // versions of files that were listed lately, of one VM
)

// history is the past of a VM over one list of its points. It is never
// changed, but for what it remembers.
type history struct {
	server *Server
	vm     *vm
	past   *catalogue.Past
	gaps   string // text of gapsName; "": nothing is missing

	mu       sync.Mutex
	unions   remembered[*union]
	versions remembered[[]historyVersion]
}

// union is a directory of the history.
type union struct {
	names []catalogue.UnionName // sorted
}

func (u *union) find(name string) (catalogue.UnionName, bool) {
	i, ok := slices.BinarySearchFunc(u.names, name, func(n catalogue.UnionName, name string) int { return strings.Compare(n.Name, name) })
	if !ok {
		return catalogue.UnionName{}, false
	}
	return u.names[i], true
}

// historyVersion is one distinct content of a path.
type historyVersion struct {
	name  string // in the mount
	point *point
	at    string // name of the point's directory
	kind  uint32
}

// remembered keeps values by path up to a total weight; the oldest go first.
type remembered[T any] struct {
	by     map[string]T
	order  []string
	weight map[string]int
	total  int
}

func (m *remembered[T]) get(path string) (T, bool) {
	v, ok := m.by[path]
	return v, ok
}

func (m *remembered[T]) put(path string, v T, weight, most int) {
	if _, ok := m.by[path]; ok {
		return
	}
	if m.by == nil {
		m.by, m.weight = map[string]T{}, map[string]int{}
	}
	m.by[path], m.weight[path] = v, weight+1
	m.order = append(m.order, path)
	for m.total += weight + 1; m.total > most && len(m.order) > 1; {
		oldest := m.order[0]
		m.order = m.order[1:]
		m.total -= m.weight[oldest]
		delete(m.by, oldest)
		delete(m.weight, oldest)
	}
}

// histories are the open histories of a server.
type histories struct {
	mu   sync.Mutex
	open []*pending // last used at the end
}

// pending is a history that is there, or is being made.
type pending struct {
	vm   *vm
	done chan struct{} // closed when the two below are there
	h    *history
	err  error
}

// historyOf gives the history of a VM as it is listed. It is made once, also
// when those that asked first do not wait for its end; that of an earlier list
// is of help.
func (s *Server) historyOf(ctx context.Context, v *vm) (*history, error) {
	p := s.histories.pending(s, v)
	select {
	case <-p.done:
		return p.h, p.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (hs *histories) pending(s *Server, v *vm) *pending {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	var old *history
	for i, p := range hs.open {
		if p.vm.name != v.name {
			continue
		}
		hs.open = slices.Delete(hs.open, i, i+1)
		if equal(p.vm.points, v.points) && !p.failed() {
			hs.open = append(hs.open, p)
			return p
		}
		if p.ended() {
			old = p.h
		}
		break
	}
	if len(hs.open) >= maxHistories {
		hs.open = slices.Delete(hs.open, 0, 1)
	}
	p := &pending{vm: v, done: make(chan struct{})}
	hs.open = append(hs.open, p)
	go func() { // ends with its deadline
		defer close(p.done)
		ctx, cancel := context.WithTimeout(context.Background(), 4*s.options.Deadline)
		defer cancel()
		p.h, p.err = s.newHistory(ctx, v, old)
	}()
	return p
}

func (p *pending) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *pending) failed() bool { return p.ended() && p.err != nil }

func (s *Server) newHistory(ctx context.Context, v *vm, old *history) (*history, error) {
	points := make([]restorepoint.Summary, len(v.points))
	for i, p := range v.points {
		points[i] = p.summary
	}
	var before *catalogue.Past
	if old != nil {
		before = old.past
	}
	past, err := catalogue.NewPast(ctx, points, s.options.Files, before)
	if err != nil {
		return nil, fmt.Errorf("history of %s: %w", v.name, err)
	}
	h := &history{server: s, vm: v, past: past}
	var text strings.Builder
	past.Unread(func(point int, err error) {
		fmt.Fprintf(&text, "%s: %v\n", v.names[point], err)
	})
	if text.Len() > 0 {
		h.gaps = "What these restore points hold is not shown in this folder, or in part:\n\n" + text.String()
	}
	return h, nil
}

// parts gives the names of a path in a history.
func parts(path string) []string { return strings.Split(strings.Trim(path, "/"), "/") }

// union lists a directory. ErrNotExist: no point has one at the path.
func (h *history) union(ctx context.Context, path string) (*union, error) {
	at, dir := "/", h.past.Union()
	u, err := h.list(ctx, dir)
	if err != nil || path == "/" {
		return u, err
	}
	for _, name := range parts(path) {
		n, ok := u.find(name)
		if !ok || n.Dir == nil {
			return nil, filesystem.ErrNotExist
		}
		at = n.Dir.Path()
		if strings.Count(at, "/") > tree.MaxDepth {
			return nil, tree.ErrTooLong
		}
		if u, err = h.list(ctx, n.Dir); err != nil {
			return nil, err
		}
	}
	return u, nil
}

func (h *history) list(ctx context.Context, dir *catalogue.Union) (*union, error) {
	h.mu.Lock()
	known, ok := h.unions.get(dir.Path())
	h.mu.Unlock()
	if ok {
		return known, nil
	}
	names, problems, err := dir.Names(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range problems {
		h.server.report(fmt.Errorf("history of %s: point %s: %w", h.vm.name, h.vm.names[p.Point], p))
	}
	if len(names) == 0 && len(problems) > 0 {
		return nil, problems[0].Err
	}
	u := &union{names}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unions.put(dir.Path(), u, len(names), maxUnions)
	return u, nil
}

// versionsOf gives the distinct contents of what a path is besides a
// directory, oldest first.
func (h *history) versionsOf(ctx context.Context, path string) ([]historyVersion, error) {
	h.mu.Lock()
	known, ok := h.versions.get(path)
	h.mu.Unlock()
	if ok {
		return known, nil
	}
	changes, problems, err := h.past.Log(ctx, path, h.equal)
	if err != nil {
		return nil, err
	}
	for _, p := range problems {
		h.server.report(fmt.Errorf("history of %s: point %s: %w", h.vm.name, h.vm.names[p.Point], p))
	}
	var list []historyVersion
	seen := map[int]bool{}
	for _, c := range slices.Backward(changes) {
		if c.Kind == catalogue.Removed || c.Entry.IsDir() || seen[c.Content] {
			continue
		}
		seen[c.Content] = true
		name := h.vm.names[c.First]
		list = append(list, historyVersion{name: name, point: h.vm.points[c.First], at: name, kind: c.Entry.Mode & filesystem.ModeType})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.versions.put(path, list, len(list), maxVersions)
	return list, nil
}

// equal compares a file of two points. It implements catalogue.Equal.
func (h *history) equal(ctx context.Context, a, b catalogue.Place) (bool, error) {
	var files [2]filesystem.File
	for i, at := range []catalogue.Place{a, b} {
		k := slices.IndexFunc(h.vm.points, func(p *point) bool { return p.summary.ID == at.Point })
		if k < 0 {
			return false, errors.New("the point is gone")
		}
		o, err := h.vm.points[k].open(ctx)
		if err != nil {
			return false, err
		}
		if files[i], err = o.tree.OpenRegular(ctx, at.Path); err != nil {
			return false, err
		}
	}
	return tree.SameContents(ctx, files[0], files[1])
}

// changed is when the list of points was last seen to differ: listings that
// the kernel keeps are of no use from then on.
func (h *history) changed() time.Time { return h.vm.changed }
