package catalogue

import (
	"context"
	"fmt"
	"strings"

	"cairn/guest/filesystem"
)

// Difference says in what two entries differ, as bits.
type Difference uint8

// What differs.
const (
	Contents Difference = 1 << iota // or a directory's, or what a device is
	Mode
	Owner
	Times
	Target
	Type
)

var differenceNames = []string{"contents", "mode", "owner", "times", "target", "type"}

// String gives the words, with commas: "contents,mode".
func (d Difference) String() string {
	var words []string
	for i, word := range differenceNames {
		if d&(1<<i) != 0 {
			words = append(words, word)
		}
	}
	return strings.Join(words, ",")
}

// Place is a path, as a View has it, in the point with an ID.
type Place struct{ Point, Path string }

// Equal says whether the contents of two regular files of one size are the
// same. It may be costly.
type Equal func(ctx context.Context, a, b Place) (bool, error)

// MaxCompared is up to what size contents are compared, in bytes: larger
// files whose times differ count as different. maxComparedAll bounds what one
// question compares.
const (
	MaxCompared    = 64 << 20
	maxComparedAll = 1 << 30
)

// comparer compares entries, and contents where entries do not tell.
type comparer struct {
	equal Equal // nil: what may differ, differs
	// thorough: also a file whose ctime another change explains is read. It
	// may have been written, too, and its mtime set back.
	thorough bool
	spent    int64
}

// differ gives in what b differs from a. Contents are told apart by size, time
// and inode; where only those times or the inode differ, and the file is not
// too large, by reading.
func (c *comparer) differ(ctx context.Context, inA, inB Place, a, b *Entry) (Difference, error) {
	var d Difference
	if a.Mode&filesystem.ModeType != b.Mode&filesystem.ModeType {
		return Type, nil
	}
	if a.Mode != b.Mode {
		d |= Mode
	}
	if a.UID != b.UID || a.GID != b.GID {
		d |= Owner
	}
	if a.Mtime != b.Mtime || a.Ctime != b.Ctime {
		d |= Times
	}
	switch a.Mode & filesystem.ModeType {
	case filesystem.ModeSymlink:
		if a.Target != b.Target {
			d |= Target
		}
	case filesystem.ModeBlock, filesystem.ModeChar:
		if a.Major != b.Major || a.Minor != b.Minor {
			d |= Contents
		}
	case filesystem.ModeRegular:
		contents, err := c.contents(ctx, inA, inB, a, b, d)
		return d | contents, err
	case filesystem.ModeDir:
		if (a.Dir == nil) != (b.Dir == nil) || a.Dir != nil && a.Dir.Hash != b.Dir.Hash {
			d |= Contents
		}
	}
	return d, nil
}

// contents gives Contents when those of two regular files differ.
func (c *comparer) contents(ctx context.Context, inA, inB Place, a, b *Entry, known Difference) (Difference, error) {
	// A change of mode, owner or names is all that ctime tells of.
	explained := known&Times == 0 || !c.thorough && (known&(Mode|Owner) != 0 || a.Nlink != b.Nlink)
	switch {
	case a.Size != b.Size:
		return Contents, nil
	case a.Size == 0 || a.Mtime == b.Mtime && a.Ino == b.Ino && explained:
		return 0, nil
	case c.equal == nil || a.Size > MaxCompared || a.Size > maxComparedAll-c.spent:
		if a.Mtime == b.Mtime && a.Ino == b.Ino {
			return 0, nil
		}
		return Contents, nil
	}
	c.spent += a.Size
	same, err := c.equal(ctx, inA, inB)
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err != nil:
		return Contents, fmt.Errorf("its contents cannot be compared: %w", err)
	case same:
		return 0, nil
	}
	return Contents, nil
}
