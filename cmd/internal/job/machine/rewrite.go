package machine

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Disk is a disk of the restore point, and where it was restored to.
type Disk struct {
	Name   string // as in the point
	Node   string // QEMU's node name at the time
	Device string // the -device id, "" if none was given
	File   string // the image file at the time
	Path   string // the restored image
	Format string // of it: "raw" or "qcow2"
}

// Options say what the new VM is to be. Dir must be absolute.
type Options struct {
	Dir    string // sockets, logs and NVRAM of the new VM
	Name   string
	UUID   string
	Disks  []Disk
	NVRAM  string        // file with the firmware's variables, "" if the point has none
	NewMAC func() string // called once for each network card; nil: each keeps what it has
	// Sockets are names of more QMP monitors to make in Dir.
	Sockets []string
	// Taken are other names in Dir that no socket or log may get.
	Taken []string
	// StopOnError makes the VM stop when a disk fails, and not its guest see it.
	StopOnError bool
	// Foreground keeps QEMU a child of who starts it.
	Foreground bool
}

// Result is how to start the new VM.
type Result struct {
	Args     []string `json:"args"` // the program first
	Sockets  []Socket `json:"sockets"`
	MACs     []string `json:"macs"`
	LeftOut  []string `json:"left_out"` // disks that were taken out
	Warnings []string `json:"warnings"`
	Needs    []string `json:"needs"` // files of the host that the VM uses
	// CopyNVRAM is the original's file of firmware variables, to be copied to
	// NVRAMCopy before the first start; "" if there is none to copy.
	CopyNVRAM string `json:"copy_nvram,omitempty"`
	NVRAMCopy string `json:"nvram_copy,omitempty"`
}

// Socket is how to reach the new VM.
type Socket struct {
	What string `json:"what"` // "-qmp", "chardev qga"
	Path string `json:"path"`
}

// rewriter is one rewriting.
type rewriter struct {
	o     Options
	opts  []option
	nodes map[string]int // -blockdev by node name
	done  map[string]bool
	files map[string]bool // names in Dir that are taken
	old   map[string]bool // nodes below the disks, as they were
	read  map[string]*props
	res   Result
}

// Rewrite gives the command line of the new VM. It fails when a disk of the
// point has no place in the old one.
func Rewrite(args []string, o Options) (*Result, error) {
	program, opts, err := parseArgs(args)
	if err != nil {
		return nil, err
	}
	r := &rewriter{o: o, opts: opts, nodes: map[string]int{}, done: map[string]bool{}, files: map[string]bool{}, old: map[string]bool{}, read: map[string]*props{}}
	r.reserve()
	if err := r.indexNodes(); err != nil {
		return nil, err
	}
	for _, d := range o.Disks {
		if err := r.placeDisk(d); err != nil {
			return nil, err
		}
	}
	if err := r.otherDisks(); err != nil {
		return nil, err
	}
	for i := range r.opts {
		if r.opts[i].gone {
			continue
		}
		if err := r.option(&r.opts[i]); err != nil {
			return nil, err
		}
	}
	r.identity()
	for _, s := range o.Sockets {
		path := filepath.Join(o.Dir, s)
		r.opts = append(r.opts, option{name: "qmp", value: "unix:" + escape(path) + ",server=on,wait=off"})
	}
	r.res.Args = formatArgs(program, r.opts)
	r.relative(program)
	return &r.res, nil
}

// reserve keeps the names that are given already.
func (r *rewriter) reserve() {
	for _, s := range slices.Concat(r.o.Sockets, r.o.Taken) {
		r.files[s] = true
	}
	r.files["start.sh"] = true
	r.files[filepath.Base(r.o.NVRAM)] = true
	for _, d := range r.o.Disks {
		r.files[filepath.Base(d.Path)] = true
	}
}

func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func (r *rewriter) warn(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	for _, w := range r.res.Warnings {
		if w == s {
			return
		}
	}
	r.res.Warnings = append(r.res.Warnings, s)
}

func (r *rewriter) need(file string) {
	if file != "" && !strings.HasPrefix(file, "/dev/") {
		r.res.Needs = append(r.res.Needs, file)
	}
}

// relative warns of files whose place is not known.
func (r *rewriter) relative(program string) {
	if strings.Contains(program, "/") && !filepath.IsAbs(program) {
		r.warn("the program %q is named relative to a folder that is not known", program)
	}
	for _, f := range r.res.Needs {
		if !filepath.IsAbs(f) {
			r.warn("%q is named relative to the folder that QEMU was started in, which is not known: start from there, or put the full path in", f)
		}
	}
}

// inDir gives a name in the new VM's folder that was not given before.
func (r *rewriter) inDir(name string) string {
	name = filepath.Base(name)
	if name == "." || name == "/" || name == ".." {
		name = "file"
	}
	for n := 1; ; n++ {
		try := name
		if n > 1 {
			ext := filepath.Ext(name)
			try = strings.TrimSuffix(name, ext) + "-" + strconv.Itoa(n) + ext
		}
		if !r.files[try] {
			r.files[try] = true
			return filepath.Join(r.o.Dir, try)
		}
	}
}

