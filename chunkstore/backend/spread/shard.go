package spread

import (
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/zeebo/blake3"
)

// A shard object is a header and the shard's bytes. Part of the on-disk
// format, do not change; numbers are little-endian:
//
//	0   magic "CAIRNSH1"
//	8   version 1
//	9   k · 10 m · 11 the shard's number
//	12  length of the pack (8)
//	20  length of the shard's bytes (4)
//	24  zero (8)
//	32  BLAKE3-256 of the pack's object name
//	64  backend.PackName of the pack's bytes
//	96  BLAKE3-256 of bytes 0..95 and of the table
//	128 table: BLAKE3-256 of each 64 KiB of the shard's bytes
//	    the shard's bytes
//
// Shards 0..k-1 hold the pack's bytes in order, the last of them filled up
// with zeros; shards k..k+m-1 are parity.
const (
	shardMagic   = "CAIRNSH1"
	shardVersion = 1
	fixedSize    = 128
	sumSize      = 32
	blockSize    = 64 << 10
	// maxPack bounds an object under packs/ in bytes, whatever a header says.
	maxPack = 256 << 20
	// MaxShards bounds k+m.
	MaxShards = 32
)

const packsPrefix = "packs/"

type sum = [sumSize]byte

// errShard: a shard is not what it should be.
var errShard = errors.New("damaged shard")

// geometry is how a pack of a length is cut.
type geometry struct {
	k, m     int
	packLen  int64
	shardLen int // bytes of each shard, without its header
}

func newGeometry(k, m int, packLen int64) geometry {
	return geometry{k: k, m: m, packLen: packLen, shardLen: max(1, int((packLen+int64(k)-1)/int64(k)))}
}

func (g geometry) blocks() int { return (g.shardLen + blockSize - 1) / blockSize }

func (g geometry) headerSize() int { return fixedSize + g.blocks()*sumSize }

func (g geometry) objectSize() int64 { return int64(g.headerSize() + g.shardLen) }

// shardLenOf gives the length of the shard that a shard object of this size
// holds; 0 when no shard object has that size.
func shardLenOf(objectSize int64) int {
	rest := objectSize - fixedSize
	if rest <= sumSize || rest > maxPack+maxPack/blockSize*sumSize {
		return 0
	}
	blocks := (rest + blockSize + sumSize - 1) / (blockSize + sumSize)
	return int(max(0, rest-blocks*sumSize))
}

// header is a shard's, checked.
type header struct {
	geometry
	i       int
	name    sum // of the pack's object name
	content sum // backend.PackName of the pack's bytes
	sums    []sum
}

// encode writes the header to the first headerSize bytes of b.
func (h *header) encode(b []byte) {
	b = b[:h.headerSize()]
	clear(b[:fixedSize])
	copy(b, shardMagic)
	b[8], b[9], b[10], b[11] = shardVersion, byte(h.k), byte(h.m), byte(h.i)
	binary.LittleEndian.PutUint64(b[12:], uint64(h.packLen))
	binary.LittleEndian.PutUint32(b[20:], uint32(h.shardLen))
	copy(b[32:], h.name[:])
	copy(b[64:], h.content[:])
	for n, s := range h.sums {
		copy(b[fixedSize+n*sumSize:], s[:])
	}
	s := headerSum(b)
	copy(b[96:], s[:])
}

func headerSum(b []byte) (out sum) {
	h := blake3.New()
	_, _ = h.Write(b[:96]) // never fails
	_, _ = h.Write(b[fixedSize:])
	copy(out[:], h.Sum(nil))
	return out
}

// parseFixed reads the lengths in a header's first fixedSize bytes, so that
// the rest can be read. Nothing of it is authenticated yet.
func parseFixed(b []byte) (geometry, int, error) {
	if len(b) < fixedSize || string(b[:8]) != shardMagic {
		return geometry{}, 0, fmt.Errorf("%w: it does not begin as one", errShard)
	}
	if b[8] != shardVersion {
		return geometry{}, 0, fmt.Errorf("shard format %d is not known to this cairn: use a newer one", b[8])
	}
	k, m, i := int(b[9]), int(b[10]), int(b[11])
	length := binary.LittleEndian.Uint64(b[12:])
	if k < 1 || k+m > MaxShards || i >= k+m || length > maxPack {
		return geometry{}, 0, fmt.Errorf("%w: impossible lengths", errShard)
	}
	g := newGeometry(k, m, int64(length))
	if uint32(g.shardLen) != binary.LittleEndian.Uint32(b[20:]) || binary.LittleEndian.Uint64(b[24:]) != 0 {
		return geometry{}, 0, fmt.Errorf("%w: impossible lengths", errShard)
	}
	return g, i, nil
}

// parseHeader reads and checks a whole header; b may be longer.
func parseHeader(b []byte) (*header, error) {
	g, i, err := parseFixed(b)
	if err != nil {
		return nil, err
	}
	if len(b) < g.headerSize() {
		return nil, fmt.Errorf("%w: its header is cut", errShard)
	}
	b = b[:g.headerSize()]
	if s := headerSum(b); subtle.ConstantTimeCompare(s[:], b[96:fixedSize]) != 1 {
		return nil, fmt.Errorf("%w: its header's checksum is wrong", errShard)
	}
	h := &header{geometry: g, i: i, name: sum(b[32:64]), content: sum(b[64:96]), sums: make([]sum, g.blocks())}
	for n := range h.sums {
		h.sums[n] = sum(b[fixedSize+n*sumSize : fixedSize+(n+1)*sumSize])
	}
	return h, nil
}

// checkBlocks holds bytes that begin with block first against the header.
func (h *header) checkBlocks(first int, b []byte) error {
	for n := first; len(b) > 0; n++ {
		k := min(len(b), blockSize)
		if n >= len(h.sums) || blake3.Sum256(b[:k]) != h.sums[n] {
			return fmt.Errorf("%w: the checksum of its block %d is wrong", errShard, n)
		}
		b = b[k:]
	}
	return nil
}

// shardName is the object name of a pack's shard. Part of the on-disk format.
func shardName(pack string, i int) string { return pack + "." + strconv.Itoa(i) }

// parseShardName reads what shardName gives.
func parseShardName(name string) (pack string, i int, ok bool) {
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 || !strings.HasPrefix(name, packsPrefix) {
		return "", 0, false
	}
	i, err := strconv.Atoi(name[dot+1:])
	return name[:dot], i, err == nil && i >= 0 && i < MaxShards && shardName(name[:dot], i) == name
}

// contentOf gives the hash that a pack's name says its bytes have.
func contentOf(pack string) (s sum, ok bool) {
	hash := pack[strings.LastIndexByte(pack, '/')+1:]
	b, err := hex.DecodeString(hash)
	if err != nil || len(b) != sumSize || hash != strings.ToLower(hash) {
		return s, false
	}
	return sum(b), true
}

// isPack says whether an object is stored as shards.
func isPack(name string) bool { return strings.HasPrefix(name, packsPrefix) }
