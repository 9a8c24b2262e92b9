// Package treetest is an in-memory guest filesystem and a set of volumes made
// of them, for tests of the packages that show restore points. A FS is filled
// first and read afterwards; reading may happen from many goroutines.
package treetest
