package tree

import (
	"context"
	"fmt"
	"strings"

	"cairn/guest/filesystem"
)

// Limits of a walk, as the guest's own kernel has them.
const (
	MaxLinks  = 40   // symbolic links followed in one walk (path_resolution(7))
	MaxTarget = 4095 // bytes of a symbolic link's target
	MaxDepth  = 2048 // directories above a node: PATH_MAX allows no more in one path
)

// position is a place described as the kernel will find it again: names, no
// links among them, below a directory whose own name does not matter.
type position struct {
	base  *Place
	names []string
	place *Place // base with names applied
	dir   bool
}

func (v *View) at(p *Place) position { return position{base: p, place: p, dir: true} }

// up applies "..", which stops at the root.
func (p *position) up() {
	if len(p.names) > 0 {
		p.names = p.names[:len(p.names)-1]
	} else {
		p.base = p.base.parent()
	}
	p.place = p.place.parent()
}

// Walk finds path from a directory as the guest's kernel would: links are
// followed (the last one only if follow), absolute ones from the view's root,
// and ".." stops there.
func (v *View) Walk(ctx context.Context, from *Place, path string, follow bool) (*Place, error) {
	p, err := v.walk(ctx, from, path, follow)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	return p.place, nil
}

// Resolve finds an absolute path, and gives the path of the same place without
// symbolic links.
func (v *View) Resolve(ctx context.Context, path string) (string, *Place, error) {
	p, err := v.walk(ctx, v.Root(), "/"+path, true)
	if err != nil {
		return "", nil, fmt.Errorf("%q: %w", path, err)
	}
	return "/" + strings.Join(p.names, "/"), p.place, nil // from the root on its base is the root
}

func (v *View) walk(ctx context.Context, from *Place, path string, follow bool) (position, error) {
	if len(path) > 1<<16 {
		return position{}, ErrTooLong
	}
	pos := v.at(from)
	if strings.HasPrefix(path, "/") {
		pos = v.at(v.Root())
	}
	for links := 0; ; {
		if err := ctx.Err(); err != nil {
			return position{}, err
		}
		path = strings.TrimLeft(path, "/")
		if path == "" {
			return pos, nil
		}
		if !pos.dir {
			return position{}, filesystem.ErrNotDir
		}
		name, rest, more := strings.Cut(path, "/")
		path = rest
		switch name {
		case ".":
			continue
		case "..":
			pos.up()
			continue
		}
		node, mode, err := v.step(ctx, pos.place.Node, name)
		if err != nil {
			return position{}, err
		}
		if mode == filesystem.ModeSymlink && (follow || more) {
			if links++; links > MaxLinks {
				return position{}, ErrLoop
			}
			target, err := v.Target(ctx, node)
			if err != nil {
				return position{}, err
			}
			if target[0] == '/' {
				pos = v.at(v.Root())
			}
			if more {
				target += "/" + rest
			}
			path = target
			continue
		}
		if pos.place.Depth >= MaxDepth {
			return position{}, ErrTooLong
		}
		pos.names = append(pos.names, name)
		pos.place = pos.place.Below(node)
		pos.dir = mode == filesystem.ModeDir
	}
}

func (v *View) step(ctx context.Context, dir Node, name string) (Node, uint32, error) {
	node, err := v.Lookup(ctx, dir, name)
	if err != nil {
		return Node{}, 0, err
	}
	attr, err := v.tree.Attr(ctx, node)
	return node, attr.Mode & filesystem.ModeType, err
}

// Target gives the raw target of a symbolic link, never empty, as far as Linux would use it.
func (v *View) Target(ctx context.Context, n Node) (string, error) {
	target, err := v.tree.Readlink(ctx, n)
	if err != nil {
		return "", err
	}
	target, _, _ = strings.Cut(target, "\x00")
	if target == "" {
		return "", fmt.Errorf("empty symbolic link: %w", filesystem.ErrCorrupt)
	}
	if len(target) > MaxTarget {
		return "", ErrTooLong
	}
	return target, nil
}

// Contain gives the target of a symbolic link that lies in the directory dir
// such that following it cannot leave the view: relative, all its ".." in
// front, and no more of them than directories above the link. Every link that
// it names is contained in turn when the kernel follows that one.
//
// Where ".." comes behind a name, the name is looked up, because behind a
// link to a directory ".." is not where the text says. Only when nothing is
// there, or after MaxLinks look-ups, is the text all there is to go by.
func (v *View) Contain(ctx context.Context, dir *Place, target string) (string, error) {
	base, names, resolved := dir, []string(nil), 0
	if strings.HasPrefix(target, "/") {
		base = v.Root()
	}
	for _, name := range strings.Split(target, "/") {
		switch {
		case name == "" || name == ".":
		case name != "..":
			names = append(names, name)
		case len(names) == 0:
			base = base.parent()
		case resolved == MaxLinks:
			names = names[:len(names)-1]
		default:
			resolved++
			pos, err := v.walk(ctx, base, strings.Join(names, "/"), true)
			if ctx.Err() != nil {
				return "", ctx.Err()
			}
			if err != nil || !pos.dir {
				names = names[:len(names)-1]
				continue
			}
			pos.up()
			base, names = pos.base, pos.names
		}
	}
	contained := strings.Repeat("../", dir.Depth-base.Depth) + strings.Join(names, "/")
	switch {
	case contained == "":
		contained = "."
	case len(names) > 0 && strings.HasSuffix(target, "/"):
		contained += "/"
	case len(names) == 0:
		contained = strings.TrimSuffix(contained, "/")
	}
	if len(contained) > MaxTarget {
		return "", fmt.Errorf("contained target: %w", ErrTooLong)
	}
	return contained, nil
}

// ContainedLink gives the contained target of the link n in the directory
// dir. See Contain.
func (v *View) ContainedLink(ctx context.Context, dir *Place, n Node) (string, error) {
	target, err := v.Target(ctx, n)
	if err != nil {
		return "", err
	}
	return v.Contain(ctx, dir, target)
}
