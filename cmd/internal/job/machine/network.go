package machine

import "strings"

// cards are network cards whose driver's name does not say so.
const cards = " e1000 e1000e igb rtl8139 vmxnet3 pcnet tulip i82550 i82551 i82557a i82557b i82557c i82558a i82558b i82559a i82559b i82559c i82559er i82562 i82801 ne2k_pci ne2k_isa lan9118 spapr-vlan rocker "

// isCard says whether a device is a network card.
func isCard(p *props) bool {
	driver := p.get("driver")
	return p.has("netdev") || p.has("mac") || strings.HasPrefix(driver, "virtio-net") || strings.HasPrefix(driver, "e1000-") ||
		driver == "usb-net" || strings.Contains(cards, " "+driver+" ")
}

func (r *rewriter) mac() string {
	m := r.o.NewMAC()
	r.res.MACs = append(r.res.MACs, m)
	return m
}

// asOriginal says that the new VM takes the original's place, and so its
// addresses.
func (r *rewriter) asOriginal() bool { return r.o.NewMAC == nil }

// network rewrites -netdev, -nic and -net.
func (r *rewriter) network(o *option) error {
	p, err := parseProps(o.value, "type")
	if err != nil {
		return err
	}
	kind := p.get("type")
	switch {
	case kind == "none":
		return nil
	case o.name == "net" && kind == "nic":
		if !r.asOriginal() {
			p.set("macaddr", r.mac())
		}
	default:
		if o.name == "nic" && !r.asOriginal() {
			p.set("mac", r.mac())
		}
		r.backend(p, kind)
	}
	o.value = p.String()
	return nil
}

// backend rewrites the host's end of a network.
func (r *rewriter) backend(p *props, kind string) {
	p.del("vhostfd", "vhostfds") // QEMU opens the kernel's by itself
	if p.has("fd") || p.has("fds") {
		r.warn("network %q was handed to QEMU open (libvirt and others do that) and cannot be had again: the card is on a network of its own; give it a tap or a bridge", p.get("id"))
		p.keep(func(key string) bool { return strings.Contains(" type id model mac macaddr addr ", " "+key+" ") })
		p.set("type", "user")
		p.setOn("restrict", true)
		return
	}
	if p.has("ifname") && !r.asOriginal() {
		r.warn("network interface %q is the original's: the kernel will name a new one", p.get("ifname"))
		p.del("ifname")
	}
	if p.has("hostfwd") && !r.asOriginal() {
		r.warn("the forwarding of %q was left out: the port is the original's", p.get("hostfwd"))
		p.del("hostfwd")
	}
	if kind == "socket" || kind == "stream" || kind == "dgram" || kind == "vhost-user" || kind == "vde" || kind == "l2tpv3" {
		r.warn("network %q (%s) leads to where the original's does", p.get("id"), kind)
	}
}