// identity gives the VM its name and its UUID.
func (r *rewriter) identity() {
	named, known := false, false
	for i := range r.opts {
		switch o := &r.opts[i]; {
		case o.gone:
		case o.name == "name":
			p, err := parseProps(o.value, "guest")
			if err != nil || p.json != nil {
				p = &props{}
			}
			p.set("guest", r.o.Name)
			o.value, named = p.String(), true
		case o.name == "uuid":
			o.value, known = r.o.UUID, true
		}
	}
	if !named {
		r.opts = append(r.opts, option{name: "name", value: "guest=" + escape(r.o.Name)})
	}
	if !known {
		r.opts = append(r.opts, option{name: "uuid", value: r.o.UUID})
	}
}

// option rewrites what is neither a disk nor the identity.
func (r *rewriter) option(o *option) error {
	switch o.name {
	case "incoming", "loadvm", "dump-vmstate", "writeconfig", "preconfig", "S":
		o.gone = true // the new VM starts from its disks, at once
	case "gdb", "s":
		o.gone = true
		r.warn("-%s was left out: its port is the original's", o.name)
	case "add-fd":
		o.gone = true
		r.warn("-add-fd was left out: it passes what only QEMU's starter had open")
	case "daemonize":
		o.gone = r.o.Foreground
	case "pidfile":
		o.value = r.inDir("qemu.pid")
	case "D":
		o.value = r.inDir("qemu-debug.log")
	case "kernel", "initrd", "dtb", "bios", "readconfig":
		r.need(o.value)
		if o.name == "readconfig" {
			r.warn("-readconfig %s: what that file says was not looked at, and it may name the original's disks", o.value)
		}
	case "set":
		if strings.HasPrefix(o.value, "drive.") || strings.HasPrefix(o.value, "device.") {
			o.gone = true
			r.warn("-set %s was left out: it may change a disk back", o.value)
		}
	case "qmp", "qmp-pretty", "monitor", "serial", "parallel", "debugcon":
		return r.compatChardev(o)
	case "netdev", "nic", "net":
		return r.network(o)
	case "vnc":
		r.vnc(o)
	default:
		return r.properties(o)
	}
	return nil
}

// properties rewrites options whose value is a list of properties.
func (r *rewriter) properties(o *option) error {
	implied := map[string]string{"chardev": "backend", "device": "driver", "object": "qom-type", "smbios": "type", "fw_cfg": "name",
		"fsdev": "fsdriver", "virtfs": "fsdriver", "acpitable": "sig", "spice": "port", "trace": "enable"}
	key, ok := implied[o.name]
	if !ok {
		return nil
	}
	p, err := parseProps(o.value, key)
	if err != nil {
		return err
	}
	switch o.name {
	case "chardev":
		r.chardev(p, "chardev "+p.get("id"))
	case "device":
		r.device(p)
	case "object":
		// libvirt's key for the secrets that it passes: gone with the original,
		// and of use to nobody where there are none.
		if p.get("qom-type") == "secret" && p.get("id") == "masterKey0" && !r.namesKey() {
			o.gone = true
			return nil
		}
		r.object(p)
	case "spice":
		r.spice(p)
	case "smbios":
		r.need(p.get("file"))
		if !p.has("uuid") {
			return nil
		}
		p.set("uuid", r.o.UUID)
	case "trace":
		if !p.has("file") {
			return nil
		}
		p.set("file", r.inDir("trace.log"))
	case "fsdev", "virtfs":
		r.warn("the folder %q is shared with the original", p.get("path"))
		return nil
	default:
		r.need(p.get("file"))
		return nil
	}
	o.value = p.String()
	return nil
}

func (r *rewriter) object(p *props) {
	switch kind := p.get("qom-type"); kind {
	case "filter-dump":
		p.set("file", r.inDir(p.get("file")))
	case "secret", "secret_keyring":
		r.need(p.get("file"))
	case "memory-backend-file":
		if p.on("share") {
			r.warn("memory %q lies in %q and is shared: give it a file of its own before both VMs run", p.get("id"), p.get("mem-path"))
		}
	case "input-linux", "can-host-socketcan":
		r.warn("%s %q takes a device of the host, which the original may have", kind, p.get("id"))
	}
}

// namesKey says whether another option uses libvirt's key.
func (r *rewriter) namesKey() bool {
	for _, o := range r.opts {
		if !o.gone && slices.Contains(r.look(o.value, "").texts(), "masterKey0") && r.look(o.value, "").get("id") != "masterKey0" {
			return true
		}
	}
	return false
}

// device rewrites network cards and the like.
func (r *rewriter) device(p *props) {
	driver := p.get("driver")
	switch {
	case isCard(p):
		if !r.asOriginal() {
			p.set("mac", r.mac())
		}
	case driver == "vmgenid":
		p.set("guid", "auto") // a new one tells the guest that it was restored
	case strings.HasPrefix(driver, "vfio-"), driver == "usb-host":
		r.warn("device %s takes hardware of the host: the original must be off, or take it out", driver)
	case strings.HasPrefix(driver, "vhost-user-"):
		r.warn("device %s is served by another program, which the original uses", driver)
	}
}
