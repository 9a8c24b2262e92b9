// Package unit has the systemd unit that runs cairn-agent in a guest. It
// promises that the file is the one that a package installs, `cairn-agent unit`
// prints, and `cairn agent install` writes.
package unit
