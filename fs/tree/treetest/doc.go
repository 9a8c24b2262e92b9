// Package treetest makes points and guest filesystems in memory for the tests
// of fs and fs/tree.
package treetest
