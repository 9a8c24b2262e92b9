package job

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"cairn/cmd/internal/job/image"
	"cairn/cmd/internal/job/machine"
	"cairn/index/restorepoint"
)

// Names of files in the folder of a restored VM.
const (
	startScript = "start.sh"
	domainFile  = "domain.xml"
	nvramFile   = "nvram.fd"
)

// VMRestore is the restore of a whole VM into a folder.
type VMRestore struct {
	Manifest *restorepoint.Manifest
	Open     func(disk string) (image.Disk, error)
	Folder   string // made if it is not there; else it must be empty
	Name     string // of the new VM; "": the old one with "-restored"
	// AsOriginal keeps the VM's UUID and its network cards' addresses, for one
	// that is gone. Name "" is then the old one.
	AsOriginal bool
	Disk       image.Options
	Progress   Progress
}

// RestoredVM says what a restore of a VM made.
type RestoredVM struct {
	Name     string                    `json:"name"`
	UUID     string                    `json:"uuid"`
	Start    string                    `json:"start"` // start.sh, or domain.xml
	Files    map[string]string         `json:"files"` // by disk
	Disks    map[string]image.Restored `json:"disks"`
	Skipped  []restorepoint.Skipped    `json:"skipped"`
	Machine  *machine.Result           `json:"machine"`
	IsDomain bool                      `json:"is_domain"`
}

// Run restores the disks, and at last writes what starts the VM. What cannot
// be started is found before anything is written.
//
// When it fails or is interrupted, the files that it made are gone again, so that
// the same command can be run again.
func (v *VMRestore) Run(ctx context.Context) (_ *RestoredVM, err error) {
	dir, err := emptyFolder(v.Folder)
	if err != nil {
		return nil, err
	}
	plan, err := v.plan(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	out := plan.out
	var made []string
	defer func() {
		if err == nil {
			return
		}
		if errors.Is(err, syscall.ENOSPC) && !errors.Is(err, image.ErrFull) {
			err = fmt.Errorf("%w: make room in %s, and run the command again", err, dir)
		}
		for _, name := range made {
			if rerr := os.Remove(name); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}()
	for _, d := range plan.options.Disks {
		disk, err := v.Open(d.Name)
		if err != nil {
			return nil, err
		}
		r, err := image.Restore(ctx, disk, d.Path, v.Disk, v.Progress)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Name, err)
		}
		made = append(made, d.Path) // one that failed has left nothing
		out.Disks[d.Name], out.Files[d.Name] = r, d.Path
	}
	if plan.options.NVRAM != "" {
		made = append(made, plan.options.NVRAM)
		if err := os.WriteFile(plan.options.NVRAM, v.Manifest.Machine.NVRAM, 0o600); err != nil {
			return nil, err
		}
	}
	made = append(made, out.Start)
	return out, os.WriteFile(out.Start, []byte(plan.text), plan.mode)
}

// emptyFolder gives the full name of a folder that is not there, or empty.
func emptyFolder(path string) (string, error) {
	dir, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if len(list) > 0 {
		return "", fmt.Errorf("%s is not empty: name a new folder for the VM, or empty this one (a restore that was killed leaves disks in it, and no %s)", path, startScript)
	}
	return dir, nil
}

// vmPlan is what starts the VM, made before its disks are.
type vmPlan struct {
	options machine.Options
	out     *RestoredVM
	text    string
	mode    os.FileMode
}

func (v *VMRestore) plan(dir string) (*vmPlan, error) {
	m := v.Manifest
	format := v.Disk.Format
	if format == "" {
		format = image.FormatRaw
	}
	name := v.Name
	switch {
	case name != "":
	case v.AsOriginal:
		name = m.VM.Name
	default:
		name = m.VM.Name + "-restored"
	}
	o, err := machineOptions(m, dir, name, func(disk string) (string, string) { return filepath.Join(dir, disk+"."+format), format })
	if err != nil {
		return nil, err
	}
	if v.AsOriginal {
		asOriginal(m, &o)
	}
	p := &vmPlan{options: o, mode: 0o700, out: &RestoredVM{Name: name, UUID: o.UUID, Files: map[string]string{}, Disks: map[string]image.Restored{}, Skipped: m.Skipped}}
	if m.Machine.DomainXML != "" {
		p.out.IsDomain, p.out.Start, p.mode = true, filepath.Join(dir, domainFile), 0o600
		p.text, p.out.Machine, err = machine.RewriteDomain(m.Machine.DomainXML, o)
	} else {
		p.out.Start = filepath.Join(dir, startScript)
		if p.out.Machine, err = machine.Rewrite(m.Machine.CommandLine, o); err == nil {
			p.text = p.out.Machine.Script(dir, comments(m, name, v.AsOriginal))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("how the VM of point %s is started: %w", m.ID[:8], err)
	}
	missingFiles(p.out.Machine)
	return p, nil
}

// machineOptions says what the new VM is, with disks where place puts them.
func machineOptions(m *restorepoint.Manifest, dir, name string, place func(disk string) (path, format string)) (machine.Options, error) {
	uuid, err := newUUID(rand.Reader)
	if err != nil {
		return machine.Options{}, err
	}
	o := machine.Options{Dir: dir, Name: name, UUID: uuid, NewMAC: func() string { return newMAC(rand.Reader) }}
	if len(m.Machine.NVRAM) > 0 {
		o.NVRAM = filepath.Join(dir, nvramFile)
	}
	for _, d := range m.Disks {
		if d.Name != filepath.Base(d.Name) || strings.HasPrefix(d.Name, ".") {
			return o, fmt.Errorf("%w: a disk is called %q", restorepoint.ErrCorrupt, d.Name)
		}
		x := machine.Disk{Name: d.Name, Node: d.Node, Device: d.Device}
		if len(d.Chain) > 0 {
			x.File = d.Chain[0]
		}
		x.Path, x.Format = place(d.Name)
		o.Disks = append(o.Disks, x)
	}
	return o, nil
}

// asOriginal lets the new VM be the old one to networks and to Cairn.
func asOriginal(m *restorepoint.Manifest, o *machine.Options) {
	o.NewMAC = nil
	if m.VM.UUID != "" {
		o.UUID = m.VM.UUID
	}
}

// comments are the first lines of a start script.
func comments(m *restorepoint.Manifest, name string, original bool) []string {
	identity := "with a UUID and network addresses of its own"
	if original {
		identity = "with the original's UUID and network addresses: never beside it"
	}
	list := []string{
		fmt.Sprintf("Starts %s: the VM %s as of %s (restore point %s), %s.", name, m.VM.Name, m.Time.UTC().Format("2006-01-02 15:04:05 UTC"), m.ID, identity),
		"Made by cairn restore --vm. It may be changed; cairn does not read it again.",
	}
	for _, s := range m.Skipped {
		list = append(list, fmt.Sprintf("not in the restore point: disk %s (%s)", s.Name, s.Reason))
	}
	return list
}

// missingFiles warns of what the VM needs and this host has not.
func missingFiles(r *machine.Result) {
	for _, f := range r.Needs {
		if _, err := os.Stat(f); filepath.IsAbs(f) && err != nil {
			r.Warnings = append(r.Warnings, fmt.Sprintf("the VM needs %s, which is not on this host", f))
		}
	}
}

// newUUID makes a random one (RFC 9562, version 4).
func newUUID(random io.Reader) (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", err
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), nil
}

// newMAC makes a random address of QEMU's range.
func newMAC(random io.Reader) string {
	var b [3]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		panic("internal error: " + err.Error()) // crypto/rand never fails
	}
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2])
}
