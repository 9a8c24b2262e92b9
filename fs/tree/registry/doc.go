// Package registry reads the few keys of a Windows registry hive that a tree of
// volumes needs.
//
// A hive is hostile input: every offset and size is checked before it is used,
// no more than maxEntries keys and maxEntries values are looked at, and nothing
// is read by recursion. What does not fit is an error that wraps
// filesystem.ErrCorrupt. Changes that lie in the hive's logs only are not seen.
//
// Format: "Windows registry file format specification" of M. Suhanov (regf).
package registry
