package fs

import (
	"container/list"
	"io"
	"sync"

	"cairn/guest/filesystem"
)

// maxFiles is how many large files stay open in the cache below.
const maxFiles = 256

// fileCache keeps the files that were read last, so that reading a large one
// piece by piece does not parse its extents each time. The kernel does not
// tell us when it opens or closes a file.
type fileCache struct {
	mu    sync.Mutex
	byKey map[guestFile]*list.Element
	order list.List // of *cachedFile, last used in front
}

type cachedFile struct {
	key  guestFile
	file filesystem.File
}

func (c *fileCache) get(k guestFile) filesystem.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byKey[k]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*cachedFile).file
}

func (c *fileCache) put(k guestFile, f filesystem.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey == nil {
		c.byKey = map[guestFile]*list.Element{}
	}
	if c.byKey[k] != nil {
		return
	}
	c.byKey[k] = c.order.PushFront(&cachedFile{k, f})
	if c.order.Len() > maxFiles {
		last := c.order.Back()
		c.order.Remove(last)
		delete(c.byKey, last.Value.(*cachedFile).key)
	}
}

// bytesFile is a file in memory.
type bytesFile []byte

func (b bytesFile) Size() int64 { return int64(len(b)) }

func (b bytesFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (b bytesFile) NextData(off int64) (start, end int64, err error) {
	if off >= int64(len(b)) {
		return 0, 0, io.EOF
	}
	return off, int64(len(b)), nil
}
