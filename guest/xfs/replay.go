package xfs

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Flags of a buffer item (xfs_log_format.h, xfs_buf_log_format).
const (
	bufferInodes    = 0x01 // only the links of the list of unlinked inodes
	bufferCancelled = 0x02
	bufferQuota     = 0x04 | 0x08 | 0x10

	bufferChunk    = 128  // bytes for which one bit of the map stands
	maxBufferWords = 1024 // words of the map

	// maxFresh bounds the ranges of new inodes.
	maxFresh = 1 << 16
)

// bufferKey names a buffer: its disk address and length in sectors.
type bufferKey struct {
	at, length int64
}

// replay applies transactions to an overlay, as the kernel's recovery does to
// the disk. Items that only matter to later changes (quota, reverse maps, extents
// to free) are passed over.
type replay struct {
	fs        *FS
	overlay   overlay
	cancelled map[bufferKey]int
	intents   map[uint64]intent

	transactions, buffers, inodes int
}

func bufferOf(item *logItem) (key bufferKey, flags uint16, err error) {
	b := item.regions[0]
	if len(b) < 20 {
		return key, 0, corrupt("buffer item of %d bytes", len(b))
	}
	return bufferKey{int64(le.Uint64(b[8:])), int64(le.Uint16(b[6:]))}, le.Uint16(b[4:]), nil
}

// countCancelled is the first pass: buffers that were freed must not be
// written, for the blocks may be file contents by now.
func (p *replay) countCancelled(t *transaction) error {
	for i := range t.items {
		if t.items[i].kind != itemBuffer {
			continue
		}
		key, flags, err := bufferOf(&t.items[i])
		if err != nil {
			return err
		}
		if flags&bufferCancelled != 0 {
			p.cancelled[key]++
		}
	}
	return nil
}

// apply is the second pass: buffers and new inodes first, then inodes, the
// ends of cancellations last.
func (p *replay) apply(t *transaction) error {
	p.transactions++
	for i := range t.items {
		item := &t.items[i]
		var err error
		switch item.kind {
		case itemBuffer:
			err = p.applyBuffer(t, item)
		case itemICreate:
			err = p.applyICreate(item)
		}
		if err != nil {
			return err
		}
	}
	for i := range t.items {
		item := &t.items[i]
		if item.kind != itemInode {
			if err := p.intent(item); err != nil {
				return err
			}
			continue
		}
		if err := p.applyInode(t, item); err != nil {
			return err
		}
	}
	for i := range t.items {
		if t.items[i].kind != itemBuffer {
			continue
		}
		if key, flags, err := bufferOf(&t.items[i]); err == nil && flags&bufferCancelled != 0 {
			if p.cancelled[key]--; p.cancelled[key] <= 0 {
				delete(p.cancelled, key)
			}
		}
	}
	return nil
}

// sector gives a sector that may be changed: from the overlay, or from the
// disk, or zero when it was made part of new inodes.
func (p *replay) sector(n int64) ([]byte, error) {
	if b := p.overlay.sector(n); b != nil {
		return b, nil
	}
	b, err := p.overlay.add(n)
	if err != nil || p.overlay.isFresh(n) {
		return b, err
	}
	return b, p.fs.readAt(b, n*sectorSize)
}

// peek reads bytes as they are now.
func (p *replay) peek(b []byte, off int64) error {
	if err := p.fs.readAt(b, off); err != nil {
		return err
	}
	if len(p.overlay.fresh) > 0 {
		for n := off / sectorSize; n*sectorSize < off+int64(len(b)); n++ {
			if p.overlay.isFresh(n) {
				clear(b[max(0, n*sectorSize-off):min(int64(len(b)), (n+1)*sectorSize-off)])
			}
		}
	}
	p.overlay.patch(b, off)
	return nil
}

