// Package restorepoint is one VM at one instant: its manifest, its disk maps
// and the images that read them.
package restorepoint
