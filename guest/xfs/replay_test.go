package xfs

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestOverlay changes sectors here and there, and renews some.
func TestOverlay(t *testing.T) {
	image := bytes.Repeat([]byte{1}, 64<<10)
	p := &replay{fs: &FS{image: bytes.NewReader(image), size: int64(len(image))}}
	for _, off := range []int64{100, 5000, 5120, 40_000} {
		if err := p.poke(bytes.Repeat([]byte{2}, 600), off); err != nil {
			t.Fatal(err)
		}
		copy(image[off:], bytes.Repeat([]byte{2}, 600))
	}
	image = bytes.Clone(image)
	check := func(when string) {
		t.Helper()
		got := make([]byte, len(image))
		if err := p.peek(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, image) {
			t.Errorf("%s: other bytes", when)
		}
		part := make([]byte, 1000)
		for off := 0; off < len(image)-1000; off += 333 {
			if err := p.peek(part, int64(off)); err != nil || !bytes.Equal(part, image[off:off+1000]) {
				t.Fatalf("%s: other bytes at %d, %v", when, off, err)
			}
		}
	}
	check("changed")
	p.overlay.renew(span{8, 12}) // bytes 4096 to 6144
	clear(image[4096:6144])
	check("renewed")
	if err := p.poke([]byte{3}, 4100); err != nil {
		t.Fatal(err)
	}
	image[4100] = 3
	check("changed again")
	var ranges []string
	p.overlay.each(func(start, end int64) { ranges = append(ranges, fmt.Sprintf("%d-%d", start, end)) })
	if got := strings.Join(ranges, " "); got != "0-1024 4096-6144 39936-40960" {
		t.Errorf("changed ranges %s", got)
	}
	for off, want := range map[int64]bool{0: true, 1024: false, 7000: false, 40_959: true, 40_960: false} {
		if p.overlay.touches(off, 1) != want {
			t.Errorf("byte %d is changed: %v", off, !want)
		}
	}
	p.overlay.count = overlayBytes / sectorSize
	if err := p.poke([]byte{1}, 20_000); !errors.Is(err, errOverlayFull) {
		t.Errorf("the overlay has no bound: %v", err)
	}
}

// TestUnfinishedOperations notes what the log has begun and not finished.
func TestUnfinishedOperations(t *testing.T) {
	item := func(kind uint16, words ...uint64) *logItem {
		b := le.AppendUint16(nil, kind)
		b = append(b, 1, 0, 0, 0, 0, 0)
		for _, w := range words {
			b = le.AppendUint64(b, w)
		}
		return &logItem{kind: kind, regions: [][]byte{b}}
	}
	p := &replay{intents: make(map[uint64]intent)}
	for _, i := range []*logItem{
		item(itemMapIntent, 1, 100), item(itemMapIntent, 2, 200), item(itemMapDone, 1),
		item(itemExchangeIntent, 3, 300, 301), item(itemAttrIntent, 4, 400), item(itemAttrDone, 4), item(0x1236, 5),
	} {
		if err := p.intent(i); err != nil {
			t.Fatal(err)
		}
	}
	want := "a change of extents had begun and is not finished: inode 200; an exchange of contents had begun and is not finished: inode 300 301"
	if got := strings.Join(p.unfinished(), "; "); got != want {
		t.Errorf("%s", got)
	}
}

// TestInodeItemForms reads the head of an inode's item as 64-bit and old 32-bit
// kernels wrote it.
func TestInodeItemForms(t *testing.T) {
	long := make([]byte, 56)
	le.PutUint32(long[4:], 5)
	le.PutUint64(long[16:], 131)
	le.PutUint32(long[24:], 7)
	le.PutUint64(long[40:], 128)
	le.PutUint32(long[48:], 32)
	le.PutUint32(long[52:], 1536)
	short := append(bytes.Clone(long[:12]), long[16:]...)
	want := inodeItem{fields: 5, ino: 131, device: 7, buffer: bufferKey{128, 32}, offset: 1536}
	for _, b := range [][]byte{long, short} {
		if got, err := parseInodeItem(b); err != nil || got != want {
			t.Errorf("%d bytes: %+v, %v", len(b), got, err)
		}
	}
	if _, err := parseInodeItem(long[:50]); err == nil {
		t.Error("50 bytes are no item")
	}
}
