package btrfs

import (
	"bytes"
	"context"
	"testing"

	"cairn/guest/filesystem/filesystemtest"
)

// FuzzUnpack unpacks any bytes by each method: never more than was asked for.
func FuzzUnpack(f *testing.F) {
	f.Add(uint8(compressZlib), uint16(4096), []byte("\x78\x9c\x4b\x04\x00\x00\x62\x00\x62"))
	f.Add(uint8(compressLZO), uint16(4096), []byte("\x0e\x00\x00\x00\x06\x00\x00\x00\x14abc\x11\x00\x00"))
	f.Add(uint8(compressZstd), uint16(4096), []byte("\x28\xb5\x2f\xfd\x20\x01\x09\x00\x00a"))
	image, _ := filesystemtest.Sample(f, "plain")
	fs, err := open(context.Background(), []Device{{bytes.NewReader(image), int64(len(image))}}, true)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method uint8, size uint16, packed []byte) {
		if len(packed) > maxCompressed {
			return
		}
		b, err := fs.unpack(1+method%3, packed, int(size))
		if err == nil && len(b) > int(size) {
			t.Fatalf("%d bytes, not %d", len(b), size)
		}
	})
}

// FuzzSuper parses any bytes as a superblock.
func FuzzSuper(f *testing.F) {
	image, _ := filesystemtest.Sample(f, "plain")
	f.Add(image[superOffsets[0]:][:superSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSuper(b, superOffsets[0], true)
		if err == nil && (s.nodeSize > 64<<10 || s.nodeSize < s.sectorSize || len(s.sysArray) > sysArraySize) {
			t.Fatalf("%+v", s)
		}
	})
}
