package machine

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// formats are drivers that have their image in another node.
const formats = " raw qcow2 qcow qed vdi vhdx vmdk vpc vhd parallels bochs cloop dmg luks "

// filters are drivers that show another node as it is.
const filters = " throttle copy-on-read copy-before-write preallocate compress blkdebug blkverify blklogwrites blkreplay quorum "

// generic are properties of every node, which the new one takes over.
const generic = " node-name discard detect-zeroes read-only auto-read-only cache cache.direct cache.no-flush "

// driveKeys are those of -drive that do not say what image it is.
const driveKeys = " if id index bus unit media cache cache.direct cache.no-flush aio discard detect-zeroes werror rerror readonly read-only " +
	"auto-read-only copy-on-read serial addr node-name snapshot cyls heads secs trans group "

// indexNodes finds the -blockdev options by their nodes' names.
func (r *rewriter) indexNodes() error {
	for i, o := range r.opts {
		if o.name != "blockdev" {
			continue
		}
		p, err := parseProps(o.value, "driver")
		if err != nil {
			return err
		}
		if name := p.get("node-name"); name != "" {
			r.nodes[name] = i
		}
	}
	return nil
}

// look is parseProps for who changes nothing: each value is parsed once. What
// cannot be parsed has no properties.
func (r *rewriter) look(value, implied string) *props {
	p := r.read[implied+"="+value]
	if p == nil {
		var err error
		if p, err = parseProps(value, implied); err != nil {
			p = &props{}
		}
		r.read[implied+"="+value] = p
	}
	return p
}

// lookNode gives a node's properties, not to be changed.
func (r *rewriter) lookNode(name string) (*props, bool) {
	i, ok := r.nodes[name]
	if !ok || r.opts[i].gone {
		return nil, false
	}
	return r.look(r.opts[i].value, "driver"), true
}

// node gives a node's properties.
func (r *rewriter) node(name string) (*props, bool) {
	i, ok := r.nodes[name]
	if !ok || r.opts[i].gone {
		return nil, false
	}
	p, err := parseProps(r.opts[i].value, "driver")
	return p, err == nil
}

// below gives a node and all that lie below it, by name.
func (r *rewriter) below(name string) []string {
	seen := map[string]bool{}
	var out []string
	var walk func(string)
	walk = func(n string) {
		p, ok := r.lookNode(n)
		if !ok || seen[n] {
			return
		}
		seen[n] = true
		out = append(out, n)
		for _, t := range p.texts() {
			walk(t)
		}
	}
	walk(name)
	return out
}

// devicesOf gives the options of devices that read a drive or a node, directly
// or through filters.
func (r *rewriter) devicesOf(drive string) []int {
	var out []int
	for i, o := range r.opts {
		if o.name != "device" || o.gone {
			continue
		}
		p := r.look(o.value, "driver")
		if p.get("drive") == "" {
			continue
		}
		if d := p.get("drive"); d == drive || r.throughFilters(d) == drive {
			out = append(out, i)
		}
	}
	return out
}

// throughFilters gives the first node that is no filter.
func (r *rewriter) throughFilters(name string) string {
	for range 64 {
		p, ok := r.lookNode(name)
		if !ok || !strings.Contains(filters, " "+p.get("driver")+" ") || p.get("file") == "" {
			break
		}
		name = p.get("file")
	}
	return name
}

// placeDisk puts a restored image where the point's disk was.
func (r *rewriter) placeDisk(d Disk) error {
	if node, ok := r.nodeOf(d); ok {
		return r.replaceNode(node, d)
	}
	for i := range r.opts {
		o := &r.opts[i]
		if o.gone || r.done[key(i)] {
			continue
		}
		switch o.name {
		case "drive":
			p, err := parseProps(o.value, "file")
			if err != nil {
				return err
			}
			if r.isDrive(p, i, d) {
				r.replaceDrive(i, p, d)
				return nil
			}
		case "hda", "hdb", "hdc", "hdd", "":
			if o.value == d.File && d.File != "" {
				n := map[string]string{"": "0", "hda": "0", "hdb": "1", "hdc": "2", "hdd": "3"}[o.name]
				o.name = "drive"
				r.replaceDrive(i, &props{list: []pair{{key: "index", value: n}, {key: "media", value: "disk"}}}, d)
				return nil
			}
		}
	}
	return fmt.Errorf("%w: it has no place for the disk %s (node %q, device %q, file %q): restore it with --disk, and start the VM by hand",
		ErrCommandLine, d.Name, d.Node, d.Device, d.File)
}

