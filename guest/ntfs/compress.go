package ntfs

import (
	"sync"
)

// maxUnit bounds a compression unit in bytes; Windows makes ones of 64 KiB.
const maxUnit = 1 << 20

// readUnit reads from one compression unit: stored in as many clusters as it
// has, in none (zeros), or in fewer, compressed.
func (s *stream) readUnit(p []byte, off int64) (int, error) {
	cluster := s.fs.cluster
	size := s.unit * cluster
	number := off / size
	p = p[:min(int64(len(p)), (number+1)*size-off)]
	first := number * s.unit
	i, ok := s.at(first)
	if !ok {
		clear(p)
		return len(p), nil
	}
	if r := &s.runs[i]; r.lcn >= 0 && r.vcn+r.n >= first+s.unit {
		return s.readPlain(p, off)
	}
	allocated := int64(0)
	for k := i; k < len(s.runs) && s.runs[k].vcn < first+s.unit; k++ {
		if s.runs[k].lcn < 0 {
			continue
		}
		if start := max(s.runs[k].vcn, first); start != first+allocated {
			return 0, corrupt("a compression unit with a hole before its data")
		}
		allocated += min(s.runs[k].vcn+s.runs[k].n, first+s.unit) - max(s.runs[k].vcn, first)
	}
	switch allocated {
	case 0:
		clear(p)
		return len(p), nil
	case s.unit:
		return s.readPlain(p, off)
	}
	plain, err := s.fs.units.get(unitKey{s.id, number}, func() ([]byte, error) {
		packed := make([]byte, allocated*cluster)
		for done := int64(0); done < int64(len(packed)); {
			n, err := s.readPlain(packed[done:], first*cluster+done)
			if err != nil {
				return nil, err
			}
			done += int64(n)
		}
		return decompress(packed, int(size))
	})
	if err != nil {
		return 0, err
	}
	return copy(p, plain[off-number*size:]), nil
}

// decompress undoes LZNT1 (MS-XCA section 2.5): chunks of 4 KiB, each with a
// header of two bytes. What the data does not fill is zero.
func decompress(in []byte, size int) ([]byte, error) {
	const chunkSize = 4096
	out := make([]byte, 0, size)
	for len(in) >= 2 && len(out) < size {
		header := le.Uint16(in)
		if header == 0 {
			break
		}
		n := int(header&0xFFF) + 1
		in = in[2:]
		if n > len(in) {
			return nil, corrupt("a compressed chunk of %d bytes in %d", n, len(in))
		}
		begin := len(out)
		if header&0x8000 == 0 {
			out = append(out, in[:min(n, size-len(out))]...)
		} else {
			var err error
			if out, err = decompressChunk(out, in[:n], min(chunkSize, size-begin)); err != nil {
				return nil, err
			}
		}
		in = in[n:]
		if begin+chunkSize < size && len(out) < begin+chunkSize { // a short chunk is filled up
			out = append(out, make([]byte, begin+chunkSize-len(out))...)
		}
	}
	return append(out, make([]byte, size-len(out))...), nil
}

func decompressChunk(out, in []byte, limit int) ([]byte, error) {
	begin := len(out)
	for len(in) > 0 {
		flags := in[0]
		in = in[1:]
		for range 8 {
			if len(in) == 0 {
				return out, nil
			}
			if len(out)-begin >= limit {
				return out, nil
			}
			if flags&1 == 0 {
				out = append(out, in[0])
				in = in[1:]
			} else {
				if len(in) < 2 {
					return nil, corrupt("a compressed chunk ends in a reference")
				}
				token := le.Uint16(in)
				in = in[2:]
				mask, shift := uint16(0xFFF), uint(12)
				for i := len(out) - begin - 1; i >= 0x10; i >>= 1 {
					mask >>= 1
					shift--
				}
				back, n := int(token>>shift)+1, int(token&mask)+3
				if back > len(out)-begin {
					return nil, corrupt("a compressed chunk refers to before its start")
				}
				for n = min(n, limit-(len(out)-begin)); n > 0; n-- {
					out = append(out, out[len(out)-back])
				}
			}
			flags >>= 1
		}
	}
	return out, nil
}

type unitKey struct {
	stream uint64
	number int64
}

// unitCache keeps the units that were decompressed last.
type unitCache struct {
	mu    sync.Mutex
	units map[unitKey][]byte
	order []unitKey
	bytes int
}

const unitCacheBytes = 4 << 20

func (c *unitCache) get(k unitKey, make func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	b := c.units[k]
	c.mu.Unlock()
	if b != nil {
		return b, nil
	}
	b, err := make()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.units == nil {
		c.units = map[unitKey][]byte{}
	}
	if c.units[k] == nil {
		c.units[k] = b
		c.order = append(c.order, k)
		c.bytes += len(b)
	}
	for c.bytes > unitCacheBytes && len(c.order) > 1 {
		c.bytes -= len(c.units[c.order[0]])
		delete(c.units, c.order[0])
		c.order = c.order[1:]
	}
	return b, nil
}
