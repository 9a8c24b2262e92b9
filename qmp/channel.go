package qmp

import (
	"context"
	"errors"
	"fmt"
)

// socketChardev is QEMU's ChardevBackend of a unix socket that it listens on
// (qapi/char.json).
type socketChardev struct {
	Type string `json:"type"` // "socket"
	Data struct {
		Addr struct {
			Type string `json:"type"` // "unix"
			Data struct {
				Path string `json:"path"`
			} `json:"data"`
		} `json:"addr"`
		Server bool `json:"server"`
		Wait   bool `json:"wait"`
	} `json:"data"`
}

// AddChannel gives a running VM a virtio-serial port behind a unix socket that
// QEMU makes at path. It lasts until QEMU ends: the VM's own configuration has
// to be changed for the next start. The VM needs a virtio-serial controller, as
// every VM with a guest agent has.
func AddChannel(ctx context.Context, conn *Conn, port, path string) error {
	add := addSocketChardev{ID: "cairn-agent"}
	add.Backend.Type = "socket"
	add.Backend.Data.Addr.Type, add.Backend.Data.Addr.Data.Path, add.Backend.Data.Server = "unix", path, true
	if err := conn.run(ctx, add, nil); err != nil {
		return fmt.Errorf("add a channel %s at %s: %w", port, path, err)
	}
	if err := conn.run(ctx, addSerialPort{Driver: "virtserialport", ID: "cairn-agent-port", Chardev: add.ID, Port: port}, nil); err != nil {
		return errors.Join(fmt.Errorf("add a channel %s: %w", port, err), conn.run(context.WithoutCancel(ctx), chardevRemove{add.ID}, nil))
	}
	return nil
}
