package restorepoint

import "io"

// Image is a disk's bytes at a point. It may be read from many goroutines.
type Image interface {
	io.ReaderAt
	// Size in bytes.
	Size() int64
	// NextData gives the first range [start, end) at or behind off that is
	// not a hole; io.EOF when only a hole follows. Data that happens to be
	// zero may be given as data.
	NextData(off int64) (start, end int64, err error)
}

// MapRoot is a disk map's root as the manifest holds it.
type MapRoot struct {
	// TODO: becomes the real root with the disk map of this package.
	Placeholder string `json:"placeholder,omitempty"`
}
