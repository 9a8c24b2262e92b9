package catalogue

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Printable gives a guest's name so that it does not steer a terminal and is one
// line: as it is, or quoted as in Go when it has control characters, such as
// turn the direction of writing ("gnp.exe" would be shown as "exe.png"), or is not
// UTF-8.
func Printable(name string) string {
	for _, r := range name {
		if r < 0x20 || r == 0x7f || r == 0xfffd || r >= 0x80 && r < 0xa0 || unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp) {
			return fmt.Sprintf("%q", name)
		}
	}
	return name
}

// String gives a difference as a line for people, without its end:
//
//   - /etc/new
//   - /etc/old
//     M /etc/fstab (contents,mode,times)
//     R /etc/a -> /etc/b
func (d Delta) String() string {
	line := string(d.Op) + " "
	if d.Op == Rename {
		line += Printable(d.From) + " -> "
	}
	line += Printable(d.Path)
	if d.What != 0 {
		line += " (" + d.What.String() + ")"
	}
	return line
}

// Sum counts differences.
type Sum struct {
	Top                            string // the directory that they are in
	Added, Removed, Changed, Moved int
	// BytesAdded is the size of what was added and what changed files have
	// grown by; BytesRemoved that of what was removed and they have shrunk by.
	BytesAdded, BytesRemoved int64
}

func (s *Sum) add(d Delta) {
	var before, after int64
	if d.Old != nil {
		before = d.Old.Size
	}
	if d.New != nil {
		after = d.New.Size
	}
	switch d.Op {
	case Add:
		s.Added++
	case Remove:
		s.Removed++
	case Modify:
		s.Changed++
	case Rename:
		s.Moved++
	}
	s.BytesAdded += max(0, after-before)
	s.BytesRemoved += max(0, before-after)
}

// Sums counts the differences in each directory at the top of what was
// compared, sorted, and all together. path is what was compared.
func (d *Differences) Sums(path string) (tops []Sum, total Sum) {
	tree, names := parse(path)
	base := strings.TrimSuffix(join(tree, names...), "/")
	by := map[string]*Sum{}
	for _, x := range d.List {
		top := x.Path
		if rest, ok := strings.CutPrefix(x.Path, base+"/"); ok {
			name, _, _ := strings.Cut(rest, "/")
			top = base + "/" + name
		} else if tree == "" && strings.HasPrefix(x.Path, volumesDir+"/") {
			name, _ := parse(x.Path)
			top = join(name)
		}
		if by[top] == nil {
			by[top] = &Sum{Top: top}
		}
		by[top].add(x)
		total.add(x)
	}
	for _, s := range by {
		tops = append(tops, *s)
	}
	slices.SortFunc(tops, func(a, b Sum) int { return cmp.Compare(a.Top, b.Top) })
	return tops, total
}
