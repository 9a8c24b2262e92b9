//go:build unix

package discover

import (
	iofs "io/fs"
	"syscall"
)

func owner(info iofs.FileInfo) uint32 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Uid
	}
	return 0
}
