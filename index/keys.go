package index

import (
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

// Badger's keys and values. This is all there is:
//
//	key                               value, before its checksum
//	'c' session (16)                  kind (1) · JSON of restorepoint.Summary    a session's decision
//	'h' hook: ID's first 8 bytes      pack numbers (4 each), 1…maxHolders        packs that hold it
//	'm' "next"                        pack number (4)                            the next one to give
//	'n' pack number (4)               session (16) · hash (32)                   the pack of a number
//	'p' session (16) · hash (32)      pack number (4) · kind (1) · chunks (4)    a pack of the store
//
// Numbers are big-endian, so that keys sort. Behind each value stand the
// first 8 bytes of BLAKE3, keyed with the repository's index key, over key
// and value. Pack numbers are this cache's own: they make a hook's value 4
// bytes instead of 48. A change of anything here bumps stateVersion, and the
// cache is built anew.
const (
	prefixPoint  = 'c'
	prefixHook   = 'h'
	prefixMeta   = 'm'
	prefixNumber = 'n'
	prefixPack   = 'p'

	hookSize  = 8
	refSize   = 16 + 32
	checkSize = 8

	// maxHolders bounds the packs remembered for one hook. More come only
	// from many hosts that store the same chunk at the same time.
	maxHolders = 16
	// maxSummary bounds a summary's JSON in bytes.
	maxSummary = 256 << 10
)

// packKind says what a pack of the store holds.
type packKind byte

const (
	packData packKind = 1
	packMap  packKind = 2
)

// pointKind says how a session was decided.
type pointKind byte

const (
	pointCommitted pointKind = 1
	pointAborted   pointKind = 2 // no summary follows
)

// hook is what is kept of a chunk.ID. Two IDs with the same hook cost a look
// at a pack in vain.
type hook [hookSize]byte

func hookOf(id chunk.ID) hook { return hook(id[:hookSize]) }

func hookKey(h hook) []byte { return append([]byte{prefixHook}, h[:]...) }

func pointKey(id chunkstore.SessionID) []byte { return append([]byte{prefixPoint}, id[:]...) }

func numberKey(n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{prefixNumber}, n) }

func nextKey() []byte { return []byte{prefixMeta, 'n', 'e', 'x', 't'} }

func packKey(r chunkstore.PackRef) []byte { return appendRef([]byte{prefixPack}, r) }

func appendRef(b []byte, r chunkstore.PackRef) []byte {
	return append(append(b, r.Session[:]...), r.Hash[:]...)
}

// parseRef reads what appendRef gives.
func parseRef(b []byte) (r chunkstore.PackRef, ok bool) {
	if len(b) != refSize {
		return r, false
	}
	copy(r.Session[:], b)
	copy(r.Hash[:], b[len(r.Session):])
	return r, true
}

// packEntry is a 'p' value.
type packEntry struct {
	number uint32
	kind   packKind
	chunks uint32
}

func (e packEntry) value() []byte {
	b := binary.BigEndian.AppendUint32(nil, e.number)
	return binary.BigEndian.AppendUint32(append(b, byte(e.kind)), e.chunks)
}

func parsePackEntry(b []byte) (e packEntry, ok bool) {
	if len(b) != 9 || b[4] != byte(packData) && b[4] != byte(packMap) {
		return e, false
	}
	return packEntry{binary.BigEndian.Uint32(b), packKind(b[4]), binary.BigEndian.Uint32(b[5:])}, true
}

func numberValue(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// parseNumber reads what numberValue gives.
func parseNumber(b []byte) (uint32, bool) {
	if len(b) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(b), true
}

// holdersValue is an 'h' value.
func holdersValue(numbers []uint32) []byte {
	var b []byte
	for _, n := range numbers {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return b
}

func parseHolders(b []byte) ([]uint32, bool) {
	if len(b) == 0 || len(b)%4 != 0 || len(b)/4 > maxHolders {
		return nil, false
	}
	numbers := make([]uint32, len(b)/4)
	for i := range numbers {
		numbers[i] = binary.BigEndian.Uint32(b[4*i:])
	}
	return numbers, true
}

// decision is a 'c' value.
type decision struct {
	kind    pointKind
	summary restorepoint.Summary // of pointCommitted
}

// errTooLarge: a summary over maxSummary.
var errTooLarge = errors.New("its summary is too large for the index")

func (d decision) value() ([]byte, error) {
	if d.kind == pointAborted {
		return []byte{byte(d.kind)}, nil
	}
	body, err := json.Marshal(d.summary)
	if err != nil {
		return nil, err
	}
	if len(body) > maxSummary {
		return nil, fmt.Errorf("point %s: %w: %d bytes, the limit is %d", d.summary.ID, errTooLarge, len(body), maxSummary)
	}
	return append([]byte{byte(d.kind)}, body...), nil
}

func parseDecision(b []byte) (d decision, ok bool) {
	if len(b) == 0 || len(b) > 1+maxSummary {
		return d, false
	}
	switch d.kind = pointKind(b[0]); d.kind {
	case pointAborted:
		return d, len(b) == 1
	case pointCommitted:
		return d, json.Unmarshal(b[1:], &d.summary) == nil
	}
	return d, false
}

// sealer makes and proves the checksums. It may be used by many goroutines.
type sealer struct{ hashers sync.Pool }

func newSealer(key [32]byte) *sealer {
	s := new(sealer)
	s.hashers.New = func() any {
		h, err := blake3.NewKeyed(key[:])
		if err != nil { // only a wrong key length, which the type rules out
			panic("internal error: " + err.Error())
		}
		return h
	}
	return s
}

// sum gives the keyed BLAKE3 over the parts, one after the other.
func (s *sealer) sum(parts ...[]byte) (out [32]byte) {
	h := s.hashers.Get().(*blake3.Hasher)
	defer s.hashers.Put(h)
	h.Reset()
	for _, p := range parts {
		_, _ = h.Write(p) // never fails
	}
	h.Sum(out[:0])
	return out
}

// seal gives the value with its checksum.
func (s *sealer) seal(key, value []byte) []byte {
	sum := s.sum(key, value)
	return append(value[:len(value):len(value)], sum[:checkSize]...)
}

// open gives the value of what seal made; false when the checksum is wrong.
func (s *sealer) open(key, sealed []byte) ([]byte, bool) {
	if len(sealed) < checkSize {
		return nil, false
	}
	value, check := sealed[:len(sealed)-checkSize], sealed[len(sealed)-checkSize:]
	sum := s.sum(key, value)
	return value, subtle.ConstantTimeCompare(sum[:checkSize], check) == 1
}
