package fs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"cairn/fs/tree"
	sysobject "cairn/guest/object"
	"cairn/index/restorepoint"
)

// Deriver finds the system objects of a point that no inside agent has
// described, by the files that its guest's view shows. An error that wraps
// ErrTryAgain, or a context's, is forgotten; any other one is the point's.
type Deriver func(ctx context.Context, m *restorepoint.Manifest, v *tree.View) (*sysobject.Document, error)

// ErrTryAgain says that something could not be read and may be at the next try.
var ErrTryAgain = errors.New("it may work at the next try")

// Names of the files in apps/ and in an object's directory.
const (
	documentName = "document.json"
	objectName   = "object.json"
)

// apps is what the directory apps/ of a point shows. It is never changed.
type apps struct {
	document *sysobject.Document // nil when there is none
	raw      []byte              // the document's bytes
	derived  bool
	problem  string // why there is none
	err      error  // why it cannot be shown
	top      shelf
}

// shelf is one directory of system objects, in the order of its listing.
type shelf struct {
	list []shelved
	by   map[string]int // index in list by name
}

// shelved is one name on a shelf: an object, or a group of them.
type shelved struct {
	name   string
	object int    // index in the document's objects
	group  *shelf // nil for an object
}

// put gives each thing a name of its own: the wanted one to the first that
// wants it, and "NAME-2" to the second. Those names are no object's that is
// called so.
func (s *shelf) put(things []shelved, reserved string) {
	s.list, s.by = make([]shelved, 0, len(things)), map[string]int{reserved: -1}
	add := func(thing shelved) {
		s.by[thing.name] = len(s.list)
		s.list = append(s.list, thing)
	}
	var second []shelved
	for _, thing := range things {
		if _, taken := s.by[thing.name]; taken {
			second = append(second, thing)
		} else {
			add(thing)
		}
	}
	for _, thing := range second {
		thing.name = anotherName(thing.name, func(name string) bool { _, taken := s.by[name]; return taken })
		add(thing)
	}
	delete(s.by, reserved)
}

// anotherName gives a free name that begins as name does.
func anotherName(name string, taken func(string) bool) string {
	for n := 2; ; n++ {
		suffix := fmt.Sprintf("-%d", n)
		cut := min(len(name), sysobject.MaxName-len(suffix))
		for cut > 0 && cut < len(name) && !utf8.RuneStart(name[cut]) {
			cut--
		}
		if other := name[:cut] + suffix; !taken(other) {
			return other
		}
	}
}

// newApps arranges the objects of a document that is within its limits. A
// group's name comes before an object's that is called like the group.
func newApps(d *sysobject.Document, raw []byte, derived bool) *apps {
	a := &apps{document: d, raw: raw, derived: derived}
	var groups, single []shelved
	members := map[string][]shelved{}
	for i, o := range d.Objects {
		group, name, two := strings.Cut(o.Name, "/")
		if !two {
			single = append(single, shelved{name: o.Name, object: i})
			continue
		}
		if members[group] == nil {
			groups = append(groups, shelved{name: group, group: new(shelf)})
		}
		members[group] = append(members[group], shelved{name: name, object: i})
	}
	for _, g := range groups {
		g.group.put(members[g.name], "")
	}
	a.top.put(append(groups, single...), documentName)
	return a
}

// apps gives the point's system objects: from the manifest, or, at the first
// look, from its files. An error is one that may pass.
func (p *point) apps(ctx context.Context) (*apps, error) {
	o, err := p.open(ctx)
	if err != nil {
		return nil, err
	}
	if a := o.apps.Load(); a != nil {
		return a, nil
	}
	select {
	case o.finding <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-o.finding }()
	if a := o.apps.Load(); a != nil {
		return a, nil
	}
	a, err := p.findApps(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("restore point %s: apps: %w", p.summary.ID, err)
	}
	o.apps.Store(a)
	return a, nil
}

func (p *point) findApps(ctx context.Context, o *opened) (*apps, error) {
	d, err := o.tree.Document()
	switch {
	case err != nil:
		return &apps{err: err}, nil
	case d != nil:
		return newApps(d, o.manifest.Guest.Metadata, false), nil
	case p.server.options.Derive == nil:
		return &apps{derived: true}, nil
	}
	d, raw, err := p.derive(ctx, o)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, ErrTryAgain), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return nil, fmt.Errorf("no system objects could be derived from the point's files yet: %w", err)
	case err != nil:
		return &apps{derived: true, problem: fmt.Sprintf("no system objects could be derived from the point's files: %v", err)}, nil
	}
	return newApps(d, raw, true), nil
}

// derive looks for system objects in a point's files, for two thirds of the
// time that a request may take: point.json must have time to say that it was
// not enough.
func (p *point) derive(ctx context.Context, o *opened) (*sysobject.Document, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, p.server.options.Deadline*2/3)
	defer cancel()
	view, err := o.tree.Guest(ctx)
	if err != nil && !tree.Lasting(err) {
		err = fmt.Errorf("%w: %w", ErrTryAgain, err)
	}
	if err != nil {
		return nil, nil, err
	}
	d, err := p.server.options.Derive(ctx, o.manifest, view)
	if err != nil {
		return nil, nil, err
	}
	raw, err := sysobject.Encode(d) // its limits hold for us, too
	return d, raw, err
}

// aboutApps is what point.json says of the system objects.
type aboutApps struct {
	Source  string    `json:"source"`
	Derived bool      `json:"derived"` // from the point's files, not told by an inside agent
	Taken   time.Time `json:"taken,omitzero"`
	Objects int       `json:"objects"`
}

// aboutApps describes the system objects, and says why there are none. (A
// damaged document is among the tree's problems.)
func (p *point) aboutApps(ctx context.Context) (*aboutApps, []tree.Problem, error) {
	a, err := p.apps(ctx)
	switch {
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case err != nil:
		return nil, []tree.Problem{{Where: "apps", Reason: err.Error() + "; look into apps/"}}, nil
	case a.problem != "":
		return nil, []tree.Problem{{Where: "apps", Reason: a.problem}}, nil
	case a.document == nil:
		return nil, nil, nil
	}
	return &aboutApps{a.document.Source, a.derived, a.document.Taken, len(a.document.Objects)}, nil, nil
}