func key(i int) string { return fmt.Sprint("#", i) }

// nodeOf finds the -blockdev of a disk: by its name, or from its device. A
// node that a snapshot put on top of it is not on the command line.
func (r *rewriter) nodeOf(d Disk) (string, bool) {
	if _, ok := r.node(d.Node); ok && d.Node != "" {
		return d.Node, true
	}
	if d.Device == "" {
		return r.around(d.Node)
	}
	for _, o := range r.opts {
		if o.name != "device" || o.gone {
			continue
		}
		p := r.look(o.value, "driver")
		if p.get("id") != d.Device {
			continue
		}
		node := r.throughFilters(p.get("drive"))
		_, ok := r.node(node)
		return node, ok
	}
	return "", false
}

// around finds the -blockdev that has a node's definition inside its own, as
// Proxmox VE writes them: a throttle, and in it the disk.
func (r *rewriter) around(node string) (string, bool) {
	if node == "" {
		return "", false
	}
	for name := range r.nodes {
		p, ok := r.lookNode(name)
		for inner := "file."; ok && len(inner) <= 8*len("file."); inner += "file." {
			if p.get(inner+"node-name") == node {
				return name, true
			}
		}
	}
	return "", false
}

// isDrive says whether a -drive is a disk's.
func (r *rewriter) isDrive(p *props, at int, d Disk) bool {
	id, file := p.get("id"), first(p.get("file"), p.get("file.filename"))
	if n := p.get("node-name"); n != "" && n == d.Node {
		return true
	}
	if id != "" {
		for _, i := range r.devicesOf(id) {
			if dev := r.look(r.opts[i].value, "driver"); dev.get("id") != "" && dev.get("id") == d.Device {
				return true
			}
		}
		if d.Device == "" && id == d.Name {
			return true
		}
	}
	if file != "" && file == d.File {
		return true
	}
	return id == "" && d.Device == "" && p.get("if") == "virtio" && d.Name == fmt.Sprint("virtio", r.virtioIndex(at))
}

// virtioIndex counts the -drive if=virtio before one: QEMU names them so.
func (r *rewriter) virtioIndex(at int) int {
	n := 0
	for _, o := range r.opts[:at] {
		if o.name == "drive" && r.look(o.value, "file").get("if") == "virtio" {
			n++
		}
	}
	return n
}

// replaceDrive writes a -drive for the restored image.
func (r *rewriter) replaceDrive(i int, p *props, d Disk) {
	p.keep(func(k string) bool {
		return strings.Contains(driveKeys, " "+k+" ") || strings.HasPrefix(k, "throttling") || strings.HasPrefix(k, "bps") || strings.HasPrefix(k, "iops")
	})
	if p.on("snapshot") {
		r.warn("disk %s has snapshot=on: what the guest writes is lost when QEMU ends, as in the original", d.Name)
	}
	p.set("file", d.Path)
	p.set("format", d.Format)
	if r.o.StopOnError {
		p.set("werror", "stop")
		p.set("rerror", "stop")
	}
	r.opts[i].value = p.String()
	r.done[key(i)] = true
}

// replaceNode writes the nodes of a disk for the restored image, and removes
// those of the old one that nobody else names.
func (r *rewriter) replaceNode(name string, d Disk) error {
	if r.done[name] {
		return fmt.Errorf("%w: two disks of the point are the node %q", ErrCommandLine, name)
	}
	old := r.below(name)
	p, _ := r.node(name)
	file := p.get("file")
	inner := r.done[file] // shared with another disk: it cannot be changed twice
	if file == name || !strings.Contains(formats, " "+p.get("driver")+" ") {
		file = ""
	}
	fileNode, hasNode := r.node(file)
	if hasNode && !inner {
		r.setNode(file, fileProps(fileNode, d.Path))
		r.done[file] = true
		r.setNode(name, formatProps(p, d, file))
	} else {
		r.setNode(name, formatProps(p, d, ""))
	}
	r.done[name] = true
	for _, n := range old {
		r.old[n] = true
	}
	if r.o.StopOnError {
		r.stopOnError(name)
	}
	return nil
}

