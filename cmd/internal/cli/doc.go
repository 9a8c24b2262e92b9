// Package cli is Cairn's command line: flags, words and exit codes. Results
// go to stdout, all else to stderr.
package cli
