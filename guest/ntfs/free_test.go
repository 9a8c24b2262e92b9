package ntfs

import (
	"context"
	"os"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// TestFree spoils what is free; we and ntfs-3g see no difference.
func TestFree(t *testing.T) {
	scale := filesystemtest.SmallScale()
	scale.Entries, scale.Extents = 200, 200
	path := image(t, 160<<20, scale)
	want := truth(t, path)
	spoiled := ""
	open := func(t *testing.T, path string) filesystem.Reader {
		spoiled = path
		return openImage(t, path)
	}
	filesystemtest.TestFree(t, path, open, want, fields, 0.99, nil)
	for _, d := range filesystemtest.Compare(want, truth(t, spoiled), fields) {
		t.Errorf("ntfs-3g, with rubbish in the free space: %s", d)
	}
}

// TestFreeInDoubt: nothing is told of a volume that is dirty.
func TestFreeInDoubt(t *testing.T) {
	filesystemtest.NeedTool(t, "mkntfs")
	path := filesystemtest.Image(t, 16<<20, "mkntfs", "-F", "-Q", "-q")
	free := func() (given int64, err error) {
		err = openImage(t, path).Free(context.Background(), func(start, end int64) error { given += end - start; return nil })
		return given, err
	}
	if given, err := free(); err != nil || given < 8<<20 {
		t.Errorf("a new volume: %d bytes, %v", given, err)
	}
	// The flag that Windows sets for chkdsk, in $Volume's only use of this type.
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fs := openImage(t, path)
	record := b[fs.geometry.mft*fs.cluster+3*int64(fs.geometry.record):]
	for off := int(le.Uint16(record[20:])); le.Uint32(record[off:]) != 0xFFFFFFFF; off += int(le.Uint32(record[off+4:])) {
		if le.Uint32(record[off:]) == typeVolumeInfo {
			record[off+int(le.Uint16(record[off+20:]))+10] |= 1
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if given, err := free(); err == nil || given != 0 {
		t.Errorf("a dirty volume: %d bytes, %v", given, err)
	}
	if len(openImage(t, path).Info().Notes) == 0 {
		t.Error("no note says that the volume is dirty")
	}
}
