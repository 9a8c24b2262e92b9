package btrfs

// unpackLZO reads btrfs' framing of LZO: the length of all, then segments with
// their lengths, each of which unpacks to at most one sector. A length never
// crosses a sector's end; what is left there is skipped.
func unpackLZO(packed []byte, size, sector int) ([]byte, error) {
	if len(packed) < 4 {
		return nil, corrupt("lzo: %d bytes", len(packed))
	}
	total := int(le.Uint32(packed))
	if total > len(packed) || total < 4 {
		return nil, corrupt("lzo: %d of %d bytes", total, len(packed))
	}
	b := make([]byte, size+sector) // the last segment may be longer than asked for
	n := 0
	for at := 4; n < size && at < total; {
		if left := sector - at%sector; left < 4 {
			at += left
		}
		if at+4 > total {
			break
		}
		length := int(le.Uint32(packed[at:]))
		at += 4
		if length > total-at {
			return nil, corrupt("lzo: segment of %d bytes at %d", length, at)
		}
		k, err := unpackLZO1X(b[n:][:sector], packed[at:at+length])
		if err != nil {
			return nil, err
		}
		n += k
		at += length
	}
	return b[:min(n, size)], nil
}

// unpackLZO1X unpacks one LZO1X stream into out and gives its length (the
// kernel's Documentation/staging/lzo.rst).
func unpackLZO1X(out, in []byte) (int, error) {
	l := lzo{in: in, out: out}
	state := 0 // literals behind the last instruction; 4: a long run of them
	if len(in) > 0 && in[0] > 17 {
		l.ip = 1
		n := int(in[0]) - 17
		state = min(n, 4)
		l.literals(n)
	}
	for !l.bad {
		t := l.next()
		var length, dist, literals int
		switch {
		case t >= 64:
			length, dist, literals = t>>5+1, l.next()<<3+t>>2&7+1, t&3
		case t >= 32:
			length = l.length(t&31, 31) + 2
			v := l.next16()
			dist, literals = v>>2+1, v&3
		case t >= 16:
			length = l.length(t&7, 7) + 2
			v := l.next16()
			dist, literals = t&8<<11+v>>2, v&3
			if dist == 0 && !l.bad {
				return l.op, nil
			}
			dist += 16384
		case state == 0:
			l.literals(l.length(t, 15) + 3)
			state = 4
			continue
		case state == 4:
			length, dist, literals = 3, l.next()<<2+t>>2+2049, t&3
		default:
			length, dist, literals = 2, l.next()<<2+t>>2+1, t&3
		}
		l.match(dist, length)
		l.literals(literals)
		state = literals
	}
	return 0, corrupt("lzo: bad stream at byte %d", l.ip)
}

// lzo is the state of unpacking. bad stays set once the stream leads out of
// in or out.
type lzo struct {
	in, out []byte
	ip, op  int
	bad     bool
}

func (l *lzo) next() int {
	if l.ip >= len(l.in) {
		l.bad = true
		return 0
	}
	l.ip++
	return int(l.in[l.ip-1])
}

func (l *lzo) next16() int {
	low := l.next()
	return low | l.next()<<8
}

// length gives n, or when it is 0 what the following bytes add to base.
func (l *lzo) length(n, base int) int {
	if n != 0 {
		return n
	}
	for n = base; !l.bad && n <= len(l.out); n += 255 {
		if b := l.next(); b != 0 {
			return n + b
		}
	}
	l.bad = true
	return n
}

func (l *lzo) literals(n int) {
	if l.bad || n > len(l.in)-l.ip || n > len(l.out)-l.op {
		l.bad = true
		return
	}
	copy(l.out[l.op:], l.in[l.ip:l.ip+n])
	l.ip += n
	l.op += n
}

func (l *lzo) match(dist, n int) {
	if l.bad || dist > l.op || n > len(l.out)-l.op {
		l.bad = true
		return
	}
	// What overlaps repeats: each copy doubles what there is to copy from.
	from, end := l.op-dist, l.op+n
	for l.op < end {
		l.op += copy(l.out[l.op:end], l.out[from:l.op])
	}
}
