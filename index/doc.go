// Package index is a host's cache of one repository: in which packs chunks
// are, and which restore points exist. Badger keeps it. All of it can be read
// anew from the store, and is, whenever there is doubt.
//
// It promises:
//
//   - Nothing here is the truth. "Not known" costs an upload; "known" is said
//     only of packs that the store listed when the index was opened, or that
//     were added since. gc, check and restore do not ask the index.
//   - Badger is never shown a directory that is not, byte for byte, what the
//     last clean Close left. Badger takes a lost MANIFEST for an empty
//     database and deletes its own tables; a changed byte in a table is a
//     panic in one of its goroutines. So Close writes STATE, the list of all
//     files with their hashes; Open removes it first. Without a STATE that
//     fits, the directory is moved aside and built anew from the store.
//   - Every value carries a checksum under the repository's index key, over
//     key and value. A value whose checksum is wrong is absent.
//   - A failing index does not fail a backup. The first error of Badger is
//     remembered (Err), from then on nothing is known and nothing written,
//     and Close leaves no STATE, so that the next Open builds anew.
//   - Close waits for Badger's goroutines.
//
// What lies in the directory:
//
//	lock          flock: exclusive while open, shared during ReadPoints
//	STATE         says that db is whole; only there while nobody has it open
//	db/           Badger's; keys.go has the keys
//	lists/xx/…    each data pack's list of chunk IDs; list.go has the bytes
//	aside/        the db that was last found damaged, for whoever wants to know
//
// The lists are plain files, not Badger values: they are four fifths of all
// bytes, are written once, and are checked one by one when used. STATE need
// not cover them, and after a crash the hooks are built anew from them
// without asking the store.
//
// Memory: Badger's tables are mapped, not cached a second time on the heap.
// With 1,000,000 hooks (32 GiB of different chunks) the tables take some
// 40 MiB on disk. BenchmarkMillion measured, above what the process had
// before: 10 MiB after opening; 30 to 45 MiB of heap, garbage included, while
// packs are added (with Badger's maps and its bursts the peak was 105 to 125);
// and as much mapped page cache as tables were looked at, up
// to their size, which the kernel takes back when it needs it.
//
// Time: Open and ReadPoints read and hash all tables, 40 bytes per hook, since
// nothing less keeps Badger from a damaged one.
//
// Full disk: Badger writes through mapped memory, so a disk without room ends
// the process by SIGBUS, which Go cannot turn into an error. Open refuses
// below 256 MiB of free space, and Add stops writing below 64 MiB. If the
// signal comes all the same, the next Open finds no STATE and heals.
//
// Lock order: Index.life before Index.mu. Neither is held over a call of the
// store, except by Open, whose Index nobody else has yet.
package index