func (r *rewriter) setNode(name string, p *props) { r.opts[r.nodes[name]].value = p.String() }

func keepGeneric(p *props, more string) {
	p.keep(func(k string) bool { return strings.Contains(generic+more, " "+k+" ") })
}

// fileProps makes a node that has the image's bytes.
func fileProps(p *props, path string) *props {
	keepGeneric(p, " aio ")
	p.set("driver", "file")
	p.set("filename", path)
	return p
}

// formatProps makes the node of the disk over the node called file, or over a
// file of its own.
func formatProps(p *props, d Disk, file string) *props {
	keepGeneric(p, "")
	p.set("driver", d.Format)
	switch {
	case file != "":
		p.set("file", file)
	case p.json != nil:
		p.json["file"] = map[string]any{"driver": "file", "filename": d.Path}
	default:
		p.set("file.driver", "file")
		p.set("file.filename", d.Path)
	}
	return p
}

// stopOnError makes the devices of a node stop the VM when the disk fails,
// where they can.
func (r *rewriter) stopOnError(node string) {
	for _, i := range r.devicesOf(node) {
		p, err := parseProps(r.opts[i].value, "driver")
		if err != nil {
			continue
		}
		driver := p.get("driver")
		if !strings.HasPrefix(driver, "virtio-blk") && driver != "scsi-hd" && driver != "ide-hd" && driver != "usb-storage" {
			r.warn("device %s cannot stop the VM when its disk fails: its guest would see the error", driver)
			continue
		}
		p.set("werror", "stop")
		p.set("rerror", "stop")
		r.opts[i].value = p.String()
	}
}

// otherDisks deals with the images that were not restored: what is read only
// stays, the firmware's variables get their own file, and all others are taken
// out.
func (r *rewriter) otherDisks() error {
	for i := range r.opts {
		o := &r.opts[i]
		if o.gone || r.done[key(i)] {
			continue
		}
		switch o.name {
		case "drive":
			if err := r.otherDrive(i); err != nil {
				return err
			}
		case "hda", "hdb", "hdc", "hdd", "fda", "fdb", "sd", "mtdblock", "":
			r.leaveOut(i, o.value)
		case "cdrom":
			r.need(o.value)
		case "pflash":
			r.flash(o)
		case "machine", "M":
			if err := r.machine(o); err != nil {
				return err
			}
		}
	}
	return r.otherNodes()
}

func (r *rewriter) leaveOut(i int, name string) {
	r.opts[i].gone = true
	r.res.LeftOut = append(r.res.LeftOut, name)
}

func (r *rewriter) otherDrive(i int) error {
	p, err := parseProps(r.opts[i].value, "file")
	if err != nil {
		return err
	}
	file := first(p.get("file"), p.get("file.filename"))
	readOnly := p.on("readonly") || p.on("read-only") || p.get("media") == "cdrom"
	switch {
	case p.get("if") == "pflash" && !readOnly:
		p.keep(func(k string) bool { return !strings.HasPrefix(k, "file") && k != "driver" })
		p.set("file", r.nvram(file))
		r.opts[i].value = p.String()
	case readOnly:
		r.need(file)
	case file == "" && !p.has("driver") && !p.has("file.driver"): // an empty drive
	default:
		for _, dev := range r.devicesOf(p.get("id")) {
			if p.get("id") != "" {
				r.opts[dev].gone = true
			}
		}
		r.leaveOut(i, first(p.get("id"), file))
	}
	return nil
}

// flash is the old way to give firmware: first the code, then the variables.
func (r *rewriter) flash(o *option) {
	n := 0
	for _, other := range r.opts {
		if other.name == "pflash" && other.value != o.value {
			n++
		}
		if other.value == o.value && other.name == "pflash" {
			break
		}
	}
	if n > 0 {
		o.value = r.nvram(o.value)
		return
	}
	r.need(o.value)
	o.name, o.value = "drive", "if=pflash,unit=0,format=raw,readonly=on,file="+escape(o.value)
}

