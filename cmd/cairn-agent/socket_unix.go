//go:build unix

package main

import "syscall"

// private makes a socket that only root can connect to.
func private(_, _ string, c syscall.RawConn) error {
	var failure error
	if err := c.Control(func(fd uintptr) { failure = syscall.Fchmod(int(fd), 0o600) }); err != nil {
		return err
	}
	return failure
}
