package libvirt

import (
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"
)

// maxXML bounds a document of libvirt's, bytes.
const maxXML = 16 << 20

// maxChain bounds the images below a disk.
const maxChain = 256

// domainXML is what a domain's XML says that a backup needs.
type domainXML struct {
	XMLName xml.Name `xml:"domain"`
	Type    string   `xml:"type,attr"` // "kvm", "qemu"
	Name    string   `xml:"name"`
	UUID    string   `xml:"uuid"`
	OS      struct {
		Type struct {
			Machine string `xml:"machine,attr"`
		} `xml:"type"`
		NVRAM struct {
			Path   string `xml:",chardata"`
			Source struct {
				File string `xml:"file,attr"`
			} `xml:"source"`
		} `xml:"nvram"`
	} `xml:"os"`
	Devices struct {
		Emulator    string          `xml:"emulator"`
		Disks       []diskXML       `xml:"disk"`
		Controllers []controllerXML `xml:"controller"`
		Channels    []struct {
			Source struct {
				Path string `xml:"path,attr"`
			} `xml:"source"`
			Target struct {
				Type  string `xml:"type,attr"`
				Name  string `xml:"name,attr"`
				State string `xml:"state,attr"`
			} `xml:"target"`
			Alias aliasXML `xml:"alias"`
		} `xml:"channel"`
	} `xml:"devices"`
	Labels []struct {
		Model string `xml:"model,attr"`
		Label string `xml:"label"`
	} `xml:"seclabel"`
}

type aliasXML struct {
	Name string `xml:"name,attr"`
}

type controllerXML struct {
	Type   string    `xml:"type,attr"`
	Index  string    `xml:"index,attr"`
	Driver driverXML `xml:"driver"`
}

type driverXML struct {
	Type     string `xml:"type,attr"`
	IOThread string `xml:"iothread,attr"`
}

type diskXML struct {
	Type   string    `xml:"type,attr"`   // "file", "block", "network", "volume", …
	Device string    `xml:"device,attr"` // "disk", "cdrom", "floppy", "lun"
	Driver driverXML `xml:"driver"`
	Source sourceXML `xml:"source"`
	Target struct {
		Dev string `xml:"dev,attr"`
		Bus string `xml:"bus,attr"`
	} `xml:"target"`
	Backing   *backingXML `xml:"backingStore"`
	Mirror    *struct{}   `xml:"mirror"`
	ReadOnly  *struct{}   `xml:"readonly"`
	Transient *struct{}   `xml:"transient"`
	Serial    string      `xml:"serial"`
	Alias     aliasXML    `xml:"alias"`
	Address   struct {
		Type       string `xml:"type,attr"`
		Controller string `xml:"controller,attr"`
	} `xml:"address"`
}

type sourceXML struct {
	File     string `xml:"file,attr"`
	Dev      string `xml:"dev,attr"`
	Protocol string `xml:"protocol,attr"`
	Name     string `xml:"name,attr"`
	Pool     string `xml:"pool,attr"`
	Volume   string `xml:"volume,attr"`
}

type backingXML struct {
	Format struct {
		Type string `xml:"type,attr"`
	} `xml:"format"`
	Source sourceXML   `xml:"source"`
	Next   *backingXML `xml:"backingStore"`
}

// String names an image, "" if there is none.
func (s sourceXML) String() string {
	switch {
	case s.File != "":
		return s.File
	case s.Dev != "":
		return s.Dev
	case s.Protocol != "":
		return s.Protocol + ":" + s.Name
	case s.Volume != "":
		return s.Pool + "/" + s.Volume
	}
	return ""
}

// chain lists the images of a disk, top first.
func (d *diskXML) chain() []string {
	if d.Source.String() == "" {
		return nil
	}
	names := []string{d.Source.String()}
	for b := d.Backing; b != nil && b.Source.String() != "" && len(names) < maxChain; b = b.Next {
		names = append(names, b.Source.String())
	}
	return names
}

func parseDomain(text string) (*domainXML, error) {
	d := new(domainXML)
	if err := parse(text, d); err != nil {
		return nil, fmt.Errorf("libvirt: the domain's XML: %w", err)
	}
	if d.Name == "" || d.UUID == "" {
		return nil, fmt.Errorf("libvirt: the domain's XML names no domain")
	}
	return d, nil
}

func parse(text string, into any) error {
	if len(text) > maxXML {
		return fmt.Errorf("%d bytes are more than the %d that are read", len(text), maxXML)
	}
	return xml.Unmarshal([]byte(text), into)
}

// nvram gives the path of the firmware's variables, "" if there are none.
func (d *domainXML) nvram() string {
	if d.OS.NVRAM.Source.File != "" {
		return d.OS.NVRAM.Source.File
	}
	return strings.TrimSpace(d.OS.NVRAM.Path)
}

