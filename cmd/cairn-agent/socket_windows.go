package main

import "syscall"

// private: the folder decides who may connect.
func private(_, _ string, _ syscall.RawConn) error { return nil }
