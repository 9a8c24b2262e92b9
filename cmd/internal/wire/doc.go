// Package wire puts the rooms together: it opens a repository with its place,
// keys, store and index, and shows restore points to the mount and to the
// commands.
package wire
