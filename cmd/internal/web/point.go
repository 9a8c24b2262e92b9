package web

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"cairn/cmd/internal/library"
	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/wire"
	"cairn/guest/object"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

type pointData struct {
	M            *restorepoint.Manifest
	Repo         string
	Name         string // web01@2026-11-29T02-00-00Z
	Pinned       string
	Earlier      *restorepoint.Summary
	Later        *restorepoint.Summary
	Parent       bool // the parent is there
	Objects      []object.Object
	MoreObjects  int
	ObjectsError string
	Files        string // what is known of the catalogue of files
	FilesState   state
	Unreadable   string
	Run          *runs.Run
	Snap         *library.Snapshot
}

// maxObjects is how many system objects a point's page names.
const maxObjects = 12

func (s *site) point(r *http.Request) (*view, error) {
	snap, p, err := s.findPoint(r)
	if err != nil {
		return nil, err
	}
	d := pointData{Repo: snap.Repository, Name: p.VM + "@" + restorepoint.DirName(p.Time), Pinned: pinned(snap, p.ID), Unreadable: snap.Unreadable, Snap: snap}
	_, d.Parent = snap.Point(p.Parent)
	mine := snap.Of(p.VM)
	for i, o := range mine {
		if o.ID != p.ID {
			continue
		}
		if i > 0 {
			d.Earlier = mine[i-1]
		}
		if i < len(mine)-1 {
			d.Later = mine[i+1]
		}
	}
	type read struct {
		m     *restorepoint.Manifest
		files string
		state state
	}
	got, err := ask(r.Context(), s, snap.Repository, func(ctx context.Context, cat *wire.Catalogue) (read, error) {
		o, err := s.points.open(ctx, cat, p.ID)
		if err != nil {
			return read{}, err
		}
		root, kind, err := cat.FilesState(ctx, p.ID)
		got := read{m: o.manifest}
		switch kind {
		case "stored":
			got.files, got.state = howMade(root), state{"stored", "good"}
		case "none":
			got.files, got.state = "Searches do not see this point. Make it with: cairn catalogue "+d.Name, state{"none", "warn"}
		case "damaged":
			got.files, got.state = "The point is not damaged. Make it anew with: cairn catalogue --rebuild "+d.Name, state{"damaged", "bad"}
		default:
			got.files, got.state = fmt.Sprint("It cannot be read: ", err), state{"unknown", "warn"}
		}
		return got, nil
	})
	if err != nil {
		return nil, err
	}
	d.M, d.Files, d.FilesState = got.m, got.files, got.state
	doc, err := d.M.Guest.Document()
	if err != nil {
		d.ObjectsError = err.Error()
	} else if doc != nil {
		d.Objects = applicationsFirst(doc.Objects)
		d.MoreObjects = max(0, len(d.Objects)-maxObjects)
		d.Objects = d.Objects[:min(maxObjects, len(d.Objects))]
	}
	for _, run := range s.Book.Runs(1, func(r runs.Run) bool { return r.Point != nil && r.Point.ID == p.ID }) {
		d.Run = &run
	}
	return &view{name: "point", title: d.Name, nav: "overview", data: d}, nil
}

// applicationsFirst sorts users and containers, of which there are many, to the
// end.
func applicationsFirst(list []object.Object) []object.Object {
	out := slices.Clone(list)
	slices.SortStableFunc(out, func(a, b object.Object) int {
		x, y := strings.Contains(a.Name, "/"), strings.Contains(b.Name, "/")
		switch {
		case x == y:
			return 0
		case y:
			return -1
		}
		return 1
	})
	return out
}

// howMade says what a catalogue of files took.
func howMade(root *catalogue.Root) string {
	how := "all folders were read"
	if root.Made.Incremental > 0 {
		how = "from what changed since " + short(root.Made.Parent)
	}
	return fmt.Sprintf("%s, made in %s, %s", bytesOf(root.Made.BytesStored), spanText(time.Duration(root.Made.DurationMS)*time.Millisecond), how)
}

type objectsData struct {
	Repo, ID, Name, VM string
	Derived            bool
	Doc                *object.Document
	Error              string
	Unreadable         string
	Objects            []objectRow
}

type objectRow struct {
	object.Object
	Facts []fact
}

type fact struct{ Name, Value string }

// maxFact is as much of one of an object's own facts as a row shows, bytes.
const maxFact = 300

func (s *site) objects(r *http.Request) (*view, error) {
	snap, p, err := s.findPoint(r)
	if err != nil {
		return nil, err
	}
	d := objectsData{Repo: snap.Repository, ID: p.ID, VM: p.VM, Name: p.VM + "@" + restorepoint.DirName(p.Time), Unreadable: snap.Unreadable}
	d.Doc, err = ask(r.Context(), s, snap.Repository, func(ctx context.Context, cat *wire.Catalogue) (*object.Document, error) {
		o, err := s.points.open(ctx, cat, p.ID)
		if err != nil {
			return nil, err
		}
		return cat.Document(ctx, o.manifest, wire.Derive(s.Find))
	})
	switch {
	case errors.Is(err, library.ErrAway), errors.Is(err, errLate), errors.Is(err, errBusy), r.Context().Err() != nil:
		return nil, err
	case err != nil:
		d.Error = err.Error()
	default:
		d.Derived = d.Doc.Source != object.SourceAgent
		for _, o := range applicationsFirst(d.Doc.Objects) {
			row := objectRow{Object: o}
			for _, key := range slices.Sorted(maps.Keys(o.Details)) {
				text := fmt.Sprint(o.Details[key])
				if len(text) > maxFact {
					text = strings.ToValidUTF8(text[:maxFact], "") + "…"
				}
				row.Facts = append(row.Facts, fact{key, text})
			}
			d.Objects = append(d.Objects, row)
		}
	}
	return &view{name: "objects", title: "System objects of " + d.Name, nav: "overview", data: d}, nil
}
