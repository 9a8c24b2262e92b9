package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// errNotLZ4 means that a kernel's payload is not the LZ4 stream that Debian
// uses; QEMU then boots the compressed kernel, which only costs a second.
var errNotLZ4 = errors.New("the kernel's payload is not an LZ4 stream")

const (
	lz4LegacyMagic = 0x184C2102
	lz4BlockBytes  = 8 << 20 // a legacy block unpacks to at most this
	lz4MaxPacked   = lz4BlockBytes + lz4BlockBytes/255 + 16
	maxVmlinux     = 256 << 20
)

// unpackKernel returns the ELF kernel inside a bzImage. QEMU boots it by its
// PVH entry, without the decompression that is slow under emulation. Where the
// payload lies: Documentation/arch/x86/boot.rst, fields setup_sects,
// payload_offset and payload_length.
func unpackKernel(image []byte) ([]byte, error) {
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" {
		return nil, errors.New("not a bzImage kernel")
	}
	setup := (int(image[0x1f1]) + 1) * 512
	start := setup + int(binary.LittleEndian.Uint32(image[0x248:]))
	length := int(binary.LittleEndian.Uint32(image[0x24c:]))
	if start < 0 || length < 0 || start > len(image) || length > len(image)-start {
		return nil, fmt.Errorf("kernel payload at %d of %d bytes lies outside of the image", start, length)
	}
	elf, err := unpackLZ4Legacy(image[start : start+length])
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(elf, []byte("\x7fELF")) {
		return nil, errors.New("the kernel's payload is not an ELF file")
	}
	return elf, nil
}

// unpackLZ4Legacy reads the legacy LZ4 frame of `lz4 -l`: a magic number, then
// blocks of a 32-bit length and that many bytes. The kernel's build appends the
// unpacked length, which ends the stream.
func unpackLZ4Legacy(src []byte) ([]byte, error) {
	if len(src) < 8 || binary.LittleEndian.Uint32(src) != lz4LegacyMagic {
		return nil, errNotLZ4
	}
	src = src[4:]
	var out []byte
	for len(src) >= 4 {
		n := int(binary.LittleEndian.Uint32(src))
		if len(src) == 4 && n == len(out) {
			return out, nil
		}
		src = src[4:]
		if n == 0 || n > lz4MaxPacked || n > len(src) {
			return nil, fmt.Errorf("LZ4 block of %d bytes where %d are left", n, len(src))
		}
		var err error
		if out, err = appendLZ4Block(out, src[:n]); err != nil {
			return nil, err
		}
		if len(out) > maxVmlinux {
			return nil, fmt.Errorf("kernel unpacks to more than %d bytes", maxVmlinux)
		}
		src = src[n:]
	}
	if len(src) != 0 {
		return nil, errors.New("LZ4 stream ends within a block length")
	}
	return out, nil
}

var errLZ4Block = errors.New("LZ4 block is damaged")

// appendLZ4Block unpacks one independent LZ4 block behind dst.
// Format: lz4_Block_format.md of the LZ4 project.
func appendLZ4Block(dst, src []byte) ([]byte, error) {
	base := len(dst)
	for len(src) > 0 {
		token := src[0]
		src = src[1:]
		literals, rest, ok := lz4Length(int(token>>4), src)
		if !ok || literals > len(rest) || len(dst)-base+literals > lz4BlockBytes {
			return nil, errLZ4Block
		}
		dst = append(dst, rest[:literals]...)
		src = rest[literals:]
		if len(src) == 0 {
			return dst, nil // the last sequence has no match
		}
		if len(src) < 2 {
			return nil, errLZ4Block
		}
		distance := int(binary.LittleEndian.Uint16(src))
		match, rest, ok := lz4Length(int(token&15), src[2:])
		match += 4
		if !ok || distance == 0 || distance > len(dst)-base || len(dst)-base+match > lz4BlockBytes {
			return nil, errLZ4Block
		}
		src = rest
		// Byte by byte, because a match may overlap what it writes.
		for from := len(dst) - distance; match > 0; match-- {
			dst = append(dst, dst[from])
			from++
		}
	}
	return nil, errLZ4Block
}

// lz4Length reads the continuation bytes of a length whose 4 bits are all set.
func lz4Length(n int, src []byte) (length int, rest []byte, ok bool) {
	if n < 15 {
		return n, src, true
	}
	for i, b := range src {
		n += int(b)
		if n > lz4BlockBytes {
			return 0, nil, false
		}
		if b != 255 {
			return n, src[i+1:], true
		}
	}
	return 0, nil, false
}
