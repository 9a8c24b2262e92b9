package web

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"cairn/cmd/internal/library"
	"cairn/cmd/internal/wire"
	"cairn/fs/tree"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// maxPath bounds a path that is asked for, in bytes (PATH_MAX).
const maxPath = 4096

// Bounds of a listing.
const (
	filesShown = 300     // on a page
	maxNames   = 200_000 // of a folder: more are not looked at, and the page says so
	maxSorted  = 10_000  // what is sorted by anything but the name
)

// place is a path that is asked for: in the guest's own view ("/etc/fstab"), or in
// a volume ("volumes/NAME/etc/fstab").
type place struct {
	volume string // "" is the guest's view
	in     string // absolute, clean
}

// parsePlace reads a path of a query. The bytes of its names are the guest's.
func parsePlace(text string) (place, error) {
	switch {
	case len(text) > maxPath:
		return place{}, errAsked("a path has at most %d bytes", maxPath)
	case strings.ContainsRune(text, 0):
		return place{}, errAsked("a path has no zero bytes")
	}
	if text == "" {
		text = "/"
	}
	volume, in, ok := tree.InVolume(text)
	if !ok {
		return place{in: path.Clean("/" + text)}, nil
	}
	if volume == "" || volume == "." || volume == ".." {
		return place{}, errAsked("a path in a volume is written volumes/NAME/PATH")
	}
	return place{volume, path.Clean("/" + in)}, nil
}

func (p place) String() string {
	if p.volume == "" {
		return p.in
	}
	return strings.TrimSuffix("volumes/"+p.volume+p.in, "/")
}

// child is the path of a name in it.
func (p place) child(name string) string {
	return place{p.volume, strings.TrimSuffix(p.in, "/") + "/" + name}.String()
}

// base names what is there.
func (p place) base(vm string) string {
	switch {
	case p.in != "/":
		return path.Base(p.in)
	case p.volume != "":
		return p.volume
	}
	return vm
}

// crumb is a folder above.
type crumb struct{ Name, URL string }

func (p place) crumbs(repo, id string) []crumb {
	at := place{p.volume, "/"}
	name := "/"
	if p.volume != "" {
		name = "volumes/" + p.volume
	}
	out := []crumb{{name, filesURL(repo, id, at.String())}}
	for part := range strings.SplitSeq(strings.Trim(p.in, "/"), "/") {
		if part == "" {
			continue
		}
		at.in = strings.TrimSuffix(at.in, "/") + "/" + part
		out = append(out, crumb{part, filesURL(repo, id, at.String())})
	}
	return out
}

// view opens the view that a place is in.
func (p place) view(ctx context.Context, t *tree.Tree) (*tree.View, error) {
	if p.volume != "" {
		return t.VolumeNamed(ctx, p.volume)
	}
	return t.Guest(ctx)
}

// fileRow is a file in a listing.
type fileRow struct {
	wire.File
	URL      string // what it is opened with; "" for nothing
	Versions string
	Dir      bool
}

type listing struct {
	Rows     []fileRow
	Total    int
	Cut      bool   // there are more than maxNames
	Unsorted bool   // there are too many to be sorted by this
	Damage   string // a part could not be listed
	IsFile   bool
	Self     wire.File
	Volumes  []tree.Volume
	Problems []tree.Problem
	NoRoot   string // why there is no guest's view
}

type browseData struct {
	Repo, ID, VM, Name string
	Path               string
	Crumbs             []crumb
	L                  listing
	Sort               string
	Descending         bool
	Skip               int
	Prev, Next         string
	Archive            string
	Download           string
	VersionsURL        string
	Unreadable         string
	Top                bool
}

// SortURL is the address of the listing by another column.
func (d browseData) SortURL(by string) string {
	q := url.Values{"path": {d.Path}, "sort": {by}}
	if d.Sort == by && !d.Descending {
		q.Set("order", "down")
	}
	return pointURL(d.Repo, d.ID) + "/files?" + q.Encode()
}

// Sorted says how a column is sorted, in ARIA's words.
func (d browseData) Sorted(by string) string {
	switch {
	case d.Sort != by:
		return "none"
	case d.Descending:
		return "descending"
	}
	return "ascending"
}

func (s *site) browse(r *http.Request) (*view, error) {
	snap, p, err := s.findPoint(r)
	if err != nil {
		return nil, err
	}
	q := r.URL.Query()
	at, err := parsePlace(q.Get("path"))
	if err != nil {
		return nil, err
	}
	d := browseData{Repo: snap.Repository, ID: p.ID, VM: p.VM, Name: p.VM + "@" + restorepoint.DirName(p.Time), Path: at.String(), Crumbs: at.crumbs(snap.Repository, p.ID),
		Sort: cmp.Or(q.Get("sort"), "name"), Descending: q.Get("order") == "down", Top: at.in == "/", Unreadable: snap.Unreadable}
	if !slices.Contains([]string{"name", "size", "time"}, d.Sort) {
		d.Sort = "name"
	}
	if d.Skip, err = number(q.Get("skip")); err != nil {
		return nil, err
	}
	d.VersionsURL = versionsURL(snap.Repository, p.VM, d.Path)
	if d.Unreadable == "" {
		if d.L, err = s.list(r.Context(), snap, p, at, d); err != nil {
			return nil, err
		}
	}
	self := pointURL(d.Repo, d.ID) + "/"
	path := "?path=" + url.QueryEscape(d.Path)
	d.Archive, d.Download = self+"archive"+path, self+"file"+path
	page := func(skip int) string {
		return self + "files" + path + "&sort=" + d.Sort + "&skip=" + strconv.Itoa(skip) + map[bool]string{true: "&order=down"}[d.Descending]
	}
	if d.Skip > 0 {
		d.Prev = page(max(0, d.Skip-filesShown))
	}
	if d.Skip+filesShown < d.L.Total {
		d.Next = page(d.Skip + filesShown)
	}
	return &view{name: "browse", title: at.base(p.VM) + " in " + d.Name, nav: "overview", data: d}, nil
}