// nvram gives the new VM's file of firmware variables.
func (r *rewriter) nvram(old string) string {
	if r.o.NVRAM != "" {
		return r.o.NVRAM
	}
	r.res.CopyNVRAM, r.res.NVRAMCopy = old, r.inDir("nvram.fd")
	r.warn("the point holds no firmware variables: those of the original, %q, are copied when the VM starts first, if they are there", old)
	return r.res.NVRAMCopy
}

// machine finds firmware that lies in nodes: pflash0 the code, pflash1 the
// variables.
func (r *rewriter) machine(o *option) error {
	p, err := parseProps(o.value, "type")
	if err != nil {
		return err
	}
	for _, flash := range []string{"pflash0", "pflash1"} {
		name := p.get(flash)
		if name == "" {
			continue
		}
		for _, n := range r.below(name) {
			if r.done[n] { // the variables are a disk of the point, as those of Proxmox VE are
				continue
			}
			r.done[n] = true
			q, _ := r.node(n)
			file := first(q.get("filename"), q.get("file.filename"))
			if file == "" {
				continue
			}
			if flash == "pflash0" {
				r.need(file)
				continue
			}
			if q.has("filename") {
				q = fileProps(q, r.nvram(file))
			} else {
				q = formatProps(q, Disk{Format: "raw", Path: r.nvram(file)}, "")
			}
			r.setNode(n, q)
		}
	}
	return nil
}

// otherNodes takes out the nodes that can be written to, with their devices,
// and those that only the old disks used.
func (r *rewriter) otherNodes() error {
	var names []string
	for n := range r.nodes {
		names = append(names, n)
	}
	sort.Strings(names) // the same result every time
	for _, n := range names {
		if _, ok := r.lookNode(n); !ok || r.done[n] || r.old[n] || r.usedByNode(n) {
			continue
		}
		devices := r.devicesOf(n)
		if r.readOnly(n, devices) {
			for _, b := range r.below(n) {
				p, _ := r.lookNode(b)
				r.need(first(p.get("filename"), p.get("file.filename")))
				r.done[b] = true
			}
			continue
		}
		if r.leadsToDone(n) { // a filter over a restored disk
			r.done[n] = true
			continue
		}
		for _, dev := range devices {
			r.opts[dev].gone = true
		}
		for _, b := range r.below(n) {
			r.old[b] = true
		}
		r.res.LeftOut = append(r.res.LeftOut, n)
	}
	for r.dropUnnamed(names) { // a node that goes may free another
	}
	return nil
}

// dropUnnamed takes out old nodes that no option names any more, and says
// whether there were any.
func (r *rewriter) dropUnnamed(names []string) bool {
	named := map[string]int{} // the option that names it; -1: several
	for i, o := range r.opts {
		if o.gone || o.without {
			continue
		}
		for _, t := range r.look(o.value, "").texts() {
			if j, ok := named[t]; ok && j != i {
				named[t] = -1
				continue
			}
			named[t] = i
		}
	}
	found := false
	for _, n := range names {
		at, ok := named[n]
		if ok && at != r.nodes[n] || !r.old[n] || r.done[n] || r.opts[r.nodes[n]].gone {
			continue
		}
		r.opts[r.nodes[n]].gone = true
		found = true
	}
	return found
}

func (r *rewriter) leadsToDone(n string) bool { return r.done[r.throughFilters(n)] }

// readOnly says whether a node that devices read cannot be written to.
func (r *rewriter) readOnly(n string, devices []int) bool {
	p, _ := r.lookNode(n)
	if p.on("read-only") {
		return true
	}
	for _, i := range devices {
		if !strings.HasSuffix(r.look(r.opts[i].value, "driver").get("driver"), "-cd") {
			return false
		}
	}
	return len(devices) > 0
}

// usedByNode says whether another node names this one.
func (r *rewriter) usedByNode(n string) bool {
	for other := range r.nodes {
		if p, ok := r.lookNode(other); ok && other != n && slices.Contains(p.texts(), n) {
			return true
		}
	}
	return false
}
