package agent

import "unsafe"

func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }

func pointer(words []uint64) unsafe.Pointer { return unsafe.Pointer(&words[0]) }
