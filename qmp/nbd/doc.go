// Package nbd is a read-only client of the Network Block Device protocol, made
// to read a fleece out of QEMU as fast as QEMU can give it.
//
// It speaks the fixed newstyle handshake with NBD_OPT_GO, structured replies
// (simple replies when the server refuses them) and meta contexts
// ("base:allocation", "qemu:dirty-bitmap:NAME"). Names of constants, options
// and chunks are those of https://github.com/NetworkBlockDevice/nbd,
// doc/proto.md.
//
// Promises:
//
//   - A Conn may be used from many goroutines; their requests are in flight on
//     one connection at the same time, at most MaxInFlight of them.
//   - Payload is read from the socket straight into the caller's buffer. When
//     a call returns, nobody writes to its buffer any more, also when its
//     context ended in the middle of a reply.
//   - Everything that comes from the server is bounded before memory is taken,
//     and a reply that does not fit its request breaks the connection with an
//     error that wraps ErrProtocol: bytes that were never received are never
//     given to a caller.
//   - A server that sends nothing for the progress timeout while a request
//     waits breaks the connection with ErrSilent.
//   - A broken connection fails its calls, but its socket stays OPEN until
//     Close or Abandon.
//
// The last promise protects guests. QEMU 7.2 aborts, guest and all, when the
// client of a live export of a disk on an iothread closes its connection
// (blockdev-nbd.c: nbd_blockdev_client_closed: Assertion
// 'qemu_in_main_thread() && nbd_server' failed). Who owns such an export calls
// block-export-del with mode=hard first, then Abandon at once, and only then
// waits for BLOCK_EXPORT_DELETED. Closing in the middle of a handshake is
// harmless, and that is the only place where this package closes by itself.
//
// Lock order: Conn.writeMu, then Conn.mu. Neither is held while waiting for
// the server or while calling the caller's function.
package nbd
