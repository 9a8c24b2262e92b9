package libvirt

import (
	"context"
	"slices"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"

	"cairn/qmp"
)

// maxDomains bounds the domains of one host.
const maxDomains = 10_000

// Found is a domain as discovery shows it.
type Found struct {
	Name  string
	UUID  string
	State State
	Disks []qmp.Disk // sizes are not asked for
	Agent string     // "connected", "not connected", or "no channel"
}

// Discover lists the domains of a daemon, running or not, by name.
func Discover(ctx context.Context, uri string) ([]Found, error) {
	conn, err := Dial(ctx, uri)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var list []golibvirt.Domain
	err = conn.ask(ctx, "list domains", func(l *golibvirt.Libvirt) (err error) {
		list, _, err = l.ConnectListAllDomains(1, golibvirt.ConnectListDomainsActive|golibvirt.ConnectListDomainsInactive)
		return err
	})
	if err != nil {
		return nil, err
	}
	var found []Found
	for _, dom := range list[:min(len(list), maxDomains)] {
		d := &Domain{conn: conn, dom: dom}
		f, err := d.found(ctx)
		if code(err) == golibvirt.ErrNoDomain {
			continue // it went away meanwhile
		}
		if err != nil {
			return nil, err
		}
		found = append(found, f)
	}
	slices.SortFunc(found, func(a, b Found) int { return strings.Compare(a.Name, b.Name) })
	return found, nil
}

func (d *Domain) found(ctx context.Context) (Found, error) {
	state, err := d.State(ctx)
	if err != nil {
		return Found{}, err
	}
	x, err := d.describe(ctx)
	if err != nil {
		return Found{}, err
	}
	return Found{Name: x.Name, UUID: x.UUID, State: state, Disks: x.disks(), Agent: x.agent()}, nil
}

// agent says how the stock guest agent can be reached.
func (x *domainXML) agent() string {
	for _, c := range x.Devices.Channels {
		switch {
		case c.Target.Name != qmp.PortStockAgent:
		case c.Target.State == "connected":
			return "connected"
		default:
			return "not connected"
		}
	}
	return "no channel"
}

// ImageFiles gives the disks of a domain with their files, formats and
// serials, from its XML alone: what a backup of a domain that is off begins
// with. active says whether QEMU runs, so that the files are not free.
func (d *Domain) ImageFiles(ctx context.Context) (disks []qmp.Disk, active bool, err error) {
	f, err := d.found(ctx)
	return f.Disks, f.State.Active, err
}
