package catalogue

import (
	"encoding/binary"

	"github.com/zeebo/blake3"
)

// hashLabel begins what a directory's hash is over. Part of the on-disk
// format, do not change:
//
//	"cairn directory 1" · damaged (1)
//	each entry, sorted by name: uvarint length, name
//	  · ino (8) · mode, uid, gid, nlink, major, minor (4 each) · size (8)
//	  · mtime, ctime: seconds (8), nanoseconds (4)
//	  · uvarint length, target · 0, or 1 and the hash of the directory below (16)
//
// Numbers are little-endian.
const hashLabel = "cairn directory 1"

// hasher computes hashes. It is for one goroutine.
type hasher struct {
	h   *blake3.Hasher
	buf []byte
	sum [32]byte
}

// hashBuffer is when what was gathered is hashed, in bytes.
const hashBuffer = 64 << 10

// directory gives the hash of a directory whose entries are sorted and whose
// directories have theirs.
func (h *hasher) directory(d *Directory) Hash {
	if h.h == nil {
		h.h = blake3.New()
	}
	h.h.Reset()
	b := append(h.buf[:0], hashLabel...)
	b = append(b, damagedFlag(d))
	le := binary.LittleEndian
	for i := range d.Entries {
		e := &d.Entries[i]
		b = binary.AppendUvarint(b, uint64(len(e.Name)))
		b = append(b, e.Name...)
		b = le.AppendUint64(b, uint64(e.Ino))
		b = le.AppendUint32(b, e.Mode)
		b = le.AppendUint32(b, e.UID)
		b = le.AppendUint32(b, e.GID)
		b = le.AppendUint32(b, e.Nlink)
		b = le.AppendUint32(b, e.Major)
		b = le.AppendUint32(b, e.Minor)
		b = le.AppendUint64(b, uint64(e.Size))
		b = le.AppendUint64(b, uint64(e.Mtime.Sec))
		b = le.AppendUint32(b, e.Mtime.Nsec)
		b = le.AppendUint64(b, uint64(e.Ctime.Sec))
		b = le.AppendUint32(b, e.Ctime.Nsec)
		b = binary.AppendUvarint(b, uint64(len(e.Target)))
		b = append(b, e.Target...)
		if e.Dir == nil {
			b = append(b, 0)
		} else {
			b = append(b, 1)
			b = append(b, e.Dir.Hash[:]...)
		}
		if len(b) >= hashBuffer {
			_, _ = h.h.Write(b) // never fails
			b = b[:0]
		}
	}
	_, _ = h.h.Write(b) // never fails
	h.buf = b
	h.h.Sum(h.sum[:0])
	return Hash(h.sum[:])
}

func damagedFlag(d *Directory) byte {
	if d.Damaged {
		return 1
	}
	return 0
}

// same says whether two entries are equal in all that the hash covers.
func same(a, b *Entry) bool {
	if a.Name != b.Name || !sameAttributes(a, b) {
		return false
	}
	if a.Dir == nil || b.Dir == nil {
		return a.Dir == b.Dir
	}
	return a.Dir.Hash == b.Dir.Hash
}

func sameAttributes(a, b *Entry) bool {
	return a.Ino == b.Ino && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Nlink == b.Nlink && a.Major == b.Major && a.Minor == b.Minor &&
		a.Size == b.Size && a.Mtime == b.Mtime && a.Ctime == b.Ctime && a.Target == b.Target
}
