package lab

import (
	"fmt"
	"io"
)

// cpioWriter writes the "newc" archives that the kernel unpacks as its first
// root. Format: Documentation/driver-api/early-userspace/buffer-format.rst.
type cpioWriter struct {
	w   io.Writer
	ino int
	off int64
	err error
}

// Kinds of an entry, as in the high bits of st_mode.
const (
	cpioDir     = 0o040000
	cpioRegular = 0o100000
	cpioSymlink = 0o120000
	cpioChar    = 0o020000
)

func (c *cpioWriter) dir(name string) { c.entry(name, cpioDir|0o755, nil, 0, 0) }

func (c *cpioWriter) file(name string, perm uint32, data []byte) {
	c.entry(name, cpioRegular|perm, data, 0, 0)
}

func (c *cpioWriter) symlink(name, target string) {
	c.entry(name, cpioSymlink|0o777, []byte(target), 0, 0)
}

func (c *cpioWriter) char(name string, perm uint32, major, minor int) {
	c.entry(name, cpioChar|perm, nil, major, minor)
}

// close writes the trailer and pads to a sector, so that another archive may
// follow in the same file. It returns the first error of the archive.
func (c *cpioWriter) close() error {
	c.entry("TRAILER!!!", 0, nil, 0, 0)
	c.pad(512)
	return c.err
}

func (c *cpioWriter) entry(name string, mode uint32, data []byte, major, minor int) {
	c.ino++
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0))
	c.write(append([]byte(name), 0))
	c.pad(4)
	c.write(data)
	c.pad(4)
}

func (c *cpioWriter) pad(align int64) {
	if rest := c.off % align; rest != 0 {
		c.write(make([]byte, align-rest))
	}
}

func (c *cpioWriter) write(p []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(p)
	c.off += int64(n)
	c.err = err
}
