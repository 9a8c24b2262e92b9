package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/BurntSushi/toml"
)

// ErrUnknownVM: no VM of this name is registered on this host.
var ErrUnknownVM = errors.New("unknown VM")

// VM is one registered virtual machine.
type VM struct {
	Name    string   `toml:"name" json:"name"`
	QMP     string   `toml:"qmp,omitempty" json:"qmp,omitempty"`                   // path of QEMU's monitor socket; "" with Libvirt, and where only its images are known
	Libvirt string   `toml:"libvirt,omitempty" json:"libvirt,omitempty"`           // instead of it: libvirt's connection URI
	Domain  string   `toml:"domain,omitempty" json:"domain,omitempty"`             // libvirt's name or UUID of the VM; "": as Name
	Agent   string   `toml:"agent,omitempty" json:"agent,omitempty"`               // path of qemu-guest-agent's socket; "": as QEMU says
	Inside  string   `toml:"inside_agent,omitempty" json:"inside_agent,omitempty"` // path of cairn-agent's socket; "": as QEMU says
	Exclude []string `toml:"exclude,omitempty" json:"exclude,omitempty"`           // names of disks to leave out
	Tags    []string `toml:"tags,omitempty" json:"tags,omitempty"`                 // by which jobs choose it
	Disks   []Disk   `toml:"disk,omitempty" json:"disks,omitempty"`                // where its images are, for when it is off
}

// Disk says where a disk's image is.
type Disk struct {
	Name   string `toml:"name" json:"name"`
	File   string `toml:"file" json:"file"`                         // absolute
	Format string `toml:"format" json:"format"`                     // "qcow2" or "raw"
	Serial string `toml:"serial,omitempty" json:"serial,omitempty"` // that of the VM's device
}

// Check refuses what cannot be read safely: the format must be said, as the
// guest of a raw disk could write another format's header there.
func (d Disk) Check() error {
	switch {
	case d.Name == "":
		return errors.New("a disk needs a name")
	case !filepath.IsAbs(d.File):
		return fmt.Errorf("disk %s: file %q: the name must be absolute, as it is not known which folder it is relative to", d.Name, d.File)
	case d.Format != "qcow2" && d.Format != "raw":
		return fmt.Errorf("disk %s: format %q: without the VM only qcow2 and raw can be read", d.Name, d.Format)
	}
	return nil
}

