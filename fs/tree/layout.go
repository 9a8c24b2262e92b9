package tree

import "math/big"

// layout keeps a view finite: directories hold mount points, mount points show
// directories, and no directory may be found again inside itself. Linux has no
// such ring, because what is mounted in a directory is not seen where that
// directory is mounted once more; in a View it is.
type layout struct {
	tops    []Node          // of each mount: the directory that it shows
	inside  []map[Node]bool // of each mount: the directory that it covers, and those above
	holds   []*big.Int      // of each mount: the mounts in what it shows, as bits
	sources map[Node]*Place // of what is shown and is no volume's root: where it lies in its volume
}

// from notes what the view's root, or a mount, shows.
func (l *layout) from(source *Place) {
	if source.Up == nil {
		return
	}
	if l.sources == nil {
		l.sources = map[Node]*Place{}
	}
	l.sources[source.Node] = source
}

// add notes a mount of the directory at source over the one at covered. It
// says no, and notes nothing, when there would be a ring.
func (l *layout) add(covered, source *Place) bool {
	inside, top := l.above(covered), source.Node
	if inside[top] {
		return false
	}
	below, in := new(big.Int), new(big.Int)
	for i := range l.tops {
		if l.inside[i][top] {
			below.SetBit(below, i, 1)
			below.Or(below, l.holds[i])
		}
		if inside[l.tops[i]] {
			in.SetBit(in, i, 1)
		}
	}
	both := new(big.Int)
	if both.And(below, in).Sign() != 0 {
		return false
	}
	fresh := len(l.tops)
	for i, holds := range l.holds {
		if in.Bit(i) == 1 || both.And(holds, in).Sign() != 0 {
			holds.SetBit(holds, fresh, 1)
			holds.Or(holds, below)
		}
	}
	l.tops, l.inside, l.holds = append(l.tops, top), append(l.inside, inside), append(l.holds, below)
	l.from(source)
	return true
}

// above gives a directory and all that it lies in, by any way.
func (l *layout) above(p *Place) map[Node]bool {
	nodes := map[Node]bool{}
	for ; p != nil; p = p.Up {
		nodes[p.Node] = true
		for q := l.sources[p.Node]; q != nil; q = q.Up {
			nodes[q.Node] = true
		}
	}
	return nodes
}
