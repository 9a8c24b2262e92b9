package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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

var vmName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// CheckName refuses names that could not be a folder's in the mount.
func CheckName(name string) error {
	if !vmName.MatchString(name) || name == "latest" || name == "history" {
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

// VM gives a registered VM, or ErrUnknownVM.
func (d Dirs) VM(name string) (VM, error) {
	if err := CheckName(name); err != nil {
		return VM{}, err
	}
	var v VM
	md, err := toml.DecodeFile(d.vmFile(name), &v)
	if errors.Is(err, fs.ErrNotExist) {
		return VM{}, d.unknown(name)
	}
	if err != nil {
		return VM{}, fmt.Errorf("%s: %w", d.vmFile(name), err)
	}
	if keys := md.Undecoded(); len(keys) > 0 {
		return VM{}, fmt.Errorf("%s: unknown setting %q", d.vmFile(name), keys[0].String())
	}
	if v.Name != name || v.QMP != "" && v.Libvirt != "" || v.QMP == "" && v.Libvirt == "" && len(v.Disks) == 0 {
		return VM{}, fmt.Errorf("%s: wants name = %q and one of qmp = the monitor's socket and libvirt = a connection URI", d.vmFile(name), name)
	}
	if v.Libvirt != "" && v.Domain == "" {
		v.Domain = name
	}
	for _, disk := range v.Disks {
		if err := disk.Check(); err != nil {
			return VM{}, fmt.Errorf("%s: %w", d.vmFile(name), err)
		}
	}
	return v, nil
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
	if all, err := d.VMs(); err == nil {
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
