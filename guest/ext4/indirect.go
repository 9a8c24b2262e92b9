package ext4

// mapIndirect follows the block pointers of ext2 and ext3: 12 direct ones,
// then one tree each of one, two and three levels.
func (fs *FS) mapIndirect(in *inode, logical uint64) (run, error) {
	const direct = 12
	pointers := in.iblock()
	if logical < direct {
		return pointerRun(pointers[:direct*4], logical), nil
	}
	perBlock := uint64(fs.sb.blockSize / 4)
	logical -= direct
	span := perBlock // blocks under the tree's root
	for level := 1; level <= 3; level++ {
		if logical < span {
			return fs.indirectRun(in, le.Uint32(pointers[(direct+level-1)*4:]), level, logical)
		}
		logical -= span
		span *= perBlock
	}
	return run{}, corrupt("file block behind the third indirect tree")
}

// indirectRun descends level trees from block to find logical inside them.
func (fs *FS) indirectRun(in *inode, block uint32, level int, logical uint64) (run, error) {
	perBlock := uint64(fs.sb.blockSize / 4)
	for ; ; level-- {
		span := uint64(1) // blocks under one pointer of this level
		for range level - 1 {
			span *= perBlock
		}
		if block == 0 {
			return run{count: span*perBlock - logical}, nil
		}
		b, err := fs.indirectBlock(in, uint64(block))
		if err != nil {
			return run{}, err
		}
		if level == 1 {
			return pointerRun(b, logical), nil
		}
		block = le.Uint32(b[logical/span*4:])
		logical %= span
	}
}

// pointerRun joins neighbouring pointers from entry i on.
func pointerRun(pointers []byte, i uint64) run {
	first := le.Uint32(pointers[i*4:])
	r := run{count: 1, phys: uint64(first)}
	for j := i + 1; j < uint64(len(pointers)/4); j++ {
		next := uint64(le.Uint32(pointers[j*4:]))
		if first == 0 && next != 0 || first != 0 && next != r.phys+r.count {
			break
		}
		r.count++
	}
	return r
}

func (fs *FS) indirectBlock(in *inode, block uint64) ([]byte, error) {
	key := blockKey{block: block, owner: in.ino, kind: kindIndirect}
	if v := fs.cache.get(key); v != nil {
		return v.data, nil
	}
	b, err := fs.readBlock(block)
	if err != nil {
		return nil, corruptAt(err, "indirect block", block)
	}
	fs.cache.put(key, &verified{data: b})
	return b, nil
}
