// Package chunkstoretest has what the tests and campaigns of the store share:
// an index that knows too much, and numbers that the environment sets. It is
// for tests alone.
package chunkstoretest
