package backend

import "github.com/zeebo/blake3"

// TailSize is how many bytes at the end of a pack its name covers by
// themselves. Part of the on-disk format, do not change.
const TailSize = 100

// PackName gives the last part of a pack's name: a hash of all its bytes, so
// that anyone can verify it without a key, and made so that the pack's tail,
// which repeats the hash of what is before it, proves the name by itself: a
// reader of a range sees whose bytes it got. Part of the on-disk format.
func PackName(stored []byte) [32]byte {
	cut := max(0, len(stored)-TailSize)
	return PackNameOf(blake3.Sum256(stored[:cut]), stored[cut:])
}

// PackNameOf is PackName by the hash of all bytes before the tail: BLAKE3-256
// of that hash and the tail.
func PackNameOf(before [32]byte, tail []byte) [32]byte {
	return blake3.Sum256(append(before[:], tail...))
}
