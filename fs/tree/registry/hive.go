package registry

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"

	"cairn/guest/filesystem"
)

var le = binary.LittleEndian

const (
	base       = 0x1000 // bytes of the base block, behind which offsets count
	maxEntries = 1 << 16
	maxCell    = 1 << 20 // bytes of a cell that is read
	maxData    = 16344   // bytes of a value that lies in one cell
)

// Value is one value of a key.
type Value struct {
	Name string
	Type uint32 // REG_BINARY is 3
	Data []byte // at most 16,344 bytes; nil when there are more
}

// Hive is a registry file.
type Hive struct {
	r    io.ReaderAt
	size int64
	root uint32
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("registry hive: "+format+": %w", append(args, filesystem.ErrCorrupt)...)
}

// Open reads the base block of a hive of size bytes.
func Open(r io.ReaderAt, size int64) (*Hive, error) {
	b := make([]byte, 512)
	if size < base {
		return nil, corrupt("%d bytes", size)
	}
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("registry hive: %w", err)
	}
	if string(b[:4]) != "regf" {
		return nil, corrupt("no signature")
	}
	return &Hive{r: r, size: size, root: le.Uint32(b[36:])}, nil
}

// cell gives the contents of a cell, without the word of its size.
func (h *Hive) cell(off uint32, least int) ([]byte, error) {
	at := base + int64(off)
	if off%8 != 0 || at > h.size-4 {
		return nil, corrupt("cell at %#x", off)
	}
	var word [4]byte
	if n, err := h.r.ReadAt(word[:], at); n < len(word) {
		return nil, fmt.Errorf("registry hive: cell at %#x: %w", off, err)
	}
	size := -int64(int32(le.Uint32(word[:]))) // negative: in use
	if size < int64(4+least) || size > maxCell || at > h.size-size {
		return nil, corrupt("cell at %#x of %d bytes", off, size)
	}
	b := make([]byte, size-4)
	if n, err := h.r.ReadAt(b, at+4); n < len(b) {
		return nil, fmt.Errorf("registry hive: cell at %#x: %w", off, err)
	}
	return b, nil
}

// name decodes the name of a key or value, of n bytes at at.
func name(cell []byte, at, n int, latin bool) (string, error) {
	if n > len(cell)-at {
		return "", corrupt("name of %d bytes", n)
	}
	b := cell[at:][:n]
	if latin {
		runes := make([]rune, n)
		for i, c := range b {
			runes[i] = rune(c)
		}
		return string(runes), nil
	}
	units := make([]uint16, n/2)
	for i := range units {
		units[i] = le.Uint16(b[2*i:])
	}
	return string(utf16.Decode(units)), nil
}

// key is a cell "nk".
type key struct {
	name           string
	subkeys, list  uint32
	values, valued uint32
}

func (h *Hive) key(off uint32) (*key, error) {
	b, err := h.cell(off, 76)
	if err != nil {
		return nil, err
	}
	if string(b[:2]) != "nk" {
		return nil, corrupt("no key at %#x", off)
	}
	const latin = 0x20
	k := &key{subkeys: le.Uint32(b[20:]), list: le.Uint32(b[28:]), values: le.Uint32(b[36:]), valued: le.Uint32(b[40:])}
	k.name, err = name(b, 76, int(le.Uint16(b[72:])), le.Uint16(b[2:])&latin != 0)
	return k, err
}

// Values gives the values of the key at a path below the root. Names of keys
// are the same in upper and lower case. The error wraps filesystem.ErrNotExist
// when there is no such key; a value that is damaged is left out.
func (h *Hive) Values(path ...string) ([]Value, error) {
	k, err := h.key(h.root)
	for _, name := range path {
		if err != nil {
			return nil, err
		}
		k, err = h.subkey(k, name)
	}
	if err != nil {
		return nil, err
	}
	if k.values == 0 {
		return nil, nil
	}
	list, err := h.cell(k.valued, 0)
	if err != nil {
		return nil, err
	}
	var values []Value
	for range min(k.values, maxEntries, uint32(len(list)/4)) {
		if v, err := h.value(le.Uint32(list)); err == nil {
			values = append(values, v)
		}
		list = list[4:]
	}
	return values, nil
}

// subkey finds a key in another. An index "ri" names lists of keys, the others
// name keys.
func (h *Hive) subkey(in *key, name string) (*key, error) {
	lists, seen := []uint32{in.list}, 0
	if in.subkeys == 0 {
		lists = nil
	}
	for first := true; len(lists) > 0; first = false {
		b, err := h.cell(lists[0], 4)
		if err != nil {
			return nil, err
		}
		lists = lists[1:]
		kind, count, step := string(b[:2]), int(le.Uint16(b[2:])), 4
		switch kind {
		case "lf", "lh":
			step = 8
		case "li":
		case "ri":
			if !first {
				return nil, corrupt("an index of an index of keys")
			}
		default:
			return nil, corrupt("no list of keys")
		}
		for b = b[4:]; count > 0 && len(b) >= step; b, count = b[step:], count-1 {
			if seen++; seen > maxEntries {
				return nil, corrupt("too many keys")
			}
			off := le.Uint32(b)
			if kind == "ri" {
				lists = append(lists, off)
				continue
			}
			if k, err := h.key(off); err == nil && strings.EqualFold(k.name, name) {
				return k, nil
			}
		}
	}
	return nil, fmt.Errorf("registry key %q: %w", name, filesystem.ErrNotExist)
}

// value reads a cell "vk". Up to four bytes of data lie in it.
func (h *Hive) value(off uint32) (v Value, err error) {
	b, err := h.cell(off, 20)
	if err != nil {
		return v, err
	}
	if string(b[:2]) != "vk" {
		return v, corrupt("no value at %#x", off)
	}
	const latin, inline = 1, 1 << 31
	v.Type = le.Uint32(b[12:])
	if v.Name, err = name(b, 20, int(le.Uint16(b[2:])), le.Uint16(b[16:])&latin != 0); err != nil {
		return v, err
	}
	n := le.Uint32(b[4:])
	switch {
	case n&inline != 0:
		v.Data = b[8:][:min(4, n&^inline)]
		return v, nil
	case n == 0 || n > maxData:
		return v, nil
	}
	data, err := h.cell(le.Uint32(b[8:]), int(n))
	if err != nil {
		return v, err
	}
	v.Data = data[:n]
	return v, nil
}
