package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/guest/filesystem"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// changesName is the file of a point that says what differs from its parent.
const changesName = "changes"

// Bounds of changes.
const (
	maxChanges     = 1 << 20 // bytes of text
	maxChangesSeen = 200_000 // files that are compared
)

// changesFile is the file changes of a point. It is a text in any case: what
// cannot be said is said, too.
type changesFile struct {
	point *point
	ino   uint64
}

func (f *changesFile) attr(ctx context.Context, out *fuse.Attr) (time.Duration, error) {
	text, lasts, err := f.text(ctx)
	if err != nil {
		return 0, err
	}
	stamp := f.point.summary.Time
	if !lasts {
		stamp = f.point.server.now() // the kernel must not keep what it has of it
	}
	*out = fuse.Attr{Ino: f.ino, Mode: filesystem.ModeRegular | 0o444, Nlink: 1, Blksize: 4096,
		Size: uint64(len(text)), Blocks: (uint64(len(text)) + 4095) / 4096 * 8}
	out.SetTimes(&stamp, &stamp, &stamp)
	if !lasts {
		return brief, nil
	}
	return forever, nil
}

func (f *changesFile) content(ctx context.Context) (filesystem.File, error) {
	text, _, err := f.text(ctx)
	return bytesFile(text), err
}

// errNotYet carries a text that may be another at the next try.
type errNotYet struct{ text []byte }

func (errNotYet) Error() string { return "it is not known yet" }

// text gives the file's text, and whether it stays so.
func (f *changesFile) text(ctx context.Context) (text []byte, lasts bool, err error) {
	text, err = f.point.text(ctx, changesName, func(*opened) ([]byte, error) { return f.write(ctx) })
	var notYet errNotYet
	if errors.As(err, &notYet) {
		return notYet.text, false, nil
	}
	return text, err == nil, err
}

func (f *changesFile) write(ctx context.Context) ([]byte, error) {
	p := f.point
	l, err := p.server.listPoints(ctx)
	if err != nil {
		return nil, err
	}
	parent, note := earlier(l, p)
	if parent == nil {
		return fmt.Appendf(nil, "This is the first restore point: there is no earlier one that it could differ from.\n"), nil
	}
	// It must be known before the kernel gives the request up.
	bounded, cancel := context.WithTimeout(ctx, p.server.options.Deadline*3/4)
	defer cancel()
	d, err := f.differences(bounded, *parent)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		p.server.report(fmt.Errorf("restore point %s: %s: %w", p.summary.ID, changesName, err))
		why := err.Error()
		if bounded.Err() != nil {
			why = "it takes too long to find out here"
		}
		return nil, errNotYet{fmt.Appendf(nil, "What differs from %s is not known: %s.\nThis finds out: cairn diff %.8s %.8s\n", pointName(parent.Time), why, parent.ID, p.summary.ID)}
	}
	return append(changesText(d, *parent, p.summary), note...), nil
}

// earlier gives the point to compare one with: its parent, else the one before
// it, and then a line that says so.
func earlier(l *listing, p *point) (parent *restorepoint.Summary, note string) {
	for _, v := range l.vms {
		for i, o := range v.points {
			if o.summary.ID == p.summary.Parent {
				return &o.summary, ""
			}
			if o == p && i > 0 {
				parent = &v.points[i-1].summary
			}
		}
	}
	switch {
	case parent == nil:
	case p.summary.Parent == "":
		note = fmt.Sprintf("# compared with %s, the point before: this one has no parent\n", pointName(parent.Time))
	default:
		note = fmt.Sprintf("# compared with %s, the point before: the parent, %.8s, is gone\n", pointName(parent.Time), p.summary.Parent)
	}
	return parent, note
}

func (f *changesFile) differences(ctx context.Context, parent restorepoint.Summary) (*catalogue.Differences, error) {
	past, err := catalogue.NewPast(ctx, []restorepoint.Summary{parent, f.point.summary}, f.point.server.options.Files, nil)
	if err != nil {
		return nil, err
	}
	sides, err := past.Sides()
	if err != nil {
		return nil, err
	}
	return catalogue.Diff(ctx, sides[0], sides[1], catalogue.DiffOptions{Most: maxChangesSeen})
}

// changesText writes differences as `cairn diff` does, with the gaps behind
// them.
func changesText(d *catalogue.Differences, parent, p restorepoint.Summary) []byte {
	var text bytes.Buffer
	cut := d.Cut
	for _, x := range d.List {
		line := x.String()
		if text.Len()+len(line) >= maxChanges {
			cut = true
			break
		}
		text.WriteString(line)
		text.WriteByte('\n')
	}
	if cut {
		fmt.Fprintf(&text, "# and more, which are not listed here; all of them: cairn diff %.8s %.8s\n", parent.ID, p.ID)
	}
	const most = 100
	for i, problem := range d.Problems {
		if i == most {
			fmt.Fprintf(&text, "# and %d more that could not be read\n", len(d.Problems)-most)
			break
		}
		fmt.Fprintf(&text, "# could not be read: %s: %v\n", catalogue.Printable(problem.Path), problem.Err)
	}
	if text.Len() == 0 {
		fmt.Fprintf(&text, "# no file differs from %s\n", pointName(parent.Time))
	}
	return text.Bytes()
}
