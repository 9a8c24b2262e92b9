// Package qmptest is a fake QEMU for tests: a server on a unix socket that
// speaks QMP as its handler says, well or badly, and a proxy in front of a
// real QEMU that refuses or swallows chosen commands.
//
// It serves one client at a time, as QEMU does: a second one is accepted by
// the kernel and gets no greeting until the first has left.
package qmptest
