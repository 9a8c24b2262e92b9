package ext4

// The hash index of large directories (Documentation/filesystems/ext4/
// directory.rst, "Hash Tree Directories"). Lookup uses it; ReadDir does not,
// for the leaves are ordinary directory blocks.

// indexNode is where the entries of an index block lie. Each has 8 bytes:
// hash and block; the first one's hash is replaced by limit and count.
type indexNode struct {
	offset, limit, count int
}

// indexNode recognises an index block: the root, or an inner node behind an
// unused directory entry that fills the block.
func (fs *FS) indexNode(b []byte, root bool) (indexNode, bool) {
	n := indexNode{offset: 8}
	if root {
		if le.Uint16(b[4:]) != 12 || fs.recLen(le.Uint16(b[16:])) != len(b)-12 || le.Uint32(b[24:]) != 0 || b[29] != 8 {
			return n, false
		}
		n.offset = 32
	} else if le.Uint32(b) != 0 || fs.recLen(le.Uint16(b[4:])) != len(b) {
		return n, false
	}
	n.limit, n.count = int(le.Uint16(b[n.offset:])), int(le.Uint16(b[n.offset+2:]))
	return n, n.count >= 1 && n.count <= n.limit && n.offset+8*n.limit <= len(b)
}

// fits verifies the checksum behind the node's last possible entry.
func (n *indexNode) fits(b []byte, seed uint32) bool {
	end := n.offset + 8*n.limit
	if end+8 > len(b) {
		return false
	}
	sum := crc32c(seed, b[:n.offset+8*n.count])
	sum = crc32c(sum, b[end:end+4])
	return crc32c(sum, []byte{0, 0, 0, 0}) == le.Uint32(b[end+4:])
}

// maxIndexLevels is what large_dir allows.
const maxIndexLevels = 3

// lookupIndex searches name through the index. It gives 0 and true when the
// name is surely not in the directory, 0 and false when only a linear search
// can tell: there is no index, it is damaged, or its hash is not known here.
func (fs *FS) lookupIndex(in *inode, name string) (ino uint32, sure bool) {
	if in.flags()&flagIndex == 0 || in.flags()&(flagInlineData|flagEncrypt|flagCasefold) != 0 {
		return 0, false
	}
	b, err := fs.dirBlockAt(in, 0)
	if err != nil {
		return 0, false
	}
	n, ok := fs.indexNode(b, true)
	if !ok || b[30] > maxIndexLevels {
		return 0, false
	}
	hash, _, ok := fs.sb.hashName([]byte(name), b[28])
	if !ok {
		return 0, false
	}
	for level := b[30]; level > 0; level-- {
		i := n.search(b, hash)
		if b, err = fs.dirBlockAt(in, n.child(b, i)); err != nil {
			return 0, false
		}
		if n, ok = fs.indexNode(b, false); !ok {
			return 0, false
		}
	}
	// Names of equal hash may go on in the next leaf, whose hash is odd then.
	for i := n.search(b, hash); ; i++ {
		leaf, err := fs.dirBlockAt(in, n.child(b, i))
		if err != nil {
			return 0, false
		}
		ino, err := fs.findName(in, leaf, name, false)
		if ino != 0 || err != nil {
			return ino, false
		}
		if i+1 >= n.count {
			return 0, false // the next leaf hangs under another node
		}
		if n.hash(b, i+1) != hash|1 {
			// Without checksums a damaged index would hide names.
			return 0, fs.sb.metadataCsum()
		}
	}
}

func (n *indexNode) hash(b []byte, i int) uint32 { return le.Uint32(b[n.offset+8*i:]) }
func (n *indexNode) child(b []byte, i int) uint64 {
	return uint64(le.Uint32(b[n.offset+8*i+4:])) & 0x0FFFFFFF
}

// search gives the last entry whose hash is not above hash.
func (n *indexNode) search(b []byte, hash uint32) int {
	lo, hi := 1, n.count
	for lo < hi {
		mid := (lo + hi) / 2
		if n.hash(b, mid) <= hash {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// dirBlockAt reads a directory's block by its number in the directory.
func (fs *FS) dirBlockAt(in *inode, logical uint64) ([]byte, error) {
	if int64(logical) >= in.size()/fs.sb.blockSize {
		return nil, corrupt("directory index: block %d", logical)
	}
	r, err := fs.mapBlock(in, logical)
	if err != nil {
		return nil, err
	}
	if r.phys == 0 {
		return nil, corrupt("hole at block %d", logical)
	}
	return fs.dirBlock(in, logical, r.phys)
}
