package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
)

// pointJSON is a point in `cairn points --json`.
type pointJSON struct {
	ID          string                  `json:"id"`
	VM          string                  `json:"vm"`
	Time        time.Time               `json:"time"`
	Consistency string                  `json:"consistency"`
	Why         string                  `json:"consistency_reason"`
	Read        string                  `json:"read"`
	Reason      string                  `json:"reason"`
	Parent      string                  `json:"parent,omitempty"`
	Disks       []restorepoint.DiskSize `json:"disks"`
	BytesStored int64                   `json:"bytes_stored"`
	Tags        []string                `json:"tags,omitempty"`
	Pinned      *pinJSON                `json:"pinned,omitempty"`
}

func (a *app) pointsCmd() *cobra.Command {
	return &cobra.Command{Use: "points [VM]", Short: "List restore points, oldest first", Args: args(0, 1), ValidArgsFunction: a.completeFirst(a.completeVMs), RunE: func(c *cobra.Command, argv []string) error {
		return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, cat *wire.Catalogue) error {
			all, err := cat.Points(c.Context())
			if err != nil {
				return err
			}
			pins, err := pinsOf(c.Context(), repo)
			if err != nil {
				return err
			}
			var list []restorepoint.Summary
			for _, p := range all {
				if len(argv) == 0 || p.VM == argv[0] {
					list = append(list, p)
				}
			}
			if err := a.printPoints(list, pins); err != nil {
				return err
			}
			for id, err := range cat.Damaged() {
				a.say("warning: point %s is there but cannot be read: %v", id[:8], err)
			}
			if len(cat.Damaged()) > 0 {
				return errWarnings
			}
			return nil
		})
	}}
}

func (a *app) printPoints(list []restorepoint.Summary, pins map[string]*pinJSON) error {
	if a.json {
		out := []pointJSON{}
		for _, p := range list {
			out = append(out, pointJSON{p.ID, p.VM, p.Time, p.Consistency.Level, p.Consistency.Reason, p.Read, p.Reason, p.Parent, p.Disks, p.BytesStored, p.Tags, pins[p.ID]})
		}
		return a.printJSON(map[string]any{"points": out})
	}
	if len(list) == 0 {
		a.say("no restore points yet: cairn backup VM")
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tVM\tTIME (UTC)\tREAD\tSTORED\tCONSISTENT\tDISKS\tTAGS\tPINNED")
	for _, p := range list {
		var disks []string
		for _, d := range p.Disks {
			disks = append(disks, d.Name+" "+bytesOf(d.Size))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.ID[:8], p.VM, restorepoint.DirName(p.Time), p.Read,
			bytesOf(p.BytesStored), p.Consistency.Level, strings.Join(disks, ", "), strings.Join(p.Tags, " "), pins[p.ID])
	}
	return w.Flush()
}

func (a *app) showCmd() *cobra.Command {
	return &cobra.Command{Use: "show POINT", Short: "Show everything about a restore point", Args: args(1, 1), ValidArgsFunction: a.completePoints, RunE: func(c *cobra.Command, argv []string) error {
		return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, cat *wire.Catalogue) error {
			m, err := cat.Select(c.Context(), argv[0])
			if err != nil {
				return err
			}
			pins, err := pinsOf(c.Context(), repo)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(shownPoint{m, pins[m.ID]})
			}
			return a.show(c.Context(), cat, m, pins[m.ID])
		})
	}}
}

// shownPoint is a point in `cairn show --json`.
type shownPoint struct {
	*restorepoint.Manifest
	Pinned *pinJSON `json:"pinned,omitempty"`
}

