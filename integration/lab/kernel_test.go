package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// bzImage wraps a payload the way the boot protocol says.
func bzImage(payload []byte) []byte {
	image := make([]byte, 0x400) // one sector of boot code, one of setup
	image[0x1f1] = 1
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(image[0x248:], 16) // payload_offset
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	image = append(image, make([]byte, 16)...)
	return append(append(image, payload...), "behind the payload"...)
}

// legacyStream makes an LZ4 legacy frame of finished blocks, closed by the
// unpacked size as the kernel's build does.
func legacyStream(unpackedSize int, blocks ...[]byte) []byte {
	s := binary.LittleEndian.AppendUint32(nil, lz4LegacyMagic)
	for _, b := range blocks {
		s = binary.LittleEndian.AppendUint32(s, uint32(len(b)))
		s = append(s, b...)
	}
	return binary.LittleEndian.AppendUint32(s, uint32(unpackedSize))
}

func TestUnpackKernel(t *testing.T) {
	// 4 literals, a match of 4+15+3=22 bytes at distance 1 (it overlaps what it
	// writes), and the last literals.
	first := append([]byte{0x4f}, "\x7fELF\x01\x00\x03"...)
	first = append(first, 0x10, '!')
	// 20 literals: 15 and a continuation byte.
	second := append([]byte{0xf0, 5}, "abcdefghijklmnopqrst"...)
	want := "\x7fELF" + string(bytes.Repeat([]byte("F"), 22)) + "!" + "abcdefghijklmnopqrst"
	got, err := unpackKernel(bzImage(legacyStream(len(want), first, second)))
	if err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestUnpackKernelRefuses(t *testing.T) {
	literals := append([]byte{0x40}, "\x7fELF"...)
	for name, image := range map[string][]byte{
		"no kernel":            make([]byte, 4096),
		"too short":            []byte("HdrS"),
		"not ELF":              bzImage(legacyStream(4, append([]byte{0x40}, "abcd"...))),
		"match before start":   bzImage(legacyStream(8, append([]byte{0x40}, "\x7fELF\x09\x00"...))),
		"distance zero":        bzImage(legacyStream(8, append([]byte{0x40}, "\x7fELF\x00\x00"...))),
		"block longer than it": bzImage(append(legacyStream(4, literals), 0xff, 0xff, 0, 0)),
		"payload outside":      bzImage(legacyStream(4, literals))[:0x410],
	} {
		if got, err := unpackKernel(image); err == nil {
			t.Errorf("%s: unpacked %q", name, got)
		}
	}
	if _, err := unpackKernel(bzImage([]byte("\x28\xb5\x2f\xfd zstd, and not LZ4"))); !errors.Is(err, errNotLZ4) {
		t.Errorf("another compression: %v, want errNotLZ4", err)
	}
}

func FuzzUnpackKernel(f *testing.F) {
	f.Add(bzImage(legacyStream(4, append([]byte{0x40}, "\x7fELF"...))))
	f.Add(bzImage(legacyStream(9, append([]byte{0x4f}, "\x7fELF\x01\x00\x03\x10!"...))))
	f.Fuzz(func(t *testing.T, image []byte) {
		if got, err := unpackKernel(image); err == nil && !bytes.HasPrefix(got, []byte("\x7fELF")) {
			t.Errorf("unpacked what is not a kernel: %.20q", got)
		}
	})
}
