// Command scribe writes a ledger (package ledger) to raw disks. It runs in the
// lab's guest, from its boot on until it is told to stop.
//
//	scribe [-sync-every N] [-pause D] [-duration D] [-progress FILE] [-latencies FILE] DISK...
//
// The disks are opened past the page cache. The progress file holds the number
// of the last write that has ended. The latencies file gets how long each write
// took, with the flush behind it if there was one, in microseconds, a line each.
package main
