// Package scale is a repository of 100 TiB that is not there, and what measures
// the memory that work on it takes.
//
// A Place answers as a place would that holds a number of machines, each with
// one full backup and many incremental ones. Listings, manifests, intents, map
// packs and the footers of data packs are made when they are asked for, always
// the same for the same Shape, in the repository's real format and sealed with
// its real keys (only guest bytes are nowhere), so that the real code reads
// them. What is stored or removed there is kept in memory.
//
// The maps are written from chunkstore/FORMAT.md, not by the code that they
// test.
package scale
