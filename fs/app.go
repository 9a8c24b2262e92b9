package fs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"cairn/fs/tree"
	"cairn/guest/filesystem"
	sysobject "cairn/guest/object"
	"cairn/index/restorepoint"
)

// app is one system object with its paths found in the point's fs/.
type app struct {
	point *point
	index int // in the document's objects
	text  []byte
	paths []aboutPath
	roles shelf // of the paths that are there
}

// aboutObject is object.json: the object's description with where it comes
// from. Fields are only added.
type aboutObject struct {
	Point    aboutPoint `json:"point"`
	Source   string     `json:"source"`   // of the document: sysobject.SourceAgent, sysobject.SourceImage
	Derived  bool       `json:"derived"`  // from files alone: whether it ran, and in what state, is not known
	Taken    time.Time  `json:"taken"`    // when the guest's filesystems were frozen, by its clock
	Hostname string     `json:"hostname"` // of the guest
	sysobject.Object
	Paths []aboutPath `json:"paths"`
}

type aboutPoint struct {
	ID          string                   `json:"id"`
	VM          string                   `json:"vm"`
	Time        time.Time                `json:"time"`
	Consistency restorepoint.Consistency `json:"consistency"`
}

// aboutPath is a path of an object.
type aboutPath struct {
	sysobject.Path
	Link    string `json:"link,omitempty"`     // the name of the link beside object.json
	InPoint string `json:"in_point,omitempty"` // where it leads, from the point's directory: "fs/srv/pg"
	Missing string `json:"missing,omitempty"`  // why there is no link
}

// app gives one object of the point's document.
func (p *point) app(ctx context.Context, index int) (*app, error) {
	if known := p.server.apps.get(p, index); known != nil {
		return known, nil
	}
	a, err := p.apps(ctx)
	if err != nil {
		return nil, err
	}
	if a.document == nil || index >= len(a.document.Objects) {
		return nil, filesystem.ErrNotExist
	}
	found := &app{point: p, index: index}
	if err := found.find(ctx, a); err != nil {
		return nil, err
	}
	return p.server.apps.put(found), nil
}

// find looks for the object's paths and writes its description.
func (a *app) find(ctx context.Context, all *apps) error {
	o, err := a.point.open(ctx)
	if err != nil {
		return err
	}
	view, noView := o.tree.Guest(ctx)
	if noView != nil && !tree.Lasting(noView) {
		return noView
	}
	described := all.document.Objects[a.index]
	var roles []shelved
	for i, p := range described.Paths {
		path := aboutPath{Path: p}
		err := noView
		if err == nil {
			err = path.find(ctx, view)
		}
		switch {
		case err == nil:
			roles = append(roles, shelved{name: p.Role, object: i})
		case ctx.Err() != nil:
			return ctx.Err()
		case !tree.Lasting(err):
			return err
		case errors.Is(err, filesystem.ErrNotExist), errors.Is(err, filesystem.ErrNotDir):
			path.Missing = "there is no such path in the point"
		default:
			path.Missing = err.Error()
		}
		a.paths = append(a.paths, path)
	}
	a.roles.put(roles, objectName)
	for _, role := range a.roles.list {
		a.paths[role.object].Link = role.name
	}
	m := o.manifest
	about := aboutObject{
		Point: aboutPoint{m.ID, m.VM.Name, m.Time.UTC(), m.Consistency}, Source: all.document.Source, Derived: all.derived || described.Derived,
		Taken: all.document.Taken, Hostname: all.document.Hostname, Object: described, Paths: append([]aboutPath{}, a.paths...),
	}
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err = e.Encode(about)
	a.text = text.Bytes()
	return err
}

// maxUp is as many bytes as a link needs to come from an object's directory to
// the point's.
const maxUp = len("../../../")

// find follows the path as the guest would. The link goes to where that ends:
// no link of the guest is left on its way, so it leads there in a mount that
// follows none (nosymfollow), too.
func (p *aboutPath) find(ctx context.Context, view *tree.View) error {
	real, _, err := view.Resolve(ctx, p.Path.Path)
	switch {
	case err != nil:
		return err
	case len(real)+maxUp+len("fs") > tree.MaxTarget:
		return tree.ErrTooLong
	case real == "/":
		real = ""
	}
	p.InPoint = "fs" + real
	return nil
}

// maxApps is how many objects stay in the cache below. A hostile one may take
// 32 MiB.
const maxApps = 8

// appCache keeps the objects that were looked at last: looking into one asks
// for each of its paths again and again.
type appCache struct {
	mu   sync.Mutex
	apps []*app // last used at the end
}

func (c *appCache) get(p *point, index int) *app {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.use(p, index)
}

// use needs c.mu.
func (c *appCache) use(p *point, index int) *app {
	for i, a := range c.apps {
		if a.point == p && a.index == index {
			copy(c.apps[i:], c.apps[i+1:])
			c.apps[len(c.apps)-1] = a
			return a
		}
	}
	return nil
}

// put gives the object that was there first.
func (c *appCache) put(a *app) *app {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first := c.use(a.point, a.index); first != nil {
		return first
	}
	if len(c.apps) == maxApps {
		copy(c.apps, c.apps[1:])
		c.apps = c.apps[:maxApps-1]
	}
	c.apps = append(c.apps, a)
	return a
}
