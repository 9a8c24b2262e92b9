package fs

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"cairn/index/restorepoint"
)

// maxHanging is how many reads may wait for a store that does not answer
// before further ones fail at once.
const maxHanging = 256

// boundedImage is an image whose every call returns within a deadline. The
// call itself cannot be stopped: it goes on in its own goroutine, with its own
// buffer, and its answer is dropped. slots bounds how many there can be.
type boundedImage struct {
	image    restorepoint.Image
	deadline time.Duration
	slots    chan struct{}
	buffers  *sync.Pool // of *[]byte
}

type imageAnswer struct {
	buffer     *[]byte
	n          int
	start, end int64
	err        error
}

// Size implements restorepoint.Image.
func (b *boundedImage) Size() int64 { return b.image.Size() }

// ReadAt implements restorepoint.Image. The bytes are copied once, because p
// belongs to the caller again when the deadline is over.
func (b *boundedImage) ReadAt(p []byte, off int64) (int, error) {
	buffer, n, err := b.read(len(p), off)
	if buffer != nil {
		copy(p, (*buffer)[:n])
		b.buffers.Put(buffer)
	}
	return n, err
}

// read reads up to size bytes into a buffer that the caller puts back.
func (b *boundedImage) read(size int, off int64) (*[]byte, int, error) {
	buffer := b.buffers.Get().(*[]byte)
	if cap(*buffer) < size {
		*buffer = make([]byte, size)
	}
	a := b.call(func() imageAnswer {
		n, err := b.image.ReadAt((*buffer)[:size], off)
		return imageAnswer{buffer: buffer, n: n, err: err}
	})
	if a.err != nil && a.err != io.EOF {
		return nil, 0, fmt.Errorf("read %d bytes at %d: %w", size, off, a.err)
	}
	return a.buffer, a.n, a.err
}

// NextData implements restorepoint.Image.
func (b *boundedImage) NextData(off int64) (start, end int64, err error) {
	a := b.call(func() imageAnswer {
		start, end, err := b.image.NextData(off)
		return imageAnswer{start: start, end: end, err: err}
	})
	return a.start, a.end, a.err
}

// call runs f, for no longer than the deadline. This is the one goroutine of
// the package that is not waited for: that it may hang is why it exists.
func (b *boundedImage) call(f func() imageAnswer) imageAnswer {
	select {
	case b.slots <- struct{}{}:
	default:
		return imageAnswer{err: errBusy}
	}
	done := make(chan imageAnswer, 1)
	go func() {
		done <- f()
		<-b.slots
	}()
	timer := time.NewTimer(b.deadline)
	defer timer.Stop()
	select {
	case a := <-done:
		return a
	case <-timer.C:
		return imageAnswer{err: context.DeadlineExceeded}
	}
}
