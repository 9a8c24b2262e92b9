package machine

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/beevik/etree"
)

// maxDomain bounds a domain's XML in bytes.
const maxDomain = 4 << 20

// RewriteDomain gives libvirt's XML of the new VM. Result.Args stays empty.
func RewriteDomain(xml string, o Options) (string, *Result, error) {
	if len(xml) > maxDomain {
		return "", nil, fmt.Errorf("the domain's XML has %d bytes, more than %d", len(xml), maxDomain)
	}
	doc := etree.NewDocument()
	if err := doc.ReadFromString(xml); err != nil {
		return "", nil, fmt.Errorf("the domain's XML: %w", err)
	}
	root := doc.SelectElement("domain")
	if root == nil {
		return "", nil, fmt.Errorf("the domain's XML has no <domain>")
	}
	r := &rewriter{o: o, files: map[string]bool{}}
	r.reserve()
	root.RemoveAttr("id")
	setText(root, "name", o.Name)
	setText(root, "uuid", o.UUID)
	if g := root.SelectElement("genid"); g != nil {
		root.RemoveChild(g) // libvirt makes a new one
		root.CreateElement("genid")
	}
	for _, e := range root.FindElements("./sysinfo/system/entry[@name='uuid']") {
		e.SetText(o.UUID)
	}
	for _, label := range root.SelectElements("seclabel") {
		for _, child := range label.ChildElements() {
			label.RemoveChild(child) // libvirt's own, of the running original
		}
	}
	r.domainNVRAM(root)
	devices := root.SelectElement("devices")
	if devices == nil {
		return "", nil, fmt.Errorf("the domain's XML has no <devices>")
	}
	if err := r.domainDisks(devices); err != nil {
		return "", nil, err
	}
	r.domainDevices(devices)
	text, err := doc.WriteToString()
	return text, &r.res, err
}

func setText(parent *etree.Element, name, text string) {
	e := parent.SelectElement(name)
	if e == nil {
		e = parent.CreateElement(name)
	}
	e.SetText(text)
}

func (r *rewriter) domainNVRAM(root *etree.Element) {
	e := root.FindElement("./os/nvram")
	if e == nil {
		return
	}
	if r.o.NVRAM == "" {
		r.warn("the point holds no firmware variables: libvirt makes new ones from its template")
		e.SetText(filepath.Join(r.o.Dir, "nvram.fd"))
		return
	}
	for _, child := range e.ChildElements() {
		e.RemoveChild(child)
	}
	e.RemoveAttr("type")
	e.SetText(r.o.NVRAM)
}

// domainDisks replaces the point's disks, and takes out the others that can be
// written to.
func (r *rewriter) domainDisks(devices *etree.Element) error {
	placed := map[string]bool{}
	for _, e := range devices.SelectElements("disk") {
		d, ok := r.domainDisk(e)
		kind := e.SelectAttrValue("device", "disk")
		switch {
		case ok && placed[d.Name]:
			return fmt.Errorf("the domain's XML has the disk %s twice", d.Name)
		case ok:
			placed[d.Name] = true
			replaceDomainDisk(e, d)
		case kind == "cdrom" || e.SelectElement("readonly") != nil:
			if s := e.SelectElement("source"); s != nil {
				r.need(s.SelectAttrValue("file", ""))
			}
		default:
			devices.RemoveChild(e)
			r.res.LeftOut = append(r.res.LeftOut, attr(e, "target", "dev"))
		}
	}
	for _, d := range r.o.Disks {
		if !placed[d.Name] {
			return fmt.Errorf("the domain's XML has no place for the disk %s (device %q, file %q): restore it with --disk", d.Name, d.Device, d.File)
		}
	}
	return nil
}

func attr(e *etree.Element, child, name string) string {
	if c := e.SelectElement(child); c != nil {
		return c.SelectAttrValue(name, "")
	}
	return ""
}

// domainDisk finds the point's disk that an element is.
func (r *rewriter) domainDisk(e *etree.Element) (Disk, bool) {
	alias, target := attr(e, "alias", "name"), attr(e, "target", "dev")
	source := first(attr(e, "source", "file"), attr(e, "source", "dev"))
	for _, d := range r.o.Disks {
		if alias != "" && (alias == d.Device || alias == d.Name) || target != "" && target == d.Name || source != "" && source == d.File {
			return d, true
		}
	}
	return Disk{}, false
}

func replaceDomainDisk(e *etree.Element, d Disk) {
	for _, name := range []string{"source", "backingStore", "mirror", "alias", "transient"} {
		for _, c := range e.SelectElements(name) {
			e.RemoveChild(c)
		}
	}
	for _, name := range []string{"type", "snapshot", "index"} {
		e.RemoveAttr(name)
	}
	e.CreateAttr("type", "file")
	driver := e.SelectElement("driver")
	if driver == nil {
		driver = e.CreateElement("driver")
		driver.CreateAttr("name", "qemu")
	}
	driver.RemoveAttr("type")
	driver.CreateAttr("type", d.Format)
	e.CreateElement("source").CreateAttr("file", d.Path)
}

// domainDevices gives cards new addresses, and moves what lies on the host.
func (r *rewriter) domainDevices(devices *etree.Element) {
	for _, e := range devices.SelectElements("interface") {
		mac := e.SelectElement("mac")
		if mac == nil {
			mac = e.CreateElement("mac")
		}
		if !r.asOriginal() {
			mac.RemoveAttr("address")
			mac.CreateAttr("address", r.mac())
		}
		if t := e.SelectElement("target"); t != nil {
			e.RemoveChild(t) // the original's interface: libvirt names a new one
		}
	}
	for _, e := range devices.SelectElements("graphics") {
		for _, name := range []string{"port", "tlsPort", "websocket", "socket"} {
			e.RemoveAttr(name)
		}
		e.RemoveAttr("autoport")
		e.CreateAttr("autoport", "yes")
		for _, l := range e.SelectElements("listen") {
			l.RemoveAttr("socket")
		}
	}
	for _, kind := range []string{"channel", "serial", "console", "parallel"} {
		for _, e := range devices.SelectElements(kind) {
			r.domainChardev(e)
		}
	}
	for _, e := range devices.SelectElements("hostdev") {
		r.warn("a device of the host is passed through (%s): the original must be off, or take it out", e.SelectAttrValue("type", "?"))
	}
	for _, e := range devices.SelectElements("filesystem") {
		r.warn("the folder %q is shared with the original", attr(e, "source", "dir"))
	}
}

func (r *rewriter) domainChardev(e *etree.Element) {
	if log := e.SelectElement("log"); log != nil {
		path := r.inDir(log.SelectAttrValue("file", "log"))
		log.RemoveAttr("file")
		log.CreateAttr("file", path)
	}
	s := e.SelectElement("source")
	kind := e.SelectAttrValue("type", "")
	if s == nil || kind != "unix" && kind != "file" && kind != "pty" {
		return
	}
	path := s.SelectAttrValue("path", "")
	switch {
	case kind == "pty" || strings.HasPrefix(path, "/var/lib/libvirt/") || strings.HasPrefix(path, "/run/libvirt/"):
		e.RemoveChild(s) // libvirt's own choice
	case path != "":
		s.RemoveAttr("path")
		s.CreateAttr("path", r.inDir(path))
	}
}
