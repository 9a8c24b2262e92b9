package local

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// created is a new file. A large write goes past the page cache (open(2),
// O_DIRECT): nobody reads a pack soon, it would only push out what the host's
// guests need, and copying it there costs as much as sealing it.
type created struct{ *os.File }

const (
	directLeast = 1 << 20 // bytes of a write; a smaller one is not worth the calls
	directAlign = 4096    // of memory, offset and length; no device asks for more
)

// Write writes all of p or gives an error.
func (f created) Write(p []byte) (n int, err error) {
	if len(p) >= directLeast && uintptr(unsafe.Pointer(&p[0]))%directAlign == 0 {
		if n, err = f.direct(p[:len(p)&^(directAlign-1)]); err != nil {
			return n, err
		}
	}
	if n == len(p) {
		return n, nil
	}
	k, err := f.File.Write(p[n:])
	return n + k, err
}

// direct writes as much of p as the filesystem takes in this way, perhaps
// nothing: the rest is for an ordinary write.
func (f created) direct(p []byte) (int, error) {
	if err := f.setDirect(true); err != nil {
		return 0, nil // the filesystem has no such thing
	}
	n, err := f.File.Write(p)
	if serr := f.setDirect(false); serr != nil {
		return n, serr
	}
	// Of a filesystem that refuses only now, or has written a piece of odd
	// length: what is wrong, if anything, an ordinary write will say.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		err = nil
	}
	return n, err
}

func (f created) setDirect(on bool) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = conn.Control(func(fd uintptr) {
		var flags int
		if flags, set = unix.FcntlInt(fd, unix.F_GETFL, 0); set != nil {
			return
		}
		if flags &^= unix.O_DIRECT; on {
			flags |= unix.O_DIRECT
		}
		_, set = unix.FcntlInt(fd, unix.F_SETFL, flags)
	})
	return errors.Join(err, set)
}
