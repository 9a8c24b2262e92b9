package filesystem

import (
	"fmt"
	"io"
)

// ReadFull fills p from byte off of an image of size bytes. What lies outside
// of it is damage (ErrCorrupt): some structure of the filesystem led there. An
// error of the image itself is passed on with its place.
func ReadFull(image io.ReaderAt, size int64, p []byte, off int64) error {
	if off < 0 || off > size-int64(len(p)) {
		return fmt.Errorf("%w: %d bytes at %d lie outside the image", ErrCorrupt, len(p), off)
	}
	n, err := image.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("image at %d: %w", off, err)
}
