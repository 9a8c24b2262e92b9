// Package imagetest unpacks images of arrays and volume groups that a Linux
// kernel wrote, with the checksums of what it read from them; testdata/make.sh
// of guest/volume makes them.
package imagetest
