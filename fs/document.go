package fs

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"cairn/fs/tree"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// about is point.json. Fields are only added.
type about struct {
	ID          string                   `json:"id"`
	VM          restorepoint.VM          `json:"vm"`
	Time        time.Time                `json:"time"`
	Host        string                   `json:"host,omitempty"`
	Consistency restorepoint.Consistency `json:"consistency"`
	Parent      string                   `json:"parent,omitempty"`
	Read        string                   `json:"read"`
	Reason      string                   `json:"reason"`
	Tags        []string                 `json:"tags,omitempty"`
	OS          *restorepoint.OS         `json:"os,omitempty"`
	Disks       []aboutDisk              `json:"disks"`
	Skipped     []restorepoint.Skipped   `json:"skipped,omitempty"`
	Volumes     []aboutVolume            `json:"volumes"`
	Apps        *aboutApps               `json:"apps,omitempty"`
	Warnings    []string                 `json:"warnings,omitempty"`
	Problems    []tree.Problem           `json:"problems"` // what the tree cannot show, and why
}

type aboutDisk struct {
	Name   string `json:"name"`
	Serial string `json:"serial,omitempty"`
	Size   int64  `json:"size"`
	Read   string `json:"read,omitempty"`
	Reason string `json:"reason,omitempty"`
}

type aboutVolume struct {
	Name   string   `json:"name"`
	Type   string   `json:"type,omitempty"`
	Label  string   `json:"label,omitempty"`
	UUID   string   `json:"uuid,omitempty"`
	Size   int64    `json:"size"`
	Reason string   `json:"reason,omitempty"` // why it cannot be shown
	Notes  []string `json:"notes,omitempty"`
}

// text makes a document once and keeps it: the kernel remembers its size.
func (p *point) text(ctx context.Context, name string, write func(*opened) ([]byte, error)) ([]byte, error) {
	o, err := p.open(ctx)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	text, ok := o.texts[name]
	o.mu.Unlock()
	if ok {
		return text, nil
	}
	if text, err = write(o); err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if first, ok := o.texts[name]; ok {
		return first, nil
	}
	o.texts[name] = text
	return text, nil
}

// json gives the contents of point.json. It opens every volume: what cannot
// be shown must be said there.
func (p *point) json(ctx context.Context) ([]byte, error) {
	return p.text(ctx, "point.json", func(o *opened) ([]byte, error) {
		problems, err := o.tree.Problems(ctx)
		if err != nil {
			return nil, err
		}
		m := o.manifest
		a := about{
			ID: m.ID, VM: m.VM, Time: m.Time.UTC(), Host: m.Host, Consistency: m.Consistency, Parent: m.Parent,
			Read: m.Read, Reason: m.Reason, Tags: m.Tags, Skipped: m.Skipped, Warnings: m.Warnings,
			Problems: append([]tree.Problem{}, problems...), Disks: []aboutDisk{}, Volumes: []aboutVolume{},
		}
		if m.Guest != nil {
			a.OS = &m.Guest.OS
		}
		for _, d := range m.Disks {
			a.Disks = append(a.Disks, aboutDisk{d.Name, d.Serial, d.Size, d.Read, d.Reason})
		}
		if a.Volumes, err = aboutVolumes(ctx, o.tree); err != nil {
			return nil, err
		}
		apps, missing, err := p.aboutApps(ctx)
		if err != nil {
			return nil, err
		}
		a.Apps, a.Problems = apps, append(a.Problems, missing...)
		text, err := json.MarshalIndent(a, "", "  ")
		return append(text, '\n'), err
	})
}

func aboutVolumes(ctx context.Context, t *tree.Tree) ([]aboutVolume, error) {
	volumes := []aboutVolume{}
	list, err := t.Volumes(ctx)
	if err != nil {
		if tree.Lasting(err) {
			return volumes, nil // Problems said so
		}
		return nil, err
	}
	for i, v := range list {
		about := aboutVolume{Name: v.Name, Type: v.Type, Label: v.Label, UUID: v.UUID, Size: v.Size, Reason: v.Reason}
		if r, err := t.Reader(ctx, int32(i)); err == nil {
			about.Notes = r.Info().Notes
		}
		volumes = append(volumes, about)
	}
	return volumes, nil
}

// machine lists what is needed to start the VM again.
func (d *pointDir) machine(ctx context.Context) ([]child, error) {
	o, err := d.point.open(ctx)
	if err != nil {
		return nil, err
	}
	var children []child
	add := func(name string, text []byte) {
		if len(text) == 0 {
			return
		}
		ino := hash(d.point.summary.ID, "machine", name)
		children = append(children, named(name, filesystem.ModeRegular, ino, &document{ino, d.point.summary.Time,
			func(context.Context) ([]byte, error) { return text, nil }}))
	}
	m := o.manifest.Machine
	add("command-line", commandLine(m.CommandLine))
	add("domain.xml", []byte(m.DomainXML))
	add("nvram", m.NVRAM)
	return children, nil
}

// commandLine writes a command so that a shell reads it back: one argument a
// line.
func commandLine(args []string) []byte {
	if len(args) == 0 {
		return nil
	}
	var quoted []string
	for _, a := range args {
		if a == "" || strings.ContainsFunc(a, needsQuotes) {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		quoted = append(quoted, a)
	}
	return fmt.Appendln(nil, strings.Join(quoted, " \\\n  "))
}

func needsQuotes(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_=+,./:@%", r))
}
