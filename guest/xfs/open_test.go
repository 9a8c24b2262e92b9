package xfs

import (
	"context"
	"io"
	"os"
	"sync/atomic"
	"testing"

	"cairn/guest/filesystem/filesystemtest"
)

// meter counts what is read.
type meter struct {
	io.ReaderAt
	reads, bytes atomic.Int64
}

func (m *meter) ReadAt(p []byte, off int64) (int, error) {
	m.reads.Add(1)
	m.bytes.Add(int64(len(p)))
	return m.ReaderAt.ReadAt(p, off)
}

// TestOpenReadsLittle opens a filesystem that was unmounted: its log of 64 MiB
// must not be read.
func TestOpenReadsLittle(t *testing.T) {
	image := populated(t, 320*mib, filesystemtest.SmallScale(), "mkfs.xfs", "-q")
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := &meter{ReaderAt: f}
	fs, err := Open(context.Background(), m, 320*mib)
	if err != nil {
		t.Fatal(err)
	}
	if n := int64(fs.sb.logBlocks) * fs.sb.blockSize; n < 32*mib {
		t.Errorf("the log has only %d bytes", n)
	}
	if m.reads.Load() > 60 || m.bytes.Load() > 128<<10 {
		t.Errorf("%d reads of %d bytes", m.reads.Load(), m.bytes.Load())
	}
	t.Logf("%d reads of %d bytes", m.reads.Load(), m.bytes.Load())
}
