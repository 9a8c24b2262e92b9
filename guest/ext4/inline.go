package ext4

// Inline data (Documentation/filesystems/ext4/inlinedata.rst): the first 60
// bytes in i_block, the rest as the attribute "system.data" inside the inode.

// inlineData gives a copy of the inode's inline bytes, at least 60.
func (fs *FS) inlineData(in *inode) ([]byte, error) {
	rest, err := in.inlineRest()
	if err != nil {
		return nil, err
	}
	data := make([]byte, 0, len(in.iblock())+len(rest))
	return append(append(data, in.iblock()...), rest...), nil
}

// inlineRest finds the value of "system.data"; nil when there is none.
func (in *inode) inlineRest() ([]byte, error) {
	entries := in.bodyXattrs()
	for len(entries) > 0 {
		e, size, err := parseXattrEntry(entries)
		if err != nil || size == 0 {
			return nil, err
		}
		if e.prefix == xattrSystem && string(e.name) == "data" && e.valueInode == 0 {
			return e.valueIn(in.bodyXattrs())
		}
		entries = entries[size:]
	}
	return nil, nil
}
