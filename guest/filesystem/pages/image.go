package pages

import (
	"fmt"
	"io"

	"cairn/guest/filesystem"
)

// Image is an image with the pages that were read last.
type Image struct {
	r     io.ReaderAt
	size  int64 // bytes
	cache *cache
}

// New gives the image in the first size bytes of r.
func New(r io.ReaderAt, size int64) *Image { return &Image{r, size, newCache()} }

// Page gives the bytes from off to the end of their page, which the image's end
// may cut. They must not be changed. What lies outside of the image is damage.
func (i *Image) Page(off int64) ([]byte, error) {
	if off < 0 || off >= i.size {
		return nil, fmt.Errorf("%w: byte %d lies outside the image", filesystem.ErrCorrupt, off)
	}
	number := off / Size
	data := i.cache.get(number)
	if data == nil {
		data = make([]byte, min(Size, i.size-number*Size))
		if err := filesystem.ReadFull(i.r, i.size, data, number*Size); err != nil {
			return nil, err
		}
		i.cache.put(number, data)
	}
	return data[off-number*Size:], nil
}
