package ext4

import "math/bits"

// Hashes of directory names. They are part of the on-disk format: the index
// is sorted by them.
const (
	hashLegacy = iota
	hashHalfMD4
	hashTea
	hashLegacyUnsigned
	hashHalfMD4Unsigned
	hashTeaUnsigned
)

// hashName gives the major and minor hash of name in the given version; false
// when the version is not known.
func (s *super) hashName(name []byte, version uint8) (major, minor uint32, ok bool) {
	if version <= hashTea && s.hashUnsigned {
		version += hashLegacyUnsigned
	}
	signed := version <= hashTea
	state := [4]uint32{0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476}
	if s.hashSeed != [4]uint32{} {
		state = s.hashSeed
	}
	switch version {
	case hashLegacy, hashLegacyUnsigned:
		major = legacyHash(name, signed)
	case hashHalfMD4, hashHalfMD4Unsigned:
		for p := name; len(p) > 0; p = p[min(32, len(p)):] {
			var in [8]uint32
			packName(in[:], p, signed)
			halfMD4(&state, &in)
		}
		major, minor = state[1], state[2]
	case hashTea, hashTeaUnsigned:
		for p := name; len(p) > 0; p = p[min(16, len(p)):] {
			var in [4]uint32
			packName(in[:], p, signed)
			tea(&state, &in)
		}
		major, minor = state[0], state[1]
	default:
		return 0, 0, false
	}
	const end = 0x7FFFFFFF << 1 // the position behind the last entry
	major &^= 1
	if major == end {
		major = (0x7FFFFFFF - 1) << 1
	}
	return major, minor, true
}

// char is a byte of a name as the C compiler of the guest saw it.
func char(c byte, signed bool) uint32 {
	if signed {
		return uint32(int32(int8(c)))
	}
	return uint32(c)
}

func legacyHash(name []byte, signed bool) uint32 {
	h0, h1 := uint32(0x12A3FE2D), uint32(0x37ABE8F9)
	for _, c := range name {
		h := h1 + (h0 ^ char(c, signed)*7152373)
		if h&0x80000000 != 0 {
			h -= 0x7FFFFFFF
		}
		h1, h0 = h0, h
	}
	return h0 << 1
}

// packName fills words with the name's bytes, the last one first in each
// word, and the rest with its length.
func packName(words []uint32, name []byte, signed bool) {
	pad := uint32(len(name)) | uint32(len(name))<<8
	pad |= pad << 16
	name = name[:min(len(name), 4*len(words))]
	for i := range words {
		v := pad
		for _, c := range name[min(4*i, len(name)):min(4*i+4, len(name))] {
			v = char(c, signed) + v<<8
		}
		words[i] = v
	}
}

func tea(state *[4]uint32, in *[4]uint32) {
	b0, b1, sum := state[0], state[1], uint32(0)
	for range 16 {
		sum += 0x9E3779B9
		b0 += (b1<<4 + in[0]) ^ (b1 + sum) ^ (b1>>5 + in[1])
		b1 += (b0<<4 + in[2]) ^ (b0 + sum) ^ (b0>>5 + in[3])
	}
	state[0] += b0
	state[1] += b1
}

// halfMD4 is MD4 (RFC 1320) with 8 of the 16 steps in each round.
func halfMD4(state *[4]uint32, in *[8]uint32) {
	rounds := [3]struct {
		f     func(x, y, z uint32) uint32
		k     uint32
		order [8]int
		shift [4]int
	}{
		{func(x, y, z uint32) uint32 { return z ^ x&(y^z) }, 0, [8]int{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19}},
		{func(x, y, z uint32) uint32 { return x&y + (x^y)&z }, 0x5A827999, [8]int{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13}},
		{func(x, y, z uint32) uint32 { return x ^ y ^ z }, 0x6ED9EBA1, [8]int{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15}},
	}
	a, b, c, d := state[0], state[1], state[2], state[3]
	for _, r := range rounds {
		for i, word := range r.order {
			a = bits.RotateLeft32(a+r.f(b, c, d)+in[word]+r.k, r.shift[i%4])
			a, b, c, d = d, a, b, c
		}
	}
	state[0] += a
	state[1] += b
	state[2] += c
	state[3] += d
}
