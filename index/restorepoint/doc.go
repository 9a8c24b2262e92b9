// Package restorepoint is one VM at one instant: its manifest, its disk maps
// and the images that read them.
//
// A disk map is a persistent page table of three fixed levels: a leaf spans
// 16 MiB (4,096 chunks), a middle node 4 GiB (256 leaves), the root lies in
// the manifest. Nodes are records of map packs, immutable, addressed by where
// they lie. A new point rewrites only the leaves that changed and their
// parents; the others are shared. Every point is complete by itself: there
// are no chains.
//
// The package promises: an Image gives exactly the bytes that the point's
// fleece had, or an error; a node that does not fit its place in the map is
// an error and never read past; memory is bounded by the caches' sizes. It
// knows of the store only chunk names and the small interfaces it declares.
package restorepoint
