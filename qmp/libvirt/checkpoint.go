package libvirt

import (
	"context"
	"errors"
	"fmt"
	"slices"

	golibvirt "github.com/digitalocean/go-libvirt"

	"cairn/qmp"
)

// maxCheckpoints bounds the checkpoints of ours that are looked at.
const maxCheckpoints = 1000

// checkpoint is a checkpoint of ours.
type checkpoint struct {
	ref  golibvirt.DomainCheckpoint
	span qmp.BitmapSpan
}

// checkpoints lists those of ours, of any repository.
func (d *Domain) checkpoints(ctx context.Context) ([]checkpoint, error) {
	var list []golibvirt.DomainCheckpoint
	err := d.conn.ask(ctx, "list checkpoints", func(l *golibvirt.Libvirt) (err error) {
		list, _, err = l.DomainListAllCheckpoints(d.dom, 1, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	var ours []checkpoint
	for _, c := range list {
		if span, ok := qmp.ParseBitmapName(c.Name); ok {
			ours = append(ours, checkpoint{c, span})
		}
	}
	if len(ours) > maxCheckpoints {
		return nil, fmt.Errorf("libvirt: the domain has %d checkpoints of cairn's: delete those of repositories that are gone (virsh checkpoint-list)", len(ours))
	}
	return ours, nil
}

// readBitmaps tells the disks of the checkpoints' bitmaps. Of a domain that is
// off nobody can tell whether they are whole.
func (d *Domain) readBitmaps(ctx context.Context, disks []qmp.Disk, active bool) error {
	list, err := d.checkpoints(ctx)
	if err != nil {
		return err
	}
	flags := golibvirt.DomainCheckpointXMLNoDomain
	if active {
		flags |= golibvirt.DomainCheckpointXMLSize
	}
	for _, c := range list {
		var text string
		err := d.conn.ask(ctx, "read checkpoint "+c.ref.Name, func(l *golibvirt.Libvirt) (err error) {
			text, err = l.DomainCheckpointGetXMLDesc(c.ref, uint32(flags))
			return err
		})
		if err != nil {
			return err
		}
		x, err := parseCheckpoint(text)
		if err != nil {
			return err
		}
		x.addTo(disks, active)
	}
	return nil
}

// addTo adds the checkpoint's bitmaps to the disks that have them. libvirt
// does not tell a missing bitmap from a broken one: both have no size, and
// neither can be trusted.
func (x *checkpointXML) addTo(disks []qmp.Disk, active bool) {
	for _, cd := range x.Disks {
		i := slices.IndexFunc(disks, func(d qmp.Disk) bool { return d.Top == cd.Name })
		if i < 0 || cd.Checkpoint != "bitmap" || cd.Bitmap != x.Name {
			continue
		}
		whole := cd.Size != nil || !active
		b := qmp.Bitmap{Name: x.Name, Granularity: qmp.Granularity, Recording: whole, Persistent: true, Inconsistent: !whole}
		if cd.Size != nil {
			b.Count = int64(min(*cd.Size, 1<<62))
		}
		disks[i].Bitmaps = append(disks[i].Bitmaps, b)
	}
}

// Advance deletes a repository's checkpoints from before the committed point,
// on all disks.
func (d *Domain) Advance(ctx context.Context, repo string, committed uint64) error {
	list, err := d.checkpoints(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range list {
		if c.span.Repo == repo && c.span.To < committed {
			errs = append(errs, d.deleteCheckpoint(ctx, c.ref))
		}
	}
	return errors.Join(errs...)
}

// deleteCheckpoint deletes a checkpoint of ours and its bitmaps.
func (d *Domain) deleteCheckpoint(ctx context.Context, c golibvirt.DomainCheckpoint) error {
	err := d.delete(ctx, c, 0)
	if code(err) != golibvirt.ErrInternalError {
		return err
	}
	// One of its bitmaps is missing: libvirt then deletes none.
	return d.purge(ctx, c.Name)
}

func (d *Domain) delete(ctx context.Context, c golibvirt.DomainCheckpoint, flags golibvirt.DomainCheckpointDeleteFlags) error {
	err := d.conn.do(ctx, "delete checkpoint "+c.Name, func(l *golibvirt.Libvirt) error { return l.DomainCheckpointDelete(c, flags) })
	if code(err) == golibvirt.ErrNoDomainCheckpoint {
		return nil
	}
	return err
}

// purge removes the bitmaps of a checkpoint, known to libvirt or not, disk by
// disk: the checkpoint is redefined to be of that disk alone, and deleted.
func (d *Domain) purge(ctx context.Context, name string) error {
	text, err := d.xml(ctx, golibvirt.DomainXMLSecure)
	if err != nil {
		return err
	}
	x, err := parseDomain(text)
	if err != nil {
		return err
	}
	for _, disk := range x.disks() {
		if disk.Skip != "" || !disk.Persistent {
			continue
		}
		c, err := d.redefine(ctx, name, disk.Top, x, text)
		if err != nil {
			return err
		}
		err = d.delete(ctx, c, 0)
		if code(err) == golibvirt.ErrInternalError { // this disk has no such bitmap
			err = d.delete(ctx, c, golibvirt.DomainCheckpointDeleteMetadataOnly)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// redefine makes libvirt believe in a checkpoint of one disk.
func (d *Domain) redefine(ctx context.Context, name, disk string, x *domainXML, domain string) (c golibvirt.DomainCheckpoint, err error) {
	doc := newCheckpoint{Name: name, Created: d.now().Unix(), Domain: domain}
	for _, other := range x.disks() {
		nc := newCheckpointDisk{Name: other.Top, Checkpoint: "no"}
		if other.Top == disk {
			nc.Checkpoint, nc.Bitmap = "bitmap", name
		}
		doc.Disks = append(doc.Disks, nc)
	}
	text, err := write(doc)
	if err != nil {
		return c, err
	}
	err = d.conn.do(ctx, "redefine checkpoint "+name, func(l *golibvirt.Libvirt) (err error) {
		c, err = l.DomainCheckpointCreateXML(d.dom, text, uint32(golibvirt.DomainCheckpointCreateRedefine))
		return err
	})
	return c, err
}