// list reads a folder, or one file.
func (s *site) list(ctx context.Context, snap *library.Snapshot, p restorepoint.Summary, at place, d browseData) (listing, error) {
	return ask(ctx, s, snap.Repository, func(ctx context.Context, cat *wire.Catalogue) (l listing, err error) {
		if err := cat.MayRead(); err != nil {
			return l, err
		}
		o, err := s.points.open(ctx, cat, p.ID)
		if err != nil {
			return l, err
		}
		if d.Top {
			if l.Volumes, err = o.tree.Volumes(ctx); err != nil {
				return l, err
			}
			if l.Problems, err = o.tree.Problems(ctx); err != nil {
				return l, err
			}
		}
		v, err := at.view(ctx, o.tree)
		if errors.Is(err, tree.ErrNoRoot) && d.Top {
			l.NoRoot = err.Error()
			return l, nil
		}
		if err != nil {
			return l, err
		}
		found, err := v.Walk(ctx, v.Root(), at.in, true)
		if err != nil {
			return l, err
		}
		l.Self = wire.Describe(ctx, v, at.base(p.VM), found.Node)
		if l.Self.Type != "directory" {
			l.IsFile = true
			return l, nil
		}
		return l, l.read(ctx, v, found.Node, d.Sort, d.Descending, d.Skip, func(row *fileRow) {
			child := at.child(row.Name)
			switch row.Type {
			case "directory":
				row.Dir, row.URL = true, filesURL(snap.Repository, p.ID, child)
			case "file":
				row.URL = pointURL(snap.Repository, p.ID) + "/file?path=" + url.QueryEscape(child)
			case "symlink":
				row.URL = filesURL(snap.Repository, p.ID, child)
			}
			if nameable(row.Name) {
				row.Versions = versionsURL(snap.Repository, p.VM, child)
			} else {
				row.URL = "" // only a damaged image has such names, and nobody can look them up
			}
		})
	})
}

func nameable(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

func versionsURL(repo, vm, path string) string {
	return "/versions?" + url.Values{"repo": {repo}, "vm": {vm}, "path": {path}}.Encode()
}

// read lists one page of a folder.
func (l *listing) read(ctx context.Context, v *tree.View, dir tree.Node, by string, descending bool, skip int, link func(*fileRow)) error {
	var all []tree.Entry
	err := v.ReadDir(ctx, dir, 0, func(e tree.Entry) bool {
		if e.Name == "." || e.Name == ".." {
			return true
		}
		if len(all) == maxNames {
			l.Cut = true
			return false
		}
		all = append(all, e)
		return true
	})
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		l.Damage = err.Error()
	}
	l.Total = len(all)
	describe := func(list []tree.Entry) error {
		for _, e := range list {
			if err := ctx.Err(); err != nil {
				return err
			}
			l.Rows = append(l.Rows, fileRow{File: wire.Describe(ctx, v, e.Name, e.Node)})
		}
		return nil
	}
	if by != "name" && len(all) > maxSorted {
		by, l.Unsorted = "name", true
	}
	if by == "name" {
		slices.SortFunc(all, func(a, b tree.Entry) int {
			x, y := a.Type == filesystem.ModeDir, b.Type == filesystem.ModeDir
			switch {
			case x && !y:
				return -1
			case y && !x:
				return 1
			case descending:
				return cmp.Compare(b.Name, a.Name)
			}
			return cmp.Compare(a.Name, b.Name)
		})
		skip = min(skip, len(all))
		if err := describe(all[skip:min(len(all), skip+filesShown)]); err != nil {
			return err
		}
	} else {
		if err := describe(all); err != nil {
			return err
		}
		slices.SortStableFunc(l.Rows, func(a, b fileRow) int {
			order := cmp.Compare(a.Size, b.Size)
			if by == "time" {
				order = a.Mtime.Compare(b.Mtime)
			}
			if descending {
				order = -order
			}
			return cmp.Or(order, cmp.Compare(a.Name, b.Name))
		})
		skip = min(skip, len(l.Rows))
		l.Rows = l.Rows[skip:min(len(l.Rows), skip+filesShown)]
	}
	for i := range l.Rows {
		link(&l.Rows[i])
	}
	return nil
}