func (a *app) show(ctx context.Context, cat *wire.Catalogue, m *restorepoint.Manifest, pin *pinJSON) error {
	s := m.Statistics
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("point", "%s@%s", m.VM.Name, restorepoint.DirName(m.Time))
	row("id", "%s", m.ID)
	if m.VM.UUID != "" {
		row("VM's UUID", "%s", m.VM.UUID)
	}
	if m.Parent != "" {
		row("parent", "%s", m.Parent)
	}
	if m.CopiedFrom != nil {
		row("copied from", "repository %s, point %s", m.CopiedFrom.Repository, m.CopiedFrom.Point)
	}
	row("made by", "host %s, QEMU %s", m.Host, m.Machine.QEMUVersion)
	row("read", "%s: %s", m.Read, m.Reason)
	row("consistency", "%s: %s", m.Consistency.Level, m.Consistency.Reason)
	if m.Pace != "" {
		row("time", "%s", m.Pace)
	}
	if s.ChunksAudited > 0 {
		row("audit", "%s chunks that the bitmaps call unchanged were compared, %s had changed", humanize.Comma(s.ChunksAudited), humanize.Comma(s.ChunksWrong))
	}
	row("guest", "frozen %d ms, paused %.1f ms", s.FrozenMS, float64(s.PausedUS)/1000)
	row("bytes", "%s of disks, %s dirty, %s read, %s stored", bytesOf(s.BytesDisk), bytesOf(s.BytesDirty), bytesOf(s.BytesRead), bytesOf(s.BytesStored))
	if s.BytesFree > 0 || s.BytesSwap > 0 {
		row("left out", "%s free in the guest's filesystems, %s of swap space", bytesOf(s.BytesFree), bytesOf(s.BytesSwap))
	}
	row("chunks", "%s new, %s known, %s zero", humanize.Comma(s.ChunksNew), humanize.Comma(s.ChunksKnown), humanize.Comma(s.ChunksZero))
	for _, d := range m.Disks {
		row("disk "+d.Name, "%s, %s, %s", bytesOf(d.Size), d.Format, d.Reason)
	}
	for _, d := range m.Skipped {
		row("disk "+d.Name, "left out: %s", d.Reason)
	}
	if g := m.Guest; g != nil {
		row("guest system", "%s (%s, kernel %s), told by %s", safe(g.OS.Name), safe(g.Hostname), safe(g.OS.KernelRelease), g.Source)
		for _, f := range g.Filesystems {
			row("mounted", "%s on %s (%s)", safe(f.Name), safe(f.Mountpoint), safe(f.Type))
		}
	}
	switch root, state, err := cat.FilesState(ctx, m.ID); state {
	case stateStored:
		row("catalogue", "%s", howMade(root))
	case stateNone:
		row("catalogue", "none; make it with: cairn catalogue %s", pointName(m))
	case stateDamaged:
		row("catalogue", "damaged, the point is not; make it anew with: cairn catalogue --rebuild %s", pointName(m))
	default:
		row("catalogue", "cannot be read: %v", err)
	}
	damage := showObjects(row, m)
	for _, t := range m.Tags {
		row("tag", "%s", t)
	}
	if pin != nil {
		row("pinned", "%s", pin)
	}
	for _, t := range m.Warnings {
		row("warning", "%s", t)
	}
	return cmp.Or(w.Flush(), damage)
}

// maxObjectRows is how many system objects `cairn show` names.
const maxObjectRows = 20

// showObjects names what the inside agent told of, applications first: there
// are more users and containers. The error is that its word is damaged.
func showObjects(row func(name, format string, args ...any), m *restorepoint.Manifest) error {
	d, err := m.Guest.Document()
	if err != nil {
		row("objects", "cannot be shown: %v", err)
		return fmt.Errorf("point %s: %w", pointName(m), err)
	}
	if d == nil {
		return nil
	}
	shown := 0
	for _, grouped := range []bool{false, true} {
		for _, o := range d.Objects {
			if strings.Contains(o.Name, "/") == grouped && shown < maxObjectRows {
				row("object", "%s, %s: %s", safe(o.Name), o.Consistency.Level, safe(o.Consistency.Reason))
				shown++
			}
		}
	}
	if more := len(d.Objects) - shown; more > 0 {
		row("object", "and %d more: cairn apps %s", more, pointName(m))
	}
	return nil
}
