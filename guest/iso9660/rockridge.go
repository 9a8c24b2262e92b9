package iso9660

import (
	"bytes"
	"fmt"

	"cairn/guest/filesystem"
)

// rock is what the system use entries of a record tell (Rock Ridge 1.12, 4).
type rock struct {
	hasMode      bool
	mode         uint32
	nlink        uint32
	uid, gid     uint32
	major, minor uint32
	mtime        filesystem.Time
	atime        filesystem.Time
	ctime        filesystem.Time
	hasMtime     bool
	hasAtime     bool
	hasCtime     bool
	name         []byte
	target       []byte
	link         linkState
	child        int64 // block of the directory that really lies here; 0: none
	moved        bool  // this directory is shown elsewhere
	unsupported  string
}

const (
	maxContinuations = 32
	maxTarget        = 4096 // bytes of a symbolic link; PATH_MAX
	maxRockName      = 255
)

// findRockRidge looks for the entry SP in the root's own record (System Use
// Sharing Protocol, 5.3), also behind the 14 bytes of a CD-ROM XA record.
func (fs *FS) findRockRidge() {
	r, err := fs.recordAt(fs.root)
	if err != nil {
		return // ReadDir tells of it
	}
	use := r.systemUse()
	for _, skip := range []int{0, 14} {
		if len(use) < skip+7 {
			break
		}
		if sp := use[skip:]; string(sp[:2]) == "SP" && sp[4] == 0xBE && sp[5] == 0xEF {
			fs.rockRidge, fs.skip = true, int(sp[6])
			return
		}
	}
}

// rockRidgeOf reads the entries of a record and of their continuations.
func (fs *FS) rockRidgeOf(r record) (rock, error) {
	var k rock
	use := r.systemUse()
	if len(use) < fs.skip || r.isSelf() && bytes.HasPrefix(use, []byte("SP")) {
		// The root's own record has SP itself before anything is skipped.
	} else {
		use = use[fs.skip:]
	}
	var gathered []byte
	for hops := 0; ; hops++ {
		next, err := k.parse(use)
		if err != nil {
			return k, err
		}
		if next == nil {
			return k, nil
		}
		block, offset, size := int64(next[0]), int64(next[1]), int64(next[2])
		if hops == maxContinuations || offset >= fs.block || size > fs.block {
			return k, corrupt("continuation of %d bytes at byte %d of block %d", size, offset, block)
		}
		if use, err = fs.piece(block*fs.block+offset, int(size), &gathered); err != nil {
			return k, err
		}
	}
}

// piece gives n bytes of the image, in place if they lie in one page.
func (fs *FS) piece(off int64, n int, buf *[]byte) ([]byte, error) {
	b, err := fs.pages.Page(off)
	if err != nil {
		return nil, err
	}
	if n <= len(b) {
		return b[:n], nil
	}
	*buf = append((*buf)[:0], b...)
	if b, err = fs.pages.Page(off + int64(len(b))); err != nil {
		return nil, err
	}
	if n-len(*buf) > len(b) {
		return nil, corrupt("%d bytes at %d lie outside the image", n, off)
	}
	*buf = append(*buf, b[:n-len(*buf)]...)
	return *buf, nil
}

// parse reads one area of entries and gives the place of its continuation:
// block, offset, size.
func (k *rock) parse(use []byte) (next *[3]uint32, err error) {
	for len(use) >= 4 && use[0] != 0 {
		length := int(use[2])
		if length < 4 || length > len(use) {
			return nil, corrupt("system use entry %q of %d bytes", use[:2], length)
		}
		e := use[:length]
		use = use[length:]
		switch string(e[:2]) {
		case "CE":
			if length >= 28 {
				next = &[3]uint32{le.Uint32(e[4:]), le.Uint32(e[12:]), le.Uint32(e[20:])}
			}
		case "ST":
			return next, nil
		default:
			if err := k.entry(string(e[:2]), e); err != nil {
				return nil, err
			}
		}
	}
	return next, nil
}

// leastBytes is the length of the entries that are read.
func leastBytes(kind string) int {
	switch kind {
	case "PX":
		return 36
	case "PN":
		return 20
	case "CL":
		return 12
	case "NM", "SL", "TF":
		return 5
	}
	return 4
}

func (k *rock) entry(kind string, e []byte) error {
	if len(e) < leastBytes(kind) {
		return corrupt("system use entry %s of %d bytes", kind, len(e))
	}
	switch kind {
	case "PX":
		k.hasMode = true
		k.mode, k.nlink, k.uid, k.gid = le.Uint32(e[4:]), le.Uint32(e[12:]), le.Uint32(e[20:]), le.Uint32(e[28:])
	case "PN":
		k.major, k.minor = le.Uint32(e[4:]), le.Uint32(e[12:])
		if k.major == 0 && k.minor > 0xFF { // both in one; Linux drops the upper bits of the minor
			k.major, k.minor = k.minor>>8&0xFFF, k.minor&0xFF
		}
	case "NM":
		if e[4]&6 == 0 && len(k.name)+len(e)-5 <= maxRockName {
			k.name = append(k.name, e[5:]...)
		}
	case "SL":
		return k.link.add(&k.target, e[5:])
	case "TF":
		return k.times(e[4], e[5:])
	case "CL":
		k.child = int64(le.Uint32(e[4:]))
	case "RE":
		k.moved = true
	case "SF":
		k.unsupported = "a sparse file of Rock Ridge"
	case "ZF":
		k.unsupported = "a file compressed by zisofs"
	}
	return nil
}

// times reads an entry TF: one date for each flag that is set, in their order.
func (k *rock) times(flags uint8, b []byte) error {
	length, read := 7, shortTime
	if flags&0x80 != 0 {
		length, read = 17, longTime
	}
	for bit := range 7 {
		if flags>>bit&1 == 0 {
			continue
		}
		if len(b) < length {
			return corrupt("system use entry TF is too short")
		}
		t := read(b)
		b = b[length:]
		switch bit {
		case 1:
			k.mtime, k.hasMtime = t, true
		case 2:
			k.atime, k.hasAtime = t, true
		case 0, 3: // creation counts when there is no change of attributes
			k.ctime, k.hasCtime = t, true
		}
	}
	return nil
}

// linkState is where the entries SL of a record have come to.
type linkState struct {
	open bool // the last component goes on
	any  bool // a component came, so that the next one needs a slash
}

// add appends the components of one entry SL to a symbolic link's target.
func (s *linkState) add(target *[]byte, b []byte) error {
	for len(b) >= 2 {
		flags, length := b[0], int(b[1])
		if len(b) < 2+length {
			return corrupt("symbolic link with a component of %d bytes", length)
		}
		if !s.open && s.any && !bytes.HasSuffix(*target, []byte("/")) {
			*target = append(*target, '/')
		}
		s.any = true
		switch {
		case flags&2 != 0:
			*target = append(*target, '.')
		case flags&4 != 0:
			*target = append(*target, ".."...)
		case flags&8 != 0:
			*target = append(*target, '/')
		default:
			*target = append(*target, b[2:2+length]...)
		}
		s.open = flags&1 != 0
		if len(*target) > maxTarget {
			return fmt.Errorf("%w: symbolic link of more than %d bytes", filesystem.ErrCorrupt, maxTarget)
		}
		b = b[2+length:]
	}
	return nil
}
