// Package manual tries what the topics of `cairn help` tell people to do: the
// restore guide is walked through, line by line, on a machine that has nothing
// but a repository and a key; the recipes are tried on QEMU as Proxmox VE and
// others start it; and real shells complete command lines.
package manual
