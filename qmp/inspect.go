package qmp

import (
	"context"
	"slices"
	"strings"
)

// Machine is what QEMU knows about a VM.
type Machine struct {
	Name     string // -name
	UUID     string // "" if none was given
	Version  string // QEMU's, for people
	Type     string // "pc-q35-7.2"
	Status   string // "running", "paused", "prelaunch", "io-error", …
	Running  bool
	Features Features
	Disks    []Disk // in the order of their devices' paths; those to be skipped too
	Channels []Channel
	Jobs     []string // running block jobs: a mirror, a stream, another program's backup
	Exports  []string // present exports, anybody's
}

// Channel is a host socket of a virtio-serial port. Port
// "org.qemu.guest_agent.0" is the stock guest agent's.
type Channel struct {
	Port    string // the name the guest sees
	Chardev string // the chardev's id
	Socket  string // path of the unix socket; "" if it is no unix socket. Relative paths are relative to QEMU's directory
	Open    bool   // a process in the guest has opened the port
	Busy    bool   // a client is connected to the host's end already
}

// Names of the channels that Cairn looks for.
const (
	PortStockAgent = "org.qemu.guest_agent.0"
	PortCairnAgent = "org.cairn.agent.0"
)

// Channel gives the channel with that port name.
func (m *Machine) Channel(port string) (Channel, bool) {
	i := slices.IndexFunc(m.Channels, func(c Channel) bool { return c.Port == port })
	if i < 0 {
		return Channel{}, false
	}
	return m.Channels[i], true
}

// Inspect asks QEMU about the VM. It changes nothing.
func Inspect(ctx context.Context, conn *Conn) (*Machine, error) {
	m := &Machine{Version: conn.Version()}
	var err error
	if m.Features, err = features(ctx, conn); err != nil {
		return nil, err
	}
	if err := m.readIdentity(ctx, conn); err != nil {
		return nil, err
	}
	if m.Features.BlockGraph {
		if m.Disks, err = readDisks(ctx, conn); err != nil {
			return nil, err
		}
	}
	for i := range m.Disks {
		m.Disks[i].Push = m.Disks[i].IOThread != "" && !m.Features.NBDClientSafe
	}
	if m.Channels, err = readChannels(ctx, conn); err != nil {
		return nil, err
	}
	return m, m.readUsers(ctx, conn)
}

func (m *Machine) readIdentity(ctx context.Context, conn *Conn) error {
	var name struct {
		Name string `json:"name"`
	}
	var uuid struct {
		UUID string `json:"UUID"`
	}
	var err error
	if err = conn.run(ctx, queryName{}, &name); err != nil {
		return err
	}
	if err = conn.run(ctx, queryUUID{}, &uuid); err != nil {
		return err
	}
	m.Name = name.Name
	if uuid.UUID != "00000000-0000-0000-0000-000000000000" {
		m.UUID = uuid.UUID
	}
	if m.Status, m.Running, err = status(ctx, conn); err != nil {
		return err
	}
	kind, err := qomString(ctx, conn, "/machine", "type")
	m.Type = strings.TrimSuffix(kind, "-machine")
	return err
}

func status(ctx context.Context, conn *Conn) (status string, running bool, err error) {
	var s struct {
		Status  string `json:"status"`
		Running bool   `json:"running"`
	}
	err = conn.run(ctx, queryStatus{}, &s)
	return s.Status, s.Running, err
}

// readUsers lists who else works on the VM's disks.
func (m *Machine) readUsers(ctx context.Context, conn *Conn) error {
	var jobs []struct {
		Device string `json:"device"`
	}
	if err := conn.run(ctx, queryBlockJobs{}, &jobs); err != nil {
		return err
	}
	for _, j := range jobs {
		m.Jobs = append(m.Jobs, j.Device)
	}
	if !m.Features.BlockExportAdd {
		return nil
	}
	list, err := exports(ctx, conn)
	for _, e := range list {
		m.Exports = append(m.Exports, e.ID)
	}
	return err
}

// exportInfo is an entry of query-block-exports.
type exportInfo struct {
	ID           string `json:"id"`
	Type         string `json:"type"`          // "nbd", "vhost-user-blk", "fuse", …
	ShuttingDown bool   `json:"shutting-down"` // was told to go, and a client still holds it
}

func exports(ctx context.Context, conn *Conn) ([]exportInfo, error) {
	var list []exportInfo
	err := conn.run(ctx, queryBlockExports{}, &list)
	return list, err
}

// readChannels finds the virtio-serial ports and the sockets behind them.
func readChannels(ctx context.Context, conn *Conn) ([]Channel, error) {
	var chardevs []struct {
		Label    string `json:"label"`
		Filename string `json:"filename"`
		Open     bool   `json:"frontend-open"`
	}
	if err := conn.run(ctx, queryChardev{}, &chardevs); err != nil {
		return nil, err
	}
	var channels []Channel
	for _, parent := range []string{"/machine/peripheral", "/machine/peripheral-anon"} {
		children, err := qomChildren(ctx, conn, parent)
		if err != nil {
			return nil, err
		}
		for name, kind := range children {
			if kind != "virtserialport" {
				continue
			}
			var c Channel
			if c.Port, err = qomString(ctx, conn, parent+"/"+name, "name"); err != nil {
				return nil, err
			}
			if c.Chardev, err = qomString(ctx, conn, parent+"/"+name, "chardev"); err != nil {
				return nil, err
			}
			for _, d := range chardevs {
				if d.Label == c.Chardev {
					c.Socket, c.Busy = socketPath(d.Filename)
					c.Open = d.Open
				}
			}
			channels = append(channels, c)
		}
	}
	slices.SortFunc(channels, func(a, b Channel) int { return strings.Compare(a.Port, b.Port) })
	return channels, nil
}

// socketPath takes a unix socket's path out of query-chardev's file name:
// "disconnected:unix:/run/qga,server=on", "unix:/run/qga,server=on".
func socketPath(filename string) (path string, connected bool) {
	rest, disconnected := strings.CutPrefix(filename, "disconnected:")
	rest, unix := strings.CutPrefix(rest, "unix:")
	if !unix {
		return "", false
	}
	// Options follow the last ",server": a path may have commas of its own.
	if i := strings.LastIndex(rest, ",server"); i >= 0 {
		rest = rest[:i]
	}
	return rest, !disconnected
}
