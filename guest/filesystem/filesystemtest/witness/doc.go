// Command witness lets the kernel of another machine tell the truth about a
// filesystem: the tests run it inside the lab's guest, whose kernel mounts
// what this one may not.
//
//	witness populate DIR ENTRIES         fills DIR (filesystemtest.PopulatePlain)
//	witness populate-filler DIR ENTRIES  the same with files of filler only
//	witness record DIR                   writes DIR's tree to stdout (Tree.Save), gzipped
package main
