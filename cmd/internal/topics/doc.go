// Package topics holds the texts of `cairn help TOPIC`: what a person has to
// know that belongs to no single command. They are also manual pages, of
// section 7.
//
// Each is a file of text/, whose first line is its title. In what follows
//
//	a line of capitals is a heading
//	a line with two spaces before it stands as it is: commands, output, settings
//	all else is prose
//
// "cairn" in small letters is the program, and a word after it is one of its
// commands; the product is Cairn. A test of package cli holds every command,
// flag and setting that a text names against the real ones. What begins with
// "  $ " in restore-guide is run, in this order, by a test (integration/manual).
package topics