var vmName = pattern(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// CheckName refuses names that could not be a folder's in the mount.
func CheckName(name string) error {
	if !vmName().MatchString(name) || name == "latest" || name == "history" {
		return fmt.Errorf("%q cannot name a VM: use letters, digits, '.', '_' and '-', beginning with a letter or digit", name)
	}
	return nil
}

func (d Dirs) vmFile(name string) string { return filepath.Join(d.Config, "vms.d", name+".toml") }

// SaveVM registers a VM; with replace an existing one is overwritten.
func (d Dirs) SaveVM(v VM, replace bool) error {
	if err := CheckName(v.Name); err != nil {
		return err
	}
	path := d.vmFile(v.Name)
	if _, err := os.Stat(path); err == nil && !replace {
		return fmt.Errorf("VM %s is registered already (%s): use --replace to change it", v.Name, path)
	}
	if c, err := Load(d); err == nil { // two would be an error of the configuration
		for _, m := range c.VMs {
			if m.Name == v.Name && m.Where.File != path {
				return fmt.Errorf("VM %s has a table in the configuration already: change it there (%s)", v.Name, m.Where)
			}
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	var b strings.Builder
	if err := toml.NewEncoder(&b).Encode(v); err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// RemoveVM forgets a VM; its restore points stay.
func (d Dirs) RemoveVM(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	err := os.Remove(d.vmFile(name))
	if errors.Is(err, fs.ErrNotExist) {
		return d.unknown(name)
	}
	return err
}

// VM gives the VM of a file in vms.d or else of a table [vm.NAME], or
// ErrUnknownVM.
func (d Dirs) VM(name string) (VM, error) {
	if err := CheckName(name); err != nil {
		return VM{}, err
	}
	f, err := readFile(d.vmFile(name))
	if errors.Is(err, fs.ErrNotExist) {
		return d.tabled(name)
	}
	if err != nil {
		return VM{}, err
	}
	l := loader{names: []string{f.name}}
	v, _ := l.vmFile(f)
	if len(l.problems) > 0 {
		sortProblems(l.problems, l.names)
		return VM{}, Problems(l.problems)
	}
	return v, nil
}

// FindVMs is VM for several names, which also finds those that only a discovery of
// the configuration finds now, as cairn serve does.
func (d Dirs) FindVMs(ctx context.Context, names []string, domains Domains) (list []VM, err error) {
	var all []Machine // as they are now; asked for once
	for _, name := range names {
		v, err := d.VM(name)
		if errors.Is(err, ErrUnknownVM) {
			v, err = d.discovered(ctx, name, domains, &all, err)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// discovered finds a VM by the discoveries, or says with unknown which of them could
// not be asked.
func (d Dirs) discovered(ctx context.Context, name string, domains Domains, all *[]Machine, unknown error) (VM, error) {
	c, err := Load(d)
	if err != nil || len(c.Discoveries) == 0 {
		return VM{}, unknown
	}
	var failed []Problem
	if *all == nil {
		*all, failed = c.Find(ctx, domains)
	}
	for _, m := range *all {
		if m.Name == name {
			return m.VM, nil
		}
	}
	for _, p := range failed {
		unknown = fmt.Errorf("%w\n%s", unknown, p.Text)
	}
	return VM{}, unknown
}

// tabled gives the VM of a table of the configuration. The commands need no
// configuration, so that one with errors is no error but where it could matter.
func (d Dirs) tabled(name string) (VM, error) {
	c, err := Load(d)
	if err != nil {
		return VM{}, fmt.Errorf("%w; it may be in the configuration, which is not used for its errors: cairn config check", d.unknown(name))
	}
	for _, m := range c.VMs {
		if m.Name == name {
			return m.VM, nil
		}
	}
	return VM{}, d.unknown(name)
}

// vmFile reads a file of vms.d.
func (l *loader) vmFile(f *file) (v VM, ok bool) {
	t := &table{file: f, items: f.items, say: l.say}
	v.Name = t.text("name", "web01")
	want := strings.TrimSuffix(filepath.Base(f.name), ".toml")
	if v.Name != want || CheckName(want) != nil {
		l.say(Problem{t.where("name"), fmt.Sprintf("name: the file %s is for name = %q: write that, or rename the file", filepath.Base(f.name), want)})
		return v, false
	}
	before := len(l.problems)
	readVM(t, &v)
	return v, len(l.problems) == before
}

// readVM reads the settings of a VM, but for its name.
func readVM(t *table, v *VM) {
	socket := t.absolute
	if t.title == "" { // vms.d has had relative ones
		socket = t.text
	}
	v.QMP = socket("qmp", "/run/web01.qmp")
	v.Libvirt = t.text("libvirt", "qemu:///system")
	v.Domain = t.text("domain", "web01")
	v.Agent = socket("agent", "/run/web01.agent")
	v.Inside = socket("inside_agent", "/run/web01.cairn")
	v.Exclude = t.texts("exclude", "vdb")
	v.Tags = t.tags("tags")
	v.Disks = t.disks("disk")
	switch {
	case t.has("qmp") && t.has("libvirt"), !t.has("qmp") && !t.has("libvirt") && !t.has("disk") && !t.nested():
		t.problem("", "write one of qmp = the monitor's socket and libvirt = a connection URI, qemu:///system")
	case v.Libvirt != "" && v.Domain == "":
		v.Domain = v.Name
	case v.Libvirt == "" && v.Domain != "":
		t.problem("domain", "it is for libvirt, and libvirt = is not there")
	}
	t.done()
}

// nested says whether a table is in it: what a name with dots and without quotes
// makes. Of that, done tells.
func (t *table) nested() bool {
	for _, v := range t.items {
		if _, ok := v.(map[string]any); ok {
			return true
		}
	}
	return false
}

// disks reads where a VM's images are.
func (t *table) disks(key string) (disks []Disk) {
	v, ok := t.get(key)
	if !ok {
		return nil
	}
	var list []map[string]any
	switch v := v.(type) {
	case []map[string]any:
		list = v
	case []any:
		for _, one := range v {
			if m, ok := one.(map[string]any); ok {
				list = append(list, m)
			}
		}
		if len(list) < len(v) {
			list = nil
		}
	}
	if list == nil {
		t.problem(key, "write a table for each disk, [[…%s]], with name, file and format", key)
		return nil
	}
	for i, items := range list {
		one := &table{file: t.file, path: element(child(t.path, key), i), title: strings.TrimSpace(t.title + " disk"), items: items, say: t.say}
		d := Disk{Name: one.text("name", "vda"), File: one.text("file", "/vm/vda.qcow2"), Format: one.text("format", "qcow2"), Serial: one.text("serial", "S1")}
		if err := d.Check(); err != nil {
			one.problem("", "%v", err)
		}
		one.done()
		disks = append(disks, d)
	}
	return disks
}

// VMs gives all registered VMs by name.
func (d Dirs) VMs() ([]VM, error) {
	files, err := filepath.Glob(d.vmFile("*"))
	if err != nil {
		return nil, err
	}
	sort.Strings(files)
	var out []VM
	for _, f := range files {
		v, err := d.VM(strings.TrimSuffix(filepath.Base(f), ".toml"))
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func (d Dirs) unknown(name string) error {
	var names []string
	if c, err := Load(d); err == nil {
		for _, m := range c.VMs {
			names = append(names, m.Name)
		}
	} else if all, err := d.VMs(); err == nil {
		for _, v := range all {
			names = append(names, v.Name)
		}
	}
	hint := "no VM is registered on this host yet: cairn vm add " + name + " --qmp SOCKET"
	if len(names) > 0 {
		hint = "registered on this host: " + strings.Join(names, ", ")
	}
	return fmt.Errorf("%w %s (%s)", ErrUnknownVM, name, hint)
}
