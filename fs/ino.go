package fs

import "hash/fnv"

// hash gives a number for a path of names: the same at every mount.
func hash(names ...string) uint64 {
	h := fnv.New64a()
	for _, name := range names {
		h.Write([]byte(name))
		h.Write([]byte{0})
	}
	return mix(h.Sum64())
}

// stable gives st_ino of an inode under a volume's seed: never the same for
// two inodes of a volume, never 0, and in the guest's order. cp and others
// read the files of a directory in that order, which is that of the disk.
func stable(seed, ino uint64) uint64 {
	return seed>>1 + ino + 1
}

// mix is the finalizer of SplitMix64, a bijection (Steele, Lea, Flood: Fast
// splittable pseudorandom number generators, 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
