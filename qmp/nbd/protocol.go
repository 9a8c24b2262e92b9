package nbd

// Numbers of the protocol, doc/proto.md. Part of the wire format, do not change.
const (
	magicInit        = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption      = 0x49484156454F5054 // "IHAVEOPT"
	magicOptionReply = 0x0003e889045565a9
	magicRequest     = 0x25609513
	magicSimple      = 0x67446698
	magicStructured  = 0x668e33ef

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optAbort           = 2
	optGo              = 7
	optStructuredReply = 8
	optSetMetaContext  = 10

	repAck         = 1
	repInfo        = 3
	repMetaContext = 4
	repErrorBit    = 1 << 31
	repErrUnsup    = repErrorBit + 1
	repErrPolicy   = repErrorBit + 2
	repErrUnknown  = repErrorBit + 6

	infoExport    = 0
	infoBlockSize = 3

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	chunkFlagDone    = 1 << 0
	chunkNone        = 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkErrorBit    = 1 << 15
)

// Bits of an extent's flags.
const (
	FlagHole  = 1 << 0 // base:allocation: nothing is allocated
	FlagZero  = 1 << 1 // base:allocation: reads as zeros
	FlagDirty = 1 << 0 // qemu:dirty-bitmap:NAME: written since the bitmap records
)

// BaseAllocation is the meta context that tells data from holes.
const BaseAllocation = "base:allocation"

// DirtyBitmap gives the name of the meta context of a bitmap that QEMU exports.
func DirtyBitmap(name string) string { return "qemu:dirty-bitmap:" + name }

// Bounds on what a server may send and a caller may ask.
const (
	maxString        = 4096         // an export or context name: the protocol's own limit
	maxContexts      = 16           // meta contexts on one connection
	maxOptionReply   = 64 << 10     // bytes in one reply of the handshake
	maxOptionReplies = 256          // replies to one option
	maxRequestBytes  = 32 << 20     // one request; QEMU's own limit
	maxStatusBytes   = 4 + 16<<20   // one block status chunk; QEMU sends at most 2 Mi extents of 8 bytes
	maxErrorBytes    = 8 << 10      // one error chunk
	maxChunks        = 1<<16 + 1<<8 // chunks in one reply: 32 MiB in 512-byte pieces and some more
	maxStatusLength  = 1 << 30      // bytes of disk that one block status request spans; the wire has 32 bits
)