// poke changes bytes.
func (p *replay) poke(b []byte, off int64) error {
	for len(b) > 0 {
		s, err := p.sector(off / sectorSize)
		if err != nil {
			return err
		}
		n := copy(s[off%sectorSize:], b)
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// applyBuffer copies the logged parts of a buffer.
func (p *replay) applyBuffer(t *transaction, item *logItem) error {
	key, flags, err := bufferOf(item)
	if err != nil {
		return err
	}
	// The list of unlinked inodes and quotas are nothing that is shown.
	if flags&(bufferInodes|bufferCancelled|bufferQuota) != 0 || p.cancelled[key] > 0 {
		return nil
	}
	b := item.regions[0]
	words := int64(le.Uint32(b[16:]))
	if words > maxBufferWords || 20+words*4 > int64(len(b)) {
		return corrupt("buffer item with a map of %d words", words)
	}
	if key.length == 0 || key.at < 0 || key.at > (p.fs.size-key.length*sectorSize)/sectorSize {
		return corrupt("buffer item of %d sectors at %d", key.length, key.at)
	}
	newer, err := p.isNewer(key, t.lsn)
	if err != nil || newer {
		return err
	}
	p.buffers++
	marked := func(i int64) bool { return le.Uint32(b[20+i/32*4:])>>(i%32)&1 != 0 }
	region := 1
	for i := int64(0); i < words*32; {
		if !marked(i) {
			i++
			continue
		}
		n := int64(1)
		for i+n < words*32 && marked(i+n) {
			n++
		}
		// What is next to each other may still be in two regions.
		if region >= len(item.regions) || len(item.regions[region]) < bufferChunk {
			return corrupt("buffer item at %d: region %d is missing", key.at, region)
		}
		data := item.regions[region]
		n = min(n, int64(len(data)/bufferChunk))
		if (i+n)*bufferChunk > key.length*sectorSize {
			return corrupt("buffer item at %d is longer than its buffer", key.at)
		}
		if err := p.poke(data[:n*bufferChunk], key.at*sectorSize+i*bufferChunk); err != nil {
			return err
		}
		i += n
		region++
	}
	return nil
}

// isNewer says whether a buffer on the disk already has what the transaction
// changed. The log sequence number lies in the block's header, where its magic
// number says; blocks of another filesystem and unknown ones are older.
func (p *replay) isNewer(key bufferKey, lsn uint64) (bool, error) {
	if !p.fs.sb.v5 {
		return false, nil
	}
	b := make([]byte, sectorSize)
	if err := p.peek(b, key.at*sectorSize); err != nil {
		return false, err
	}
	at, uuid := 0, 0
	switch string(b[:4]) {
	case "AB3B", "AB3C", "IAB3", "FIB3", "RMB3", "R3FC", "ABTB", "ABTC", "IABT":
		at, uuid = 24, 32
	case "BMA3", "BMAP":
		at, uuid = 32, 40
	case agfMagic:
		at, uuid = 208, 64
	case agflMagic:
		at, uuid = 24, 8
	case agiMagic:
		at, uuid = 320, 296
	case "XSLM":
		at, uuid = 48, 16
	case "XDB3", "XDD3", "XDF3":
		at, uuid = 16, 24
	case superMagic:
		at, uuid = 240, 32
		if p.fs.sb.incompat&incompatMetaUUID != 0 {
			uuid = 248
		}
	case "XARM": // never ordered by the log
		return false, nil
	default:
		switch be.Uint16(b[8:]) {
		case magicLeaf1V5, magicLeafNV5, magicNodeV5, magicAttrV5:
			at, uuid = 24, 32
		default:
			return false, nil
		}
	}
	on := be.Uint64(b[at:])
	return [16]byte(b[uuid:uuid+16]) == p.fs.sb.metaUUID && on != 0 && on != math.MaxUint64 && on >= lsn, nil
}

// applyICreate makes the inodes of a new chunk empty (xfs_icreate_log).
func (p *replay) applyICreate(item *logItem) error {
	b, s := item.regions[0], p.fs.sb
	if len(b) < 28 {
		return corrupt("item of new inodes of %d bytes", len(b))
	}
	ag, block, count := be.Uint32(b[4:]), be.Uint32(b[8:]), be.Uint32(b[12:])
	size, length := be.Uint32(b[16:]), be.Uint32(b[20:])
	if int(size) != s.inodeSize || count == 0 || count > 64 || length == 0 || int64(length)*s.blockSize < int64(count)*int64(size) || length > 64 {
		return corrupt("item of %d new inodes of %d bytes in %d blocks", count, size, length)
	}
	off, err := s.offset(uint64(ag)<<s.agBlockLog|uint64(block), uint64(length))
	if err != nil || ag >= s.agCount || block >= s.agBlocks {
		return corrupt("item of new inodes in group %d block %d", ag, block)
	}
	end := off + int64(length)*s.blockSize
	if end > p.fs.size {
		return corrupt("item of new inodes at %d outside the image", off)
	}
	// The chunk may have been freed again later in the log. Its buffers are
	// clusters, whose size follows from the superblock or is a block.
	for _, cluster := range []int64{max(s.blockSize, 8192), max(s.blockSize, 8192*int64(s.inodeSize)/256), s.blockSize} {
		for at := off; at < end; at += cluster {
			if p.cancelled[bufferKey{at / sectorSize, cluster / sectorSize}] > 0 {
				return nil
			}
		}
	}
	if len(p.overlay.fresh) >= maxFresh {
		return errOverlayFull
	}
	p.overlay.renew(span{off / sectorSize, end / sectorSize})
	return nil
}

// intent is an operation that the log has begun.
type intent struct {
	kind   uint16
	inodes []uint64
}

// Items of operations that change files in several transactions.
const (
	itemMapIntent, itemMapDone           = 0x1244, 0x1245
	itemAttrIntent, itemAttrDone         = 0x1246, 0x1247
	itemExchangeIntent, itemExchangeDone = 0x1248, 0x1249

	maxIntents = 1 << 16
)

// intent notes the begin and the end of operations that a mount would finish.
func (p *replay) intent(item *logItem) error {
	b := item.regions[0]
	field := func(at int) uint64 {
		if at+8 > len(b) {
			return 0
		}
		return le.Uint64(b[at:])
	}
	switch item.kind {
	case itemMapDone, itemAttrDone, itemExchangeDone:
		delete(p.intents, field(8))
		return nil
	case itemMapIntent: // its extents begin with the owner
		p.intents[field(8)] = intent{item.kind, []uint64{field(16)}}
	case itemAttrIntent:
		p.intents[field(8)] = intent{item.kind, []uint64{field(16)}}
	case itemExchangeIntent:
		p.intents[field(8)] = intent{item.kind, []uint64{field(16), field(24)}}
	}
	if len(p.intents) > maxIntents {
		return corrupt("more than %d operations without an end", maxIntents)
	}
	return nil
}

// unfinished says which files are between two states.
func (p *replay) unfinished() []string {
	what := map[uint16]string{
		itemMapIntent:      "a change of extents",
		itemAttrIntent:     "a change of attributes",
		itemExchangeIntent: "an exchange of contents",
	}
	var notes []string
	for kind, text := range what {
		var inodes []string
		for _, i := range p.intents {
			if i.kind == kind {
				inodes = append(inodes, strings.Trim(fmt.Sprint(i.inodes), "[]"))
			}
		}
		if len(inodes) > 0 {
			slices.Sort(inodes)
			more := ""
			if len(inodes) > 20 {
				inodes, more = inodes[:20], " and more"
			}
			notes = append(notes, fmt.Sprintf("%s had begun and is not finished: inode %s%s", text, strings.Join(inodes, ", "), more))
		}
	}
	slices.Sort(notes)
	return notes
}
