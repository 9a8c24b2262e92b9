// Package pack is one immutable object of many frames and a footer.
//
// Layout (chunkstore/FORMAT.md has every byte):
//
//	header   magic, version, kind, salt
//	frames   each: up to 32 chunks (or some nodes), compressed, then sealed
//	index    sealed: the chunk IDs (data pack) or the record lengths (map pack)
//	frames'  sealed: the wrapped key and the frame table
//	trailer  magic, lengths, a copy of the salt, BLAKE3-256 of all before it
//
// A pack is named by a hash of its stored bytes, so anyone can verify it without
// a key; and its trailer alone proves the name to who reads a part of it, so
// that no pack is taken for another one. The package promises: a Builder opens and compares every
// frame that it sealed before the pack counts; a Footer is believed only when
// it is authentic and its numbers fit the object's size; a frame is given out
// only when it is authentic and decodes to exactly the length that its count
// asks for.
package pack
