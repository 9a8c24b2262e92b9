package ntfs

// run is a stretch of clusters of a stream that lie together.
type run struct {
	vcn, lcn int64 // first cluster, in the stream and on the volume; lcn -1: a hole
	n        int64
}

// maxRuns bounds the runs of one stream in memory: 48 MiB.
const maxRuns = 2 << 20

// appendRuns decodes mapping pairs (libfsntfs, "Data runs"): a byte with the
// sizes of two numbers, the length and the signed distance from the last run.
func appendRuns(runs []run, pairs []byte, lowest, clusters int64) ([]run, error) {
	if n := len(runs); n > 0 && runs[n-1].vcn+runs[n-1].n != lowest || n == 0 && lowest != 0 {
		return nil, corrupt("the runs of a stream have a gap before cluster %d", lowest)
	}
	vcn, lcn := lowest, int64(0)
	for len(pairs) > 0 && pairs[0] != 0 {
		lengthSize, offsetSize := int(pairs[0]&0x0F), int(pairs[0]>>4)
		if lengthSize == 0 || lengthSize > 8 || offsetSize > 8 || 1+lengthSize+offsetSize > len(pairs) {
			return nil, corrupt("a run with numbers of %d and %d bytes", lengthSize, offsetSize)
		}
		n := signed(pairs[1 : 1+lengthSize])
		if n <= 0 || n > maxClusters || vcn+n > maxClusters {
			return nil, corrupt("a run of %d clusters", n)
		}
		r := run{vcn, -1, n}
		if offsetSize > 0 {
			lcn += signed(pairs[1+lengthSize : 1+lengthSize+offsetSize])
			if lcn < 0 || lcn >= clusters || n > clusters-lcn {
				return nil, corrupt("a run of %d clusters at %d of %d", n, lcn, clusters)
			}
			r.lcn = lcn
		}
		if k := len(runs); k > 0 && r.lcn < 0 && runs[k-1].lcn < 0 || k > 0 && r.lcn >= 0 && runs[k-1].lcn >= 0 && runs[k-1].lcn+runs[k-1].n == r.lcn {
			runs[k-1].n += n
		} else if k == maxRuns {
			return nil, corrupt("a stream of more than %d runs", maxRuns)
		} else {
			runs = append(runs, r)
		}
		vcn += n
		pairs = pairs[1+lengthSize+offsetSize:]
	}
	return runs, nil
}

// signed reads a little-endian number of 1 to 8 bytes.
func signed(b []byte) int64 {
	v := int64(int8(b[len(b)-1]))
	for i := len(b) - 2; i >= 0; i-- {
		v = v<<8 | int64(b[i])
	}
	return v
}