// iothread names the thread that handles a disk, "" for the main loop.
func (d *domainXML) iothread(disk *diskXML) string {
	if disk.Driver.IOThread != "" {
		return "iothread " + disk.Driver.IOThread
	}
	if disk.Target.Bus != "scsi" {
		return ""
	}
	for _, c := range d.Devices.Controllers {
		if c.Type == "scsi" && c.Index == disk.Address.Controller && c.Driver.IOThread != "" {
			return "iothread " + c.Driver.IOThread
		}
	}
	return ""
}

// owner gives the user and group that QEMU runs as, from the label that
// libvirt's DAC driver gave it: "+64055:+64055".
func (d *domainXML) owner() (uid, gid int, ok bool) {
	for _, l := range d.Labels {
		if l.Model != "dac" {
			continue
		}
		u, g, found := strings.Cut(strings.TrimSpace(l.Label), ":")
		uid, uerr := strconv.Atoi(strings.TrimPrefix(u, "+"))
		gid, gerr := strconv.Atoi(strings.TrimPrefix(g, "+"))
		if found && uerr == nil && gerr == nil && uid >= 0 && gid >= 0 {
			return uid, gid, true
		}
	}
	return 0, 0, false
}

// checkpointXML is what a checkpoint's XML says.
type checkpointXML struct {
	XMLName xml.Name `xml:"domaincheckpoint"`
	Name    string   `xml:"name"`
	Created int64    `xml:"creationTime"`
	Disks   []struct {
		Name       string  `xml:"name,attr"`
		Checkpoint string  `xml:"checkpoint,attr"` // "bitmap" or "no"
		Bitmap     string  `xml:"bitmap,attr"`
		Size       *uint64 `xml:"size,attr"` // dirty bytes; nil: the bitmap is missing or broken
	} `xml:"disks>disk"`
}

func parseCheckpoint(text string) (*checkpointXML, error) {
	c := new(checkpointXML)
	if err := parse(text, c); err != nil {
		return nil, fmt.Errorf("libvirt: a checkpoint's XML: %w", err)
	}
	return c, nil
}

// backupXML is a running backup, and the request for one.
type backupXML struct {
	XMLName xml.Name        `xml:"domainbackup"`
	Mode    string          `xml:"mode,attr"`
	Server  *serverXML      `xml:"server"`
	Disks   []backupDiskXML `xml:"disks>disk"`
}

type serverXML struct {
	Transport string `xml:"transport,attr"`
	Socket    string `xml:"socket,attr"`
}

type backupDiskXML struct {
	Name         string         `xml:"name,attr"`
	Backup       string         `xml:"backup,attr"`
	Type         string         `xml:"type,attr,omitempty"`
	BackupMode   string         `xml:"backupmode,attr,omitempty"`
	Incremental  string         `xml:"incremental,attr,omitempty"`
	ExportName   string         `xml:"exportname,attr,omitempty"`
	ExportBitmap string         `xml:"exportbitmap,attr,omitempty"`
	Driver       *backupTypeXML `xml:"driver"`
	Scratch      *backupFileXML `xml:"scratch"`
	Target       *backupFileXML `xml:"target"`
}

type backupTypeXML struct {
	Type string `xml:"type,attr"`
}

type backupFileXML struct {
	File string `xml:"file,attr"`
}

// newCheckpoint is the request for a checkpoint, and one to redefine.
type newCheckpoint struct {
	XMLName xml.Name            `xml:"domaincheckpoint"`
	Name    string              `xml:"name"`
	Created int64               `xml:"creationTime,omitempty"`
	Domain  string              `xml:",innerxml"` // the <domain> element: only to redefine. Behind Disks it would land in that
	Disks   []newCheckpointDisk `xml:"disks>disk"`
}

type newCheckpointDisk struct {
	Name       string `xml:"name,attr"`
	Checkpoint string `xml:"checkpoint,attr"`
	Bitmap     string `xml:"bitmap,attr,omitempty"`
}

func parseBackup(text string) (*backupXML, error) {
	b := new(backupXML)
	if err := parse(text, b); err != nil {
		return nil, fmt.Errorf("libvirt: a backup's XML: %w", err)
	}
	return b, nil
}

// files lists the sockets and files of a backup.
func (b *backupXML) files() []string {
	var names []string
	if b.Server != nil && b.Server.Socket != "" {
		names = append(names, b.Server.Socket)
	}
	for _, d := range b.Disks {
		for _, f := range []*backupFileXML{d.Scratch, d.Target} {
			if f != nil && f.File != "" {
				names = append(names, f.File)
			}
		}
	}
	return names
}

// write makes a document for libvirt.
func write(v any) (string, error) {
	b, err := xml.Marshal(v)
	return string(b), err
}
